"""How well data determine parameters: their covariance and standard errors at a least squares fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BatchError, OptionError
from .problem import SingularError, problem_of, settings_of
from .trees import params_of


@dataclass(frozen=True)
class Covariance:
    """What a fit says about its parameters.

    Args:
        matrix: Covariance of the parameters, flat, [p, p].
        standard_errors: Square roots of its diagonal, in the structure of the parameters.
        residual_deviation: Standard deviation of the residuals, sqrt(sum of squares / freedom). Residuals of several
            terms are first scaled by the square root of weight / rows of their term over its mean.
        freedom: Residuals less parameters.
    """

    matrix: Float[Tensor, "p p"]
    standard_errors: Any
    residual_deviation: float
    freedom: int


def covariance(residual_fn: Any, params: Any, batch: Any, **settings: Any) -> Covariance:
    """Return the covariance of parameters at a minimum of the loss.

        C = s^2 (J^T J)^-1,   s^2 = |r|^2 / (n - p),

    to first order, for residuals that are independent, with variances in the inverse ratio of their weights.

    Args:
        residual_fn: As in ``natural_gradient``.
        params: As in ``natural_gradient``, fitted; nothing is changed.
        batch: As in ``natural_gradient``: the data of the fit.
        **settings: See ``seng.func.Settings``; ``fisher`` is "gauss_newton".

    Raises:
        OptionError: An argument is unknown or out of range.
        BatchError: The batch does not fit, or has no more residuals than there are parameters.
        SingularError: The data do not determine all parameters.

    Cost: n p^2 multiply-adds; n p numbers.
    Source: Seber, Wild, "Nonlinear Regression" (1989), section 2.1.

    Example:
        >>> x = torch.arange(4, dtype=torch.float64)
        >>> fit = covariance(lambda w, xi: w - xi, x.mean(), x)
        >>> fit.standard_errors  # of a mean: the deviation over the square root of the count
        tensor(0.6455, dtype=torch.float64)
    """
    call = "covariance()"
    layout, chosen = params_of(params, call), settings_of(call, settings)
    if chosen.fisher != "gauss_newton":
        raise OptionError(
            call, "fisher has no residuals", expected="gauss_newton", got=chosen.fisher, fix="Pass residuals of a fit"
        )
    problem = problem_of(residual_fn, layout, batch, chosen, 0, call)
    linearisation = problem.linearise()
    rows, p = linearisation.rows, layout.size
    freedom = rows.n - p
    if freedom <= 0:
        raise BatchError(
            call, "too few residuals", expected=f"more than {p}, the number of parameters", got=rows.n,
            fix="Give more data, or fix parameters",
        )  # fmt: skip
    norms = rows.squares.sum(0).sqrt()
    own = torch.cat([rows.tile(k) for k in range(len(rows.pieces))]).double()
    whole = rows.ranks.collect(own / norms, rows.lengths)
    inverse = own.new_zeros(p, p) if whole is None else _inverse_of_r(whole)
    inverse = rows.ranks.broadcast(inverse)
    if not bool(torch.isfinite(inverse).all()):
        undetermined = [name for name, part in zip(layout.names, layout.split(norms), strict=True) if (part == 0).any()]
        raise SingularError(
            call, "data do not determine all parameters", expected="columns of J that are independent",
            got=undetermined or "columns that depend on one another", fix="Give other data, or fix parameters",
        )  # fmt: skip
    deviation = float(linearisation.r.double().norm()) / freedom**0.5
    root = deviation * inverse / norms[:, None]
    matrix = root @ root.mT
    errors = layout.restore(layout.split(matrix.diagonal().sqrt().to(layout.leaves[0].dtype)))
    spread = (sum(term.weight for term in problem.terms) / rows.n) ** 0.5  # mean of weight / rows over all rows
    return Covariance(matrix, errors, deviation / spread, freedom)


def _inverse_of_r(j: Float[Tensor, "n p"]) -> Float[Tensor, "p p"]:
    """Return R^-1 of J = Q R, infinite where columns depend on one another to rounding."""
    r = torch.linalg.qr(j, mode="r").R
    diagonal = r.diagonal().abs()
    if not bool(torch.isfinite(r).all()) or diagonal.min() <= max(j.shape) * torch.finfo(j.dtype).eps * diagonal.max():
        return torch.full_like(r, torch.inf)
    return torch.linalg.solve_triangular(r, torch.eye(len(r), dtype=r.dtype, device=r.device), upper=True)
