"""``verify`` passes right rows, and finds wrong ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seng.errors import BatchError
from seng.func import verify

from .problems import RESIDUALS, unbatched
from .reference import draw, flat, network

FINE = 1e-6  # a stencil of fourth order in float64
NET = network()


class Wrong(torch.autograd.Function):
    """The square, with a derivative that forgets the 2."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x


@pytest.mark.parametrize("name", RESIDUALS)
@pytest.mark.parametrize("per_sample", [True, False])
def test_right_rows_pass(name: str, per_sample: bool) -> None:
    fn = RESIDUALS[name].ours if per_sample else unbatched(RESIDUALS[name].ours)
    before = flat(NET.parameters())
    assert verify(fn, NET, draw(5, 2), per_sample=per_sample)["residual"] < FINE
    assert torch.equal(flat(NET.parameters()), before)


def test_float32_is_checked_in_float64() -> None:
    errors = verify({"a": RESIDUALS["second"].ours}, network().float(), {"a": draw(5, 2).float()})
    assert errors["a"] < FINE


def test_wrong_derivatives_are_found_by_term() -> None:
    functions = {"good": lambda w, x: w[0] ** 2 * x, "bad": lambda w, x: Wrong.apply(w[0]) * x}
    errors = verify(functions, draw(2), {"good": draw(4), "bad": draw(4)})
    assert errors["good"] < FINE
    assert errors["bad"] > 0.5


def test_verify_checks_its_batch() -> None:
    with pytest.raises(BatchError, match=r"verify\(\): batch of 'residual' cannot be used"):
        verify(RESIDUALS["value"].ours, NET, draw(0, 2))
