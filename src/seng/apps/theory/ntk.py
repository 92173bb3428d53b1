"""Wide two-layer networks: natural gradients contract residuals as fast as the step length says.

Legend: n samples, m hidden units (the width), d inputs, eta step length, K = J J^T without the engine's factor 1/n.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...func import NaturalGradient

DTYPE = torch.float64
LENGTH = 0.5  # eta of the natural gradient
DAMPING = 1e-10  # relative to the mean eigenvalue of K: far below the least eigenvalue in all experiments here
STEPS = 20  # 0.5^20 is 1e-6: far above rounding
DESCENTS = 400  # steps of gradient descent
FLOOR = 1e-10  # of the first residual: below, rounding decides
THINNED = 10  # of which one in so many is kept


@dataclass(frozen=True)
class Task:
    """A regression problem with inputs in pairs and of different lengths: both spoil the condition of K.

    Args:
        x: Inputs, [n, d].
        y: Targets, a draw of the Gaussian process whose covariance is the limiting kernel: nothing that wide networks
            could not learn by small changes.
    """

    x: Float[Tensor, "n d"]
    y: Float[Tensor, " n"]

    @staticmethod
    def draw(n: int, d: int, angle: float, shortest: float, seed: int) -> Task:
        """Draw n / 2 directions and a second one at an angle from each; lengths fall from 1 to the shortest."""
        generator = torch.Generator().manual_seed(seed)
        first, other = torch.randn(2, n // 2, d, generator=generator, dtype=DTYPE)
        first = first / first.norm(dim=1, keepdim=True)
        other = other - (other * first).sum(1, keepdim=True) * first
        other = other / other.norm(dim=1, keepdim=True)
        lengths = shortest ** torch.linspace(0, 1, n, dtype=DTYPE)
        x = lengths[:, None] * torch.cat([first, math.cos(angle) * first + math.sin(angle) * other])
        values, vectors = torch.linalg.eigh(limiting_kernel(x))
        return Task(x, vectors @ (values.clamp(min=0).sqrt() * torch.randn(n, generator=generator, dtype=DTYPE)))


@dataclass(frozen=True)
class Network:
    """f(x) = m^(-1/2) sum_r a_r max(0, w_r . x); signs a_r stay, weights w_r are trained.

    Args:
        signs: a, [m].
        weights: w, [m, d], from N(0, I).
    """

    signs: Float[Tensor, " m"]
    weights: Float[Tensor, "m d"]

    @staticmethod
    def draw(width: int, d: int, seed: int) -> Network:
        """Draw a network."""
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(width, d, generator=generator, dtype=DTYPE)
        return Network(torch.randint(0, 2, (width,), generator=generator).to(DTYPE) * 2 - 1, weights)

    def values(self, weights: Float[Tensor, "m d"], x: Float[Tensor, "*n d"]) -> Float[Tensor, " *n"]:
        """Return f at inputs for other weights."""
        return (x @ weights.mT).relu() @ self.signs / len(self.signs) ** 0.5

    def kernel(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
        """Return K = J J^T at the initial weights."""
        active = (x @ self.weights.mT > 0).to(x)
        return (x @ x.mT) * (active @ active.mT) / len(self.signs)


def limiting_kernel(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Return K of infinitely many units: x_i . x_j (pi - angle_ij) / (2 pi).

    Source: Cho, Saul, "Kernel methods for deep learning" (2009); Jacot, Gabriel, Hongler (2018).
    """
    products, lengths = x @ x.mT, x.norm(dim=1)
    angles = (products / lengths[:, None] / lengths).clamp(-1, 1).acos()
    return products * (math.pi - angles) / (2 * math.pi)


def natural_residuals(
    network: Network, task: Task, steps: int = STEPS, rank: int | None = None, seed: int = 0
) -> list[float]:
    """Return |f - y| before each natural gradient step and after the last.

    Args:
        network: The network.
        task: The problem.
        steps: Number of steps of length LENGTH.
        rank: Rows of a Gaussian sketch in sample space; None: no sketch.
        seed: Of the sketch.
    """
    w = network.weights.clone()
    sketch: dict[str, Any] = {} if rank is None else {"solver": "gaussian", "rank": rank}
    optimizer = NaturalGradient(
        w, lambda w, sample: network.values(w, sample[0]) - sample[1], lr=LENGTH, damping=DAMPING, seed=seed,
        damping_rule="constant", line_search="none", acceleration=False, distributed="none", **sketch,
    )  # fmt: skip
    norms = [float((network.values(w, task.x) - task.y).norm())]
    for _ in range(steps):
        optimizer.step((task.x, task.y))
        norms.append(float((network.values(w, task.x) - task.y).norm()))
    return norms


def descent_residuals(network: Network, task: Task, steps: int = DESCENTS) -> list[float]:
    """Return the same for gradient descent on |f - y|^2 / 2, its step length one over the largest eigenvalue of K."""
    w = network.weights.clone()
    length = 1 / float(torch.linalg.eigvalsh(network.kernel(task.x))[-1])
    norms = []
    for _ in range(steps):
        r = network.values(w, task.x) - task.y
        norms.append(float(r.norm()))
        active = (task.x @ w.mT > 0).to(w)
        w -= length * ((r[:, None] * active).mT @ task.x) * network.signs[:, None] / len(network.signs) ** 0.5
    return [*norms, float((network.values(w, task.x) - task.y).norm())]


def rate(norms: list[float], last: int) -> float:
    """Return the mean factor from step to step over the last so many steps above rounding."""
    kept = [norm for norm in norms if norm > FLOOR * norms[0]]
    last = min(last, len(kept) - 1)
    return (kept[-1] / kept[-1 - last]) ** (1 / last)


def projection_share(kernel: Float[Tensor, "n n"], rank: int, draws: int, seed: int) -> float:
    """Return rho, the least eigenvalue of the mean projection onto K^(1/2) S^T, for Gaussian S [rank, n]."""
    values, vectors = torch.linalg.eigh(kernel)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(root @ torch.randn(draws, len(kernel), rank, generator=generator, dtype=DTYPE)).Q
    return float(torch.linalg.eigvalsh((basis @ basis.mT).mean(0))[0])


@dataclass(frozen=True)
class Row:
    """One experiment: measured rates beside the predicted ones.

    Args:
        width: m.
        angle: Between the inputs of a pair.
        shortest: Length of the shortest input.
        rank: Rows of the sketch, or None.
        condition: Of K at the initial weights.
        natural: Measured contraction a step of the natural gradient.
        predicted: 1 - eta; for a sketch the bound on the mean contraction in the metric of K^-1.
        descent: Measured contraction a step of gradient descent, over its last quarter; None for sketches.
        slowest: 1 - least / largest eigenvalue of K.
        residuals: |f - y| of the natural gradient.
        descents: |f - y| of gradient descent, every tenth step.
    """

    width: int
    angle: float
    shortest: float
    rank: int | None
    condition: float
    natural: float
    predicted: float
    descent: float | None
    slowest: float
    residuals: list[float]
    descents: list[float]


def experiment(width: int, angle: float, shortest: float, rank: int | None, n: int, d: int, seed: int) -> Row:
    """Run both methods on one network and problem."""
    task, network = Task.draw(n, d, angle, shortest, seed), Network.draw(width, d, seed + 1)
    kernel = network.kernel(task.x)
    values = torch.linalg.eigvalsh(kernel)
    predicted = 1 - LENGTH
    if rank is not None:
        predicted = (1 - (2 * LENGTH - LENGTH**2) * projection_share(kernel, rank, 400, seed)) ** 0.5
    steps = STEPS if rank is None else 4 * STEPS
    residuals = natural_residuals(network, task, steps, rank, seed)
    descents = descent_residuals(network, task) if rank is None else []
    return Row(
        width, angle, shortest, rank, float(values[-1] / values[0]), rate(residuals, steps), predicted,
        rate(descents, DESCENTS // 4) if descents else None, 1 - float(values[0] / values[-1]), residuals,
        descents[::THINNED],
    )  # fmt: skip


def ntk_study(
    widths: tuple[int, ...] = tuple(2**k for k in range(8, 15)),
    lengths: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001),
    angles: tuple[float, ...] = (1.0, 0.1, 0.01),
    ranks: tuple[int, ...] = (4, 8, 16),
    n: int = 24, d: int = 8, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Measure contraction against width, condition number and sketch size.

    Args:
        widths: Hidden units; angle 0.1, shortest input 0.1.
        lengths: Of the shortest input; largest width, angle 1.
        angles: Between paired inputs; largest width, all lengths 1.
        ranks: Sketch sizes; largest width, angle 1, all lengths 1.
        n: Samples, even.
        d: Inputs.
        seed: Of all draws.

    Returns:
        Rows by part, as plain values.
    """
    widest = max(widths)
    parts = {
        "widths": [experiment(width, 0.1, 0.1, None, n, d, seed) for width in widths],
        "lengths": [experiment(widest, 1.0, shortest, None, n, d, seed) for shortest in lengths],
        "angles": [experiment(widest, angle, 1.0, None, n, d, seed) for angle in angles],
        "ranks": [experiment(widest, 1.0, 1.0, rank, n, d, seed) for rank in ranks],
    }
    return {"length": LENGTH, "samples": n, **{name: [asdict(row) for row in rows] for name, rows in parts.items()}}
