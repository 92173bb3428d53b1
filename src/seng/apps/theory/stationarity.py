"""A noisy, non-convex problem with diminishing steps: the least gradient so far goes to zero as fast as is promised.

Legend: c and C bound directions, g.d >= c |g|^2 and |d| <= C |g|; L the Lipschitz constant of the gradient, G the
largest gradient of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...optimizer import SENG

DTYPE = torch.float64
DECAY = 0.6  # s of lr_k = lr_0 / (k + 1)^s; between 1/2 and 1 the sum diverges and that of the squares does not
WIDTH = 2.0  # misfits above it count as outliers
LIPSCHITZ = 2.0 / WIDTH**2  # |phi''| <= 2 for phi(t) = t^2 / (1 + t^2), inputs of length 1
LARGEST = 27**0.5 / 8 / WIDTH  # |phi'| <= 3 sqrt(3) / 8


@dataclass(frozen=True)
class Fit:
    """Robust regression: f(w) = mean_i phi((x_i . w - y_i) / WIDTH), phi(t) = t^2 / (1 + t^2), some targets far off.

    Args:
        x: Inputs of length 1, [m, d].
        y: Targets, [m].
    """

    x: Float[Tensor, "m d"]
    y: Float[Tensor, " m"]

    @staticmethod
    def draw(m: int, d: int, seed: int) -> Fit:
        """Draw inputs, and targets of which a fifth are spoiled."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(m, d, generator=generator, dtype=DTYPE) * torch.logspace(0, -1, d, dtype=DTYPE)
        x = x / x.norm(dim=1, keepdim=True)
        y = 3 * x @ torch.randn(d, generator=generator, dtype=DTYPE)
        y[::5] += 4 * torch.randn(len(y[::5]), generator=generator, dtype=DTYPE)
        return Fit(x, y)

    def loss(self, values: Float[Tensor, "n 1"], rows: Tensor | slice = slice(None)) -> Float[Tensor, ""]:
        """Return the mean over some samples."""
        square = ((values[:, 0] - self.y[rows]) / WIDTH).square()
        return (square / (1 + square)).mean()


@dataclass(frozen=True)
class Constants:
    """What the theory takes.

    Args:
        least: c.
        largest: C.
        loss: f at the start; f >= 0 everywhere.
    """

    least: float
    largest: float
    loss: float

    def bound(self, lengths: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return, after each step, what the least mean squared gradient so far cannot exceed.

        (f_0 + L C^2 G^2 / 2 * sum lr^2) / (c sum lr)
        """
        noise = LIPSCHITZ * (self.largest * LARGEST) ** 2 / 2
        return (self.loss + noise * lengths.square().cumsum(0)) / (self.least * lengths.cumsum(0))


def squared_gradients(
    fit: Fit, steps: int, batch: int, lr: float, damping: float, seed: int
) -> tuple[Float[Tensor, " k"], float]:
    """Return |grad f|^2 before each step of SENG, and f at the start.

    Gradient and curvature come from different batches, as in the theory: ``curvature_batch="previous"``.
    """
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(fit.x.shape[1], 1, bias=False, dtype=DTYPE)
    nn.init.zeros_(model.weight)
    optimizer = SENG(
        model, lr=lr, momentum=0.0, weight_decay=0.0, power=1.0, damping=damping, damping_mode="absolute",
        scale="natural", refresh_every=1, curvature_batch="previous", trust=None, estimator="exact", distributed="none",
    )  # fmt: skip
    squares, first = [], 0.0
    for k in range(steps):
        with torch.no_grad():
            values = fit.x @ model.weight.detach().mT
        misfit = (values[:, 0] - fit.y) / WIDTH
        whole = (2 * misfit / (1 + misfit.square()).square() / WIDTH) @ fit.x / len(fit.y)
        squares.append(float(whole.square().sum()))
        first = fit.loss(values).item() if k == 0 else first
        rows = torch.randint(len(fit.y), (batch,), generator=generator)
        optimizer.param_groups[0]["lr"] = lr / (k + 1) ** DECAY
        optimizer.zero_grad()
        fit.loss(model(fit.x[rows]), rows).backward()
        optimizer.step()
    return torch.tensor(squares, dtype=DTYPE), first


def slope(values: Float[Tensor, " k"]) -> float:
    """Return the exponent of k that fits the later nine tenths of a sequence best, by least squares of logarithms."""
    k = torch.arange(1, len(values) + 1, dtype=DTYPE)[len(values) // 10 :]
    x, y = k.log(), values[len(values) // 10 :].log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def stationarity_study(
    steps: int = 2000, seeds: int = 6, batch: int = 16, lr: float = 1.0, damping: float = 0.1, seed: int = 0
) -> dict[str, Any]:
    """Run SENG with steps lr / (k + 1)^0.6 from several seeds and compare with the bound.

    Args:
        steps: Steps of each run.
        seeds: Runs that the mean is taken over.
        batch: Samples a step.
        lr: First step length.
        damping: Absolute damping.
        seed: Of the problem.

    Returns:
        The running minimum of the mean squared gradient, the bound, and both orders; 200 points of each curve.
    """
    fit = Fit.draw(400, 10, seed)
    runs = [squared_gradients(fit, steps, batch, lr, damping, k) for k in range(seeds)]
    least = torch.stack([squares for squares, _ in runs]).mean(0).cummin(0).values
    constants = Constants(1 / (damping + LARGEST**2), 1 / damping, runs[0][1])
    bound = constants.bound(lr / torch.arange(1, steps + 1, dtype=DTYPE) ** DECAY)
    kept = torch.logspace(0, torch.tensor(float(steps)).log10().item(), 200).round().long().unique() - 1
    return {
        "steps": steps, "seeds": seeds, "decay": DECAY, "predicted_order": -(1 - DECAY), "order": slope(least),
        "largest_ratio": float((least / bound).max()), "k": (kept + 1).tolist(), "least": least[kept].tolist(),
        "bound": bound[kept].tolist(),
    }  # fmt: skip
