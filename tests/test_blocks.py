"""Which parameters are preconditioned together, under which names, and which pass through and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seng import Preconditioner
from seng.config import Options
from seng.errors import ModelError, OptionError
from seng.grouping import lay_out
from seng.layers import LAYERS, layer_of
from seng.testing import LAYER_CASES

from .unsupported import Pairs, Slope, Upwards


def _layout(model: nn.Module, **options: Any):
    return lay_out(model, Options.build("call()", options), "call()")


def _names(model: nn.Module, **options: Any) -> dict[str, tuple[str, ...]]:
    return {name: block.parameter_names for name, block in _layout(model, **options).blocks.items()}


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), Slope())
        self.decoder = nn.Linear(4, 3, bias=False)
        self.up = Upwards(3, 3, 2)


def test_blocks_hold_weight_and_bias_of_each_supported_layer():
    layout = _layout(_Net())
    assert {name: block.parameter_names for name, block in layout.blocks.items()} == {
        "encoder.0": ("encoder.0.weight", "encoder.0.bias"),
        "encoder.1": ("encoder.1.weight", "encoder.1.bias"),
        "decoder": ("decoder.weight",),
    }
    assert layout.passed == {
        "scale": "_Net is not supported",
        "encoder.2.weight": "Slope is not supported",
        "up.weight": "Upwards is not supported",
        "up.bias": "Upwards is not supported",
    }
    assert set(layout.passing) == set(layout.passed)


def test_every_trainable_parameter_is_in_one_block_or_passes():
    model = _Net()
    layout = _layout(model)
    held = [p for block in layout.blocks.values() for p in block.parameters] + list(layout.passing.values())
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}


def test_blocks_join_modules_that_share_a_parameter_in_any_order():
    a, b, c, d = (nn.Linear(2, 2) for _ in range(4))
    c.weight = a.weight
    d.bias = b.bias
    c.bias = d.bias  # joins the two pairs after each was formed
    model = nn.ModuleDict({"a": a, "b": b, "c": c, "d": d, "alone": nn.Linear(2, 2)})
    assert set(_names(model)) == {"a", "alone"}
    (joined,) = [block for block in _layout(model).blocks.values() if len(block.members) > 1]
    assert {entry.name for entry, _ in joined.members} == {"a", "b", "c", "d"}
    for entry, slots in joined.members:
        own = [getattr(entry.module, key) for key in entry.wanted]
        assert [id(joined.parameters[k]) for k in slots] == [id(p) for p in own]
    assert len({id(p) for p in joined.parameters}) == len(joined.parameters) == 5  # 4 weights and 4 biases, less 3


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"include": [nn.LayerNorm]}, {"encoder.1"}),
        ({"include": ["encoder.*"]}, {"encoder.0", "encoder.1"}),
        ({"include": ["*"], "exclude": [nn.LayerNorm, "decoder"]}, {"encoder.0"}),
        ({"include": [nn.Linear], "exclude": ["encoder.?"]}, {"decoder"}),
        ({"exclude": ["encoder*"]}, {"decoder"}),
    ],
)
def test_selectors_take_types_and_patterns(selection: dict[str, Any], expected: set[str]):
    model = _Net()
    assert set(_names(model, **selection)) == expected
    passed = _layout(model, **selection).passed
    for name in {"encoder.0", "encoder.1", "decoder"} - expected:
        assert passed[f"{name}.weight"] in ("not included", "excluded")


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("selector", ["encoder.7", nn.Conv2d])
def test_selectors_that_match_nothing_are_refused(option: str, selector: Any):
    with pytest.raises(OptionError, match=rf"call\(\): a selector of {option} matches no module: .*named_modules"):
        _layout(_Net(), **{option: [selector]})


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(), nn.Linear(2, 2).requires_grad_(False)])
def test_models_without_trainable_parameters_are_refused(model: nn.Module):
    with pytest.raises(ModelError, match=r"call\(\): the model has no trainable parameters: expected at least one"):
        _layout(model)


@pytest.mark.parametrize("model", [Slope(), nn.GRUCell(4, 2), Pairs(2, 2, 2)])
def test_models_without_supported_layers_are_refused(model: nn.Module):
    with pytest.raises(
        ModelError, match=r"no supported layer: expected one of Linear, .*RMSNorm, .*, got .*check include"
    ):
        _layout(model)


def test_excluding_every_layer_is_refused():
    with pytest.raises(ModelError, match="no supported layer"):
        _layout(_Net(), exclude=["*"])


def test_names_are_those_of_the_plain_model_after_compiling():
    model = _Net()
    names = _names(model)
    model.encoder = torch.compile(model.encoder, backend="eager")  # type: ignore[assignment]
    assert _names(model) == names
    assert set(_names(model, include=["encoder.*"])) == {"encoder.0", "encoder.1"}


def test_compute_dtype_is_at_least_float32():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2):
        (block,) = _layout(nn.Linear(2, 2, dtype=dtype)).blocks.values()
        assert block.compute_dtype == expected


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_layer_is_found_for_subclasses_that_keep_forward(kind: type[nn.Module]):
    module = LAYER_CASES[kind][0].make_module()
    assert layer_of(module) is LAYERS[kind]
    module.__class__ = type("Renamed", (kind,), {})
    assert layer_of(module) is LAYERS[kind]
    module.__class__ = type("Changed", (kind,), {"forward": lambda self, x: x})
    assert layer_of(module) is None


def test_subclasses_with_a_forward_of_their_own_pass_through():
    class Standardised(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.linear(input, self.weight / self.weight.norm(), self.bias)

    model = nn.Sequential(Standardised(3, 3), nn.Linear(3, 2))
    layout = _layout(model)
    assert set(layout.blocks) == {"1"}
    assert layout.passed == dict.fromkeys(("0.weight", "0.bias"), "Standardised is not supported")


def test_modules_under_two_names_are_watched_once():
    layer = nn.Linear(3, 3)
    model = nn.ModuleDict({"first": layer, "again": layer})
    pre = Preconditioner(model)
    assert len(layer._forward_hooks) == 1
    assert _names(model) == {"first": ("first.weight", "first.bias")}
    pre.close()
