"""Does what the library computes on a model agree with the dense oracle? To be asked of models of your own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..blocks import Block
from ..capture import Capture
from ..config import Options
from ..curvature import as_captured, block_io
from ..grouping import lay_out
from ..preconditioner import Preconditioner
from ..schedules import value_at
from ..wrappers import unwrap
from .oracle import copy_gradients, dense_direction

EXACT = 1e-9  # float64 rounding times the condition of the damped Fisher, which the tests keep under about 1e6

LossClosure = Callable[[], Tensor]


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return |got - expected| / |expected| in the Euclidean norm; the error itself where nothing is expected."""
    size = float(expected.norm())
    return float((got - expected).norm()) / (size if size > 0 else 1.0)


def blocks_of(model: nn.Module, **selection: Any) -> dict[str, Block]:
    """Return the blocks of parameters that the library preconditions together, by name.

    Args:
        model: The model, or a wrapper that the library looks through.
        **selection: ``include`` and ``exclude``, as for ``seng.SENG``.
    """
    call = "blocks_of()"
    return lay_out(unwrap(model, call), Options.build(call, selection), call).blocks


def flat_gradient(block: Block) -> Float[Tensor, " p"]:
    """Return a copy of the block's ``.grad`` as one vector, zeros where there is none."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in block.parameters]
    return torch.cat([g.detach().reshape(-1) for g in grads])


def captured_rows(model: nn.Module, loss_closure: LossClosure, **selection: Any) -> dict[str, Float[Tensor, "n p"]]:
    """Return each sample's contribution to ``.grad`` as the hooks capture it, by name of the blocks reached.

    Runs the closure and backward once; gradients accumulate.

    Args:
        model: The model.
        loss_closure: Computes the loss by calling the model.
        **selection: ``include`` and ``exclude``, as for ``seng.SENG``.
    """
    blocks = blocks_of(model, **selection)
    capture = Capture([member.watched for block in blocks.values() for member, _ in block.members])
    try:
        loss_closure().backward()
        layers = capture.collect().layers
    finally:
        capture.close()
    rows = {}
    for name, block in blocks.items():
        if any(entry.name in layers for entry, _ in block.members):
            rows[name] = as_captured(block, block_io(block, layers), 1.0, torch.float64).to_dense().T
    return rows


def oracle_rows(
    model: nn.Module, loss_closure: LossClosure, n: int, **selection: Any
) -> dict[str, Float[Tensor, "n p"]]:
    """Return the same for every block by ``copy_gradients``; zeros where the loss does not reach."""
    blocks = blocks_of(model, **selection)
    parameters = [p for block in blocks.values() for p in block.parameters]
    rows = copy_gradients(model, loss_closure, parameters, n)
    sizes = [sum(p.numel() for p in block.parameters) for block in blocks.values()]
    return dict(zip(blocks, rows.split(sizes, 1), strict=True))


def check_rows(
    model: nn.Module, loss_closure: LossClosure, n: int, *, tolerance: float = EXACT, **selection: Any
) -> None:
    """Assert that every block's captured per-sample gradients are the oracle's.

    Args:
        model: In float64.
        loss_closure: Computes the loss by calling the model, the same at each call.
        n: Number of samples.
        tolerance: Largest relative error of a block.
        **selection: ``include`` and ``exclude``, as for ``seng.SENG``.

    Raises:
        AssertionError: A block differs.
    """
    expected = oracle_rows(model, loss_closure, n, **selection)
    got = captured_rows(model, loss_closure, **selection)
    for name, rows in expected.items():
        _require_close("check_rows", name, got.get(name, torch.zeros_like(rows)), rows, tolerance)


def check_direction(
    model: nn.Module, loss_closure: LossClosure, n: int, *, tolerance: float = EXACT, **options: Any
) -> None:
    """Assert that the direction of a step with the curvature of its own batch is the oracle's, block by block.

    Args:
        model: In float64.
        loss_closure: Computes the loss by calling the model, the same at each call.
        n: Number of samples.
        tolerance: Largest relative error of a block.
        **options: As for ``seng.Preconditioner``; exact and without a trust cap where they do not say otherwise.

    Raises:
        AssertionError: A block differs.

    Cost: p^3 a block.
    """
    options = {"estimator": "exact", "trust": None, **options, "curvature_batch": "current"}
    chosen = Options.build("check_direction()", options)
    selection = {key: options[key] for key in ("include", "exclude") if key in options}
    rows, blocks = oracle_rows(model, loss_closure, n, **selection), blocks_of(model, **selection)
    model.zero_grad()
    preconditioner = Preconditioner(model, **options)
    try:
        loss_closure().backward()
        before = {name: flat_gradient(block) for name, block in blocks.items()}
        preconditioner.step()
    finally:
        preconditioner.close()
    mean = chosen.loss_reduction == "mean"  # rows of the oracle are u_i / n then, and .grad is n times g otherwise
    divided, summed = (n, 1) if mean else (1, n)
    for name in [name for name in blocks if bool(rows[name].any())]:
        expected = summed * dense_direction(
            rows[name] * divided,
            before[name] / summed,
            damping=value_at(chosen.damping, 0),
            power=chosen.power,
            relative=chosen.damping_mode == "relative",
            natural=chosen.natural,
            trust=1.0 if chosen.trust == "auto" else chosen.trust,  # of a first direction
        )
        _require_close("check_direction", name, flat_gradient(blocks[name]), expected, tolerance)


def _require_close(call: str, name: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    error = relative_error(got, expected)
    if not error <= tolerance:
        place = f" at layer {name}" if name else ""
        raise AssertionError(f"{call}: expected a relative error of at most {tolerance:g}, got {error:.3g}{place}")
