"""Every line of the tables keeps its contract, and the contracts notice what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from seng.errors import CaptureError
from seng.estimators import ESTIMATORS, Cost, Form
from seng.layers import LAYERS, LayerCall, affine
from seng.layers.contract import Layer
from seng.layers.linear import linear
from seng.per_sample import LayerGradients, PerSampleGradients, Product, Shape
from seng.per_sample.truncated import TOLERANCE
from seng.sketch import SKETCHES, Sampling
from seng.testing import check_estimator, check_layer, check_layer_type, check_sketch

# estimators that leave something out, and by how much that may change a direction
LOSSY = {"truncated": TOLERANCE}
NATURAL_ONLY = {"paper-code"}  # knows power 1 alone


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_layer_of_the_table_keeps_the_contract(kind: type[nn.Module]):
    check_layer_type(kind)


@pytest.mark.parametrize("name", SKETCHES)
def test_sketch_of_the_table_keeps_the_contract(name: str):
    check_sketch(name)


@pytest.mark.parametrize(
    ("name", "power"),
    [(name, power) for name in ESTIMATORS for power in (1.0, 0.5) if power == 1.0 or name not in NATURAL_ONLY],
)
def test_estimator_of_the_table_keeps_the_contract(name: str, power: float):
    check_estimator(name, power=power, **({"tolerance": LOSSY[name]} if name in LOSSY else {}))


class Scale(nn.Module):
    """A layer of a third party: y = x * weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _scale(module: nn.Module, call: LayerCall) -> dict[str, Tensor]:
    return {"weight": (call.x * call.g).flatten(1, -2).sum(1)}


def test_layer_of_a_third_party_keeps_the_contract(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LAYERS, Scale, Layer(_scale))
    check_layer(Scale, lambda: torch.randn(5, 3, 4), power=0.5)
    with pytest.raises(AssertionError, match="no case of Scale. Add one to seng.testing.LAYER_CASES"):
        check_layer_type(Scale)


WRONG_LAYERS: dict[str, Callable[[Any], LayerGradients]] = {
    "bias forgotten": lambda io: replace(io, bias=False),
    "samples swapped": lambda io: replace(io, g=io.g.flip(1)),
    "inputs negated": lambda io: replace(io, a=-io.a),
    "positions mixed": lambda io: replace(io, a=io.a.flip(2)),
    "a little off": lambda io: replace(io, g=io.g * (1 + 1e-8)),
}


@pytest.mark.parametrize("fault", WRONG_LAYERS)
def test_layer_contract_notices_what_is_wrong(fault: str, monkeypatch: pytest.MonkeyPatch):
    def wrong(module: nn.Module, call: LayerCall) -> dict[Any, LayerGradients]:
        return {part: WRONG_LAYERS[fault](io) for part, io in linear(module, call).items()}

    monkeypatch.setitem(LAYERS, nn.Linear, Layer(wrong, affine))
    message = r"expected a relative error of at most 1e-09, got|expected \[6, 2\] elements a sample of .*, got \[6\] at"
    with pytest.raises((AssertionError, CaptureError), match=message):
        check_layer(lambda: nn.Linear(3, 2), lambda: torch.randn(4, 5, 3))


def _unscaled(d: int, q: int, generator: torch.Generator, scores: Tensor) -> Sampling:
    return Sampling(torch.randperm(d, generator=generator)[:q], torch.ones(q))


def _biased(d: int, q: int, generator: torch.Generator, scores: Tensor) -> Sampling:
    top = scores.topk(q).indices
    return Sampling(top, torch.full((q,), (d / q) ** 0.5))


def _global(d: int, q: int, generator: torch.Generator, scores: Tensor) -> Sampling:
    return Sampling(torch.randperm(d)[:q], torch.full((q,), (d / q) ** 0.5))


def _short(d: int, q: int, generator: torch.Generator, scores: Tensor) -> Sampling:
    return Sampling(torch.randperm(d, generator=generator)[: q - 1], torch.full((q - 1,), (d / (q - 1)) ** 0.5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(_unscaled, "biased"), (_biased, "biased"), (_global, "more than its generator"), (_short, "not the rows")],
)
def test_sketch_contract_notices_what_is_wrong(wrong: Any, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SKETCHES, "wrong", wrong)
    with pytest.raises(AssertionError, match=f"check_sketch: wrong .*{message}"):
        check_sketch("wrong")


@dataclass(frozen=True)
class _Off(Product):
    """A factor with one wrong method."""

    fault: str = ""

    def gram(self) -> Tensor:
        return super().gram() * (2 if self.fault == "gram" else 1)

    def mv(self, v: tuple[Tensor, ...]) -> Tensor:
        return super().mv(v) * (2 if self.fault == "mv" else 1)

    def add_rmv_(self, v: tuple[Tensor, ...], c: Tensor, beta: float = 1.0) -> None:
        super().add_rmv_(v, c, 1.0 if self.fault == "add_rmv_" else beta)


@dataclass(frozen=True)
class _Wrong(Form):
    name: ClassVar[str] = "wrong"
    fault: str = ""

    def cost(self, shape: Shape) -> Cost:
        raise NotImplementedError

    def build(
        self, io: LayerGradients, scale: float, dtype: torch.dtype, generator: torch.Generator
    ) -> PerSampleGradients:
        assert isinstance(io, Product)
        good = io.held(scale * (2 if self.fault == "Fisher" else 1), dtype)
        return _Off(good.a, good.g, good.bias, good.scale, self.fault)


@pytest.mark.parametrize("fault", ["gram", "mv", "add_rmv_", "Fisher"])
def test_estimator_contract_notices_what_is_wrong(fault: str):
    with pytest.raises(AssertionError, match=f"check_estimator: wrong of Product: .*{fault}"):
        check_estimator(_Wrong(fault))
