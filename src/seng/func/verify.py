"""Are the rows right? Derivatives against finite differences, before a run is trusted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .derivatives import nested_differentiation
from .problem import problem_of, settings_of
from .rows import rows_of
from .terms import Term
from .trees import Leaves, params_of

STEP = 1e-3  # of the parameters' norm: the stencil of fourth order is then right to about 1e-9
STENCIL = ((1.0, 8 / 12), (-1.0, -8 / 12), (2.0, -1 / 12), (-2.0, 1 / 12))


def verify(residual_fn: Any, params: Any, batch: Any, **settings: Any) -> dict[str, float]:
    """Compare rows with finite differences of the outputs along a random direction, in float64.

    Where ``laplacian`` and ``taylor`` take a sweep, the outputs that it is compared with come from nested
    differentiation: an entry of ``seng.func.derivatives.SMOOTH`` that is wrong is found here, too; and so are
    derivatives of torch's own that are silently wrong in second or third order (``hessian`` of ``layer_norm`` or of
    ``linalg.solve``).

    Args:
        residual_fn: As in ``natural_gradient``.
        params: As in ``natural_gradient``; nothing is changed.
        batch: As in ``natural_gradient``; a few samples do.
        **settings: See ``seng.func.Settings``.

    Returns:
        |J v - finite difference| / |J v| by term, or the same of the outputs where that is larger: 1e-6 or less where
        all is well, near 1 where rows are wrong.

    Raises:
        OptionError: An argument is unknown or out of range.
        BatchError: The batch does not fit.

    Cost: the rows, and four forward passes.

    Example:
        >>> x = torch.linspace(0, 1, 5)
        >>> errors = verify(lambda w, xi: torch.exp(w[0] * xi) - w[1], torch.ones(2), x)
        >>> errors["residual"] < 1e-6
        True
    """
    call = "verify()"
    layout, chosen = params_of(params, call), settings_of(call, settings)
    problem = problem_of(residual_fn, layout, batch, chosen, 0, call)
    leaves = layout.values(torch.float64)
    generator = problem.generator("verify")
    v = torch.randn(layout.size, generator=generator, dtype=torch.float64).to(leaves[0].device)
    size = torch.cat([leaf.reshape(-1) for leaf in leaves]).norm().clamp(min=1.0)
    v = v * (STEP * size / v.norm())
    errors = {}
    for term in problem.terms:
        outputs = term.mapped(problem.fisher.outputs).in_dtype(torch.float64)
        with nested_differentiation():
            expected = _difference(outputs, leaves, layout.split(v))
            nested = outputs.values(leaves, 0, term.count)
        errors[term.name] = _distance(outputs.values(leaves, 0, term.count), nested)
        rows = rows_of(
            [outputs], [len(expected)], [1.0], layout, torch.float64, 8, chosen.memory, problem.ranks, call
        )  # fmt: skip
        got = torch.cat([rows.tile(k) @ v for k in range(len(rows.pieces))])
        errors[term.name] = max(errors[term.name], _distance(got, expected))
    return errors


def _distance(got: Tensor, expected: Tensor) -> float:
    """Return |got - expected| / |got|."""
    return float((got - expected).norm() / got.norm().clamp(min=torch.finfo(got.dtype).tiny))


def _difference(term: Term, leaves: Leaves, v: Leaves) -> Tensor:
    total = torch.zeros(())
    for length, weight in STENCIL:
        moved = tuple(p + length * q for p, q in zip(leaves, v, strict=True))
        total = total + weight * term.values(moved, 0, term.count).detach()
    return total
