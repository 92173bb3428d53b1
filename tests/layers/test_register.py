"""A layer of one's own: parameters of any name, inputs by position or keyword, several outputs; all in one file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seng
from seng.errors import CaptureError, OptionError
from seng.layers import LAYERS, LayerCall, UnsupportedCall
from seng.testing import LAYER_CASES, blocks_of, check_layer, check_layer_type, check_rows

MODULE = """
import torch
from torch import nn

import seng
from seng.testing import LAYER_CASES, Case


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 2, 4))

    def forward(self, x):
        return x * self.gain


def gain(module, call):
    return {"gain": (call.x * call.g).flatten(1, -2).sum(1)}


seng.layers.register(Gain, gain)
LAYER_CASES[Gain] = (Case(Gain, lambda: torch.randn(5, 3, 4)), Case(Gain, lambda: torch.randn(5, 2, 3, 4)))
"""


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    layers, cases = dict(LAYERS), dict(LAYER_CASES)
    yield
    for table, before in ((LAYERS, layers), (LAYER_CASES, cases)):
        table.clear()
        table.update(before)  # type: ignore[arg-type]


def test_one_file_adds_a_layer_with_a_parameter_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_gain.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        check_layer_type(import_module("my_gain").Gain)
    finally:
        sys.modules.pop("my_gain")


class Shifted(nn.Module):
    """y = x * scale + by * shift, given by keyword, and x + offset beside it."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        self.offset = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor, *, by: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x * self.scale + by * self.shift, {"beside": x + self.offset}


def shifted(module: nn.Module, call: LayerCall) -> dict[str, Tensor]:
    first, beside = call.grads
    zero = torch.zeros_like(call.x)
    first, beside = (zero if g is None else g for g in (first, beside))
    rows = {"scale": call.x * first, "shift": call.kwargs["by"] * first, "offset": beside}
    return {name: rows[name] for name in call.wanted}


class Around(nn.Module):
    """Calls the layer by keyword, and returns what is used of its outputs."""

    def __init__(self, used: str = "both"):
        super().__init__()
        self.inner, self.used = Shifted(), used

    def forward(self, x: Tensor) -> Tensor:
        y, more = self.inner(x, by=x.square())
        return {"first": y, "beside": more["beside"].tanh(), "both": y * more["beside"]}[self.used]


@pytest.mark.parametrize("used", ["first", "beside", "both"])
@pytest.mark.parametrize("parts", [None, [("scale", "shift"), ("offset",)]])
def test_layers_with_keyword_inputs_and_several_outputs_match_oracle(used: str, parts: Any):
    seng.layers.register(Shifted, shifted, parts=parts)
    torch.manual_seed(0)
    model, x = Around(used).double(), torch.randn(4, 3, dtype=torch.float64)
    names = {"inner"} if parts is None else {"inner.scale", "inner.offset"}
    assert set(blocks_of(model)) == names

    def losses() -> Tensor:
        return model(x).tanh().square().sum(1)

    rows = seng.testing.captured_rows(model, lambda: losses().sum())
    parameters = [p for block in blocks_of(model).values() for p in block.parameters]
    expected = seng.testing.loop_gradients(lambda i: losses()[i], parameters, 4)
    torch.testing.assert_close(torch.cat(list(rows.values()), 1), expected, rtol=1e-12, atol=1e-12)


def test_subclasses_with_a_forward_of_their_own_are_not_the_registered_layer():
    class Kept(Shifted):
        pass

    class Changed(Shifted):
        def forward(self, x: Tensor, *, by: Tensor) -> Any:
            return super().forward(2 * x, by=by)

    seng.layers.register(Shifted, shifted)
    assert set(blocks_of(nn.Sequential(Kept(), Changed(), nn.Linear(2, 2)))) == {"0", "2"}
    seng.layers.register(Changed, shifted)
    assert set(blocks_of(nn.Sequential(Kept(), Changed(), nn.Linear(2, 2)))) == {"0", "1", "2"}


def test_calls_that_a_function_refuses_pass_through_with_its_reason():
    def refusing(module: nn.Module, call: LayerCall) -> Any:
        raise UnsupportedCall("on Mondays")

    seng.layers.register(Shifted, refusing)
    around = Around()
    model, scale = nn.Sequential(around, nn.Linear(3, 1)), around.inner.scale
    pre = seng.Preconditioner(model)
    model(torch.randn(4, 3)).square().mean().backward()
    assert scale.grad is not None
    before = scale.grad.clone()
    with pytest.warns(UserWarning, match=r"these layers keep their plain gradient: 0\.inner \(on Mondays\)"):
        pre.step()
    assert pre.coverage().passed_through["0.inner.scale"] == "on Mondays"
    torch.testing.assert_close(scale.grad / scale.grad.norm(), before / before.norm())
    pre.close()


WRONG = {
    "left out": (lambda call: {"scale": call.x}, r"leaves out a parameter: expected .*'shift'.* at layer inner\."),
    "flat": (
        lambda call: dict.fromkeys(call.wanted, call.x.sum(1, keepdim=True)),
        r"not of the shape of its parameters: expected \[3, 3, 3\] elements .*, got \[1, 1, 1\] at layer inner\.",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_a_function_gets_wrong_is_refused_by_name(fault: str):
    gives, message = WRONG[fault]
    seng.layers.register(Shifted, lambda module, call: gives(call))
    model, x = Around().double(), torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(CaptureError, match=r"step\(\): a layer's .*" + message):
        check_rows(model, lambda: model(x).square().sum(), 4)


def test_a_function_that_is_wrong_fails_the_contract():
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    seng.layers.register(Gain, lambda module, call: {"gain": call.g})
    with pytest.raises(AssertionError, match="check_rows: expected a relative error of at most 1e-09"):
        check_layer(Gain, lambda: torch.randn(4, 3))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, shifted), {}, r"no type of modules: expected a subclass of torch.nn.Module, got 3\."),
        ((Shifted(), shifted), {}, r"no type of modules: expected a subclass of torch.nn.Module, got Shifted"),
        ((Shifted, None), {}, r"the function cannot be called: .*, got None\."),
        ((Shifted, shifted), {"parts": []}, r"parts do not name parameters once each: .*, got \(\)"),
        ((Shifted, shifted), {"parts": [("scale",), ("scale",)]}, "parts do not name parameters once each"),
        ((Shifted, shifted), {"parts": [(1,)]}, "parts do not name parameters once each"),
    ],
)
def test_registrations_that_cannot_work_are_refused(arguments: Any, options: Any, message: str):
    before = dict(LAYERS)
    with pytest.raises(OptionError, match=r"register\(\): " + message):
        seng.layers.register(*arguments, **options)
    assert before == LAYERS
