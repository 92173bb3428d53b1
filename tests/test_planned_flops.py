"""The plan's operation counts are those that torch counts when the exact path runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seng import plan
from seng.estimators import Cost, Form, Operator
from seng.estimators import Rows as RowsForm
from seng.estimators.base import MEMORY_BOUND
from seng.per_sample import LayerGradients, Lookup, PerSampleGradients, Product, Rows

EXACT = 0.02  # share of a count that biases and sums over positions may make up: the plan leaves them out
FIRST = 1e-12  # counts are whole numbers: only their division rounds

aten = torch.ops.aten


def _into(a: Any, x: Any, y: Any, *_: Any, **__: Any) -> int:
    return 2 * x[-2] * x[-1] * (y[-1] if len(y) > 1 else 1) * (x[0] if len(x) > 2 else 1)


IN_PLACE: dict[Any, Callable[..., int]] = {  # torch's counter knows products that allocate alone
    aten.addmm_: _into,
    aten.baddbmm_: _into,
    aten.addmv_: _into,
    aten.mv: lambda x, y, **_: 2 * x[0] * x[1],
    aten.addmv: _into,
}


def _counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        run()
    return counter.get_total_flops()


def _product(c: int, n: int, s: int, d_in: int, d_out: int) -> Product:
    return Product(torch.randn(c, n, s, d_in), torch.randn(c, n, s, d_out))


def _lookup(n: int, s: int, vocabulary: int, d: int) -> Lookup:
    """Every index in turn, so that as many rows are in use as can be."""
    return Lookup(torch.arange(n * s).view(n, s) % vocabulary, torch.randn(n, s, d), vocabulary)


LAYERS: dict[str, LayerGradients] = {
    "linear": _product(1, 32, 1, 120, 50),
    "tokens": _product(1, 32, 3, 120, 50),
    "pixels": _product(1, 16, 49, 18, 24),
    "groups": _product(2, 16, 49, 24, 18),
    "characters": _lookup(32, 16, 50, 24),
    "words": _lookup(32, 4, 1000, 24),
    "norm": Rows.of((torch.randn(32, 64), torch.randn(32, 64))),
}


FORMS: dict[str, Form] = {form.name: form for form in (Operator(), RowsForm())}


def _kept(name: str, form: str) -> tuple[Cost, Callable[[], PerSampleGradients]]:
    io, how = LAYERS[name], FORMS[form]
    return how.cost(io.shape), lambda: how.build(io, 1.0, torch.float32, torch.Generator())


PRODUCTS = [name for name, io in LAYERS.items() if isinstance(io, Product)]
WRITTEN = [(name, "rows") for name in (*PRODUCTS, "norm")]
KEPT = [(name, "operator") for name in PRODUCTS]
LOOKUPS = [("characters", "operator"), ("words", "operator")]


@pytest.mark.parametrize(("name", "form"), WRITTEN + KEPT + LOOKUPS)
def test_refresh_flops_are_those_of_the_gram_matrix(name: str, form: str) -> None:
    cost, build = _kept(name, form)
    assert cost.gram == pytest.approx(_counted(lambda: build().gram()), rel=EXACT)


@pytest.mark.parametrize(("name", "form"), WRITTEN + KEPT)  # those of embeddings are no matrix products
def test_apply_flops_are_those_of_two_products(name: str, form: str) -> None:
    cost, build = _kept(name, form)
    factor = build()
    grads = tuple(torch.randn(shape) for shape in factor.shapes)
    counted = _counted(lambda: factor.mv(grads)) + _counted(lambda: factor.add_rmv_(grads, torch.randn(factor.n)))
    planned = cost.apply / (MEMORY_BOUND if form == "rows" else 1)
    assert planned == pytest.approx(counted, rel=EXACT)


NETS: dict[str, tuple[nn.Sequential, Tensor]] = {
    "linear": (nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10)), torch.randn(8, 20)),
    "convolutions": (
        nn.Sequential(nn.Conv2d(2, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)),  # torch miscounts groups
        torch.randn(8, 2, 9, 9),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_backward_flops_are_those_of_a_backward_pass(name: str) -> None:
    model, x = NETS[name]
    counted = _counted(model(x.clone().requires_grad_()).square().mean().backward)
    assert plan(model, x).backward_flops == pytest.approx(counted, rel=FIRST)
