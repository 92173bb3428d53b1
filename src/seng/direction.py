"""From a block's curvature and gradient to its direction: the coefficients z of U, and what multiplies g + U z.

U [p, n] holds the samples' gradients, K = U^T U, g [p] the gradient, y = U^T g.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from .config import Options
from .curvature import Curvature, damping_at
from .linalg import metric_length
from .per_sample import Grads, PerSampleGradients
from .sketch import generator_for
from .solve import DirectState, FactorisationError, SolveState, coefficients_together

MEAN = 1 + 1e-4  # multiples of the samples' mean that are it, up to rounding
MEMORY = 0.999  # what is left of G, the largest |g| lately, after a step
SLACK, LEAST = 1.5, 0.25  # the trust cap that follows |g| is SLACK |g| / G within [LEAST, 1]


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
    curvature: Curvature, factor: PerSampleGradients, grads: Grads, square: Tensor, draw: tuple[int, int, str] | None
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
            return MeanProjection(curvature.row_sums, alpha / factor.n**0.5, bool(alpha <= MEAN))
    return Projection(factor.mv(grads), square)


@dataclass(frozen=True)
class Direction:
    """A block's direction d = multiplier (g + U z), not yet formed.

    Args:
        seen: What the curvature sees of g.
        z: Coefficients of U.
        multiplier: 0-d.
        state: The factorisation of K; a refresh may replace the curvature before anybody asks about it.
        trust: The trust cap in force, or None.
        largest: The largest |g| of the block lately, 0-d.
        capped: Whether the trust cap is in the multiplier; else it is still to be found, by ``shortening``.
    """

    seen: Seen
    z: Float[Tensor, " n"]
    multiplier: Tensor
    state: SolveState
    trust: Tensor | float | None
    largest: Tensor | None
    capped: bool = True


def direction(curvature: Curvature, seen: Seen, options: Options, step: int, ranks: int = 1) -> Direction:
    """Return the direction, finite; z and the multiplier are both 0 where one cannot be computed.

    Args:
        curvature: The block's.
        seen: The gradient's projection.
        options: Those in force.
        step: The step, for what follows a schedule.
        ranks: How many ranks' samples are pooled, for losses that are sums.
    """
    damping = curvature.damping if step == curvature.step else damping_at(options, step, curvature.mean)
    state, factor, natural = curvature.state, curvature.factor, options.natural
    trust, largest = options.trust, None
    if trust == "auto" and natural:  # it follows |g|, beside G: the largest |g| lately
        norm = seen.square.sqrt()
        largest = norm if curvature.largest is None else torch.maximum(curvature.largest * MEMORY, norm)
        trust = (SLACK * norm / largest.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(LEAST, 1.0)
    elif trust == "auto":
        trust = 1.0
    capped = trust is None or factor is None or factor.unsketched is factor
    fixed = 0.0 if trust is None or isinstance(trust, Tensor) else trust
    known = isinstance(seen, MeanProjection) and seen.own and fixed >= 1  # q <= 1
    try:
        if trust is not None and capped and not known:
            z, q = _with_length(curvature, seen, damping, options)
        else:
            z, q = _coefficients(curvature, seen, damping, options), None
    except FactorisationError:
        return Direction(seen, torch.zeros_like(seen.y), torch.zeros_like(damping), state, trust, largest, capped)
    multiplier = damping**-options.power if natural else torch.ones_like(damping)
    if q is not None and trust is not None:
        multiplier = multiplier * _cap(trust, q, options, curvature, ranks)
    total = z.sum() * multiplier
    if total.is_cuda:
        z, multiplier = torch.where(total.isfinite(), z, 0.0), torch.where(total.isfinite(), multiplier, 0.0)
    elif not isfinite(float(total)):  # reading its value waits for nothing
        z, multiplier = torch.zeros_like(z), torch.zeros_like(multiplier)
    return Direction(seen, z, multiplier, state, trust, largest, capped)


def _coefficients(curvature: Curvature, seen: Seen, damping: Tensor, options: Options) -> Tensor:
    """Return z."""
    if isinstance(seen, MeanProjection) and curvature.row_solution is not None:
        return curvature.row_solution * seen.weight
    frozen = curvature.factor is not None and curvature.factor.frozen_damping
    of_z = curvature.damping if frozen else damping
    return curvature.state.coefficients(seen.y, of_z, options.power, options.estimator.tolerance)


def _with_length(curvature: Curvature, seen: Seen, damping: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return z, and q = sqrt(g^T (F + lambda I)^-1 g)."""
    state, trace = curvature.state, curvature.mean * curvature.samples
    if options.power == 0.5 and isinstance(state, DirectState):  # a second system would cost as much as the first
        z = _coefficients(curvature, seen, damping, options)
        return z, metric_length(seen.square, 2 * seen.y + state.matvec(z), z, damping, trace)
    if isinstance(seen, MeanProjection) and curvature.row_solution is not None:
        z, z_one = curvature.row_solution * seen.weight, state.coefficients(seen.y, damping, 1.0)
    else:
        z, z_one = state.with_metric(seen.y, damping, options.power, options.estimator.tolerance)
    return z, metric_length(seen.square, seen.y, z_one, damping, trace)


def is_sketched(curvature: Curvature) -> bool:
    """Whether K and U^T g are those of a sketch of U."""
    return curvature.factor is not None and curvature.factor.unsketched is not curvature.factor


def shortening(
    curvature: Curvature, formed: Grads, trust: Tensor | float, options: Options, step: int, ranks: int = 1
) -> Tensor:
    """Return what the trust cap multiplies g + U z by, from the direction itself: a sketched q^2 may be far off.

    The cap is on q = |(F + lambda I)^(power - 1/2) d|, for power 1/2 the norm of d. For other powers than 1/2 and 1 a
    bound of it is taken, from Hoelder's inequality between these two.

    Args:
        curvature: The block's, whose factor is sketched.
        formed: g + U z.
        trust: The cap.
        options: Those in force.
        step: The step.
        ranks: How many ranks' samples are pooled, for losses that are sums.

    Cost: p; for powers above 1/2 a product with U^T.
    """
    assert curvature.factor is not None
    damping = curvature.damping if step == curvature.step else damping_at(options, step, curvature.mean)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x) for x in formed]))
    if options.power <= 0.5:
        q = norm / damping.sqrt()
    else:
        share = 2 * options.power - 1
        seen = torch.linalg.vector_norm(curvature.factor.unsketched.mv(formed))
        q = norm ** (1 - share) * torch.hypot(damping.sqrt() * norm, seen) ** share * damping**-options.power
    return _cap(trust, q, options, curvature, ranks)


def _cap(trust: Tensor | float, q: Tensor, options: Options, curvature: Curvature, ranks: int) -> Tensor:
    if options.loss_reduction == "sum":
        q = q * ranks / (curvature.batch or curvature.samples)
    return (trust / q.clamp(min=torch.finfo(q.dtype).tiny)).clamp(max=1.0)


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
        z = coefficients_together(states, torch.stack(sums), damping, options.power, options.estimator.tolerance)
        solved |= {n: replace(held[n], row_solution=own) for n, own in zip(names, z.unbind(), strict=True)}
    return solved
