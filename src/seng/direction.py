"""From a block's curvature and gradient to its direction: the coefficients z of U, and what multiplies g + U z.

U [p, n] holds the samples' gradients, K = U^T U, g [p] the gradient, y = U^T g.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .config import Options
from .curvature import Curvature, damping_at
from .factors import Factor
from .linalg import inverse_quadratic
from .sketch import generator_for
from .solve import DirectState, coefficients, coefficients_together
from .types import Grads


@dataclass(frozen=True)
class Projection:
    """What the curvature sees of a gradient.

    Args:
        y: U^T g.
        square: |g|^2, 0-d.
    """

    y: Float[Tensor, " n"]
    square: Tensor


@dataclass(frozen=True)
class MeanProjection:
    """The same of g = weight U 1, from K alone, when it is asked for.

    Args:
        row_sums: K 1.
        weight: 0-d, or a number.
        own: Whether g is no more than the mean of the samples in U.
    """

    row_sums: Float[Tensor, " n"]
    weight: Tensor | float
    own: bool = True

    @property
    def y(self) -> Float[Tensor, " n"]:
        """U^T g."""
        return self.row_sums * self.weight

    @property
    def square(self) -> Tensor:
        """|g|^2."""
        return self.row_sums.sum() * self.weight**2


Seen = Projection | MeanProjection


def project(
    curvature: Curvature, factor: Factor, grads: Grads, square: Tensor, draw: tuple[int, int, str] | None
) -> Seen:
    """Return U^T g, from K alone where g is the mean of the very samples in U.

    Args:
        curvature: The block's.
        factor: U.
        grads: g.
        square: |g|^2.
        draw: Seed, step and name for the check of that, where it may be so.
    """
    if draw is not None and curvature.row_sums is not None:
        alpha = factor.mean_multiple(grads, generator_for(*draw))
        if alpha is not None:
            return MeanProjection(curvature.row_sums, alpha / factor.n**0.5, bool(alpha <= 1))
    return Projection(factor.mv(grads), square)


def direction(
    curvature: Curvature, seen: Seen, options: Options, step: int, ranks: int = 1
) -> tuple[Float[Tensor, " n"], Tensor]:
    """Return z and the multiplier of d = multiplier (g + U z).

    Args:
        curvature: The block's.
        seen: The gradient's projection.
        options: Those in force.
        step: The step, for what follows a schedule.
        ranks: How many ranks' samples are pooled, for losses that are sums.
    """
    damping = curvature.damping if step == curvature.step else damping_at(options, step, curvature.mean)
    frozen = curvature.factor is not None and curvature.factor.frozen_damping
    mean = seen if isinstance(seen, MeanProjection) else None
    if mean is not None and curvature.row_solution is not None:
        z = curvature.row_solution * mean.weight
    else:
        of_z = curvature.damping if frozen else damping
        z = coefficients(curvature.state, seen.y, of_z, options.power, options.tolerance)
    multiplier = damping**-options.power if options.natural else torch.ones_like(damping)
    if options.trust is not None and not (mean is not None and mean.own and options.trust >= 1):
        multiplier = multiplier * _trust(options, curvature, seen, z, damping, ranks)
    return z, multiplier


def _trust(options: Options, curvature: Curvature, seen: Seen, z: Tensor, damping: Tensor, ranks: int) -> Tensor:
    assert options.trust is not None
    z_one = z if options.power == 1.0 else coefficients(curvature.state, seen.y, damping, 1.0)
    q = inverse_quadratic(seen.square, seen.y, z_one, damping).sqrt()
    if options.loss_reduction == "sum":
        q = q * ranks / curvature.samples
    return (options.trust / q.clamp(min=torch.finfo(q.dtype).tiny)).clamp(max=1.0)


def solve_rows(held: Mapping[str, Curvature], options: Options) -> dict[str, Curvature]:
    """Return curvatures with ``row_solution``, found for all blocks of one size at once.

    Worth it where Lanczos' method is used: its vectors are short, and a call for one block takes as long as for all.
    """
    alike: dict[object, list[tuple[str, DirectState, Tensor]]] = {}
    for name, curvature in held.items():
        state, sums = curvature.state, curvature.row_sums
        if isinstance(state, DirectState) and sums is not None and curvature.factor is not None:
            alike.setdefault((sums.shape, sums.dtype, sums.device), []).append((name, state, sums))
    solved = {}
    for systems in alike.values():
        names, states, sums = zip(*systems, strict=True)
        damping = torch.stack([held[name].damping for name in names])
        z = coefficients_together(states, torch.stack(sums), damping, options.power, options.tolerance)
        solved |= {n: replace(held[n], row_solution=own) for n, own in zip(names, z.unbind(), strict=True)}
    return solved
