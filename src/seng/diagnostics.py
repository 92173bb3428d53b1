"""What the curvature looks like, what is preconditioned, and whether captured gradients are the true ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .blocks import Layout
from .config import Options
from .curvature import Curvature, damping_at
from .direction import Direction
from .estimators import Choice

TOP = 5  # eigenvalues reported


@dataclass(frozen=True)
class LayerStats:
    """State of one block.

    Args:
        trace: Trace of F, the mean squared norm of a sample's gradient.
        effective_dimension: Sum of e / (e + damping) over the eigenvalues e of F: directions the damping leaves.
        top_eigenvalues: The largest ones, descending.
        damping: lambda in force.
        refresh_age: Steps since the refresh.
        cosine: Between direction and gradient at the last step; None before the first.
        samples: Number of samples behind the curvature.
        nbytes: Bytes of U as it is held.
        skipped_steps: Steps skipped so far because of gradients that are not finite, the same for all blocks.
        spectrum: All eigenvalues of F that can differ from 0, descending; never more than there are samples.
    """

    trace: float
    effective_dimension: float
    top_eigenvalues: tuple[float, ...]
    damping: float
    refresh_age: int
    cosine: float | None
    samples: int
    nbytes: int
    skipped_steps: int
    spectrum: Float[Tensor, " n"] = field(repr=False, compare=False)


def layer_stats(curvature: Curvature, use: Direction | None, options: Options, step: int, skipped: int) -> LayerStats:
    """Compute the statistics of one block. Cost: n^3 where the state holds no eigenvalues."""
    values = curvature.state.spectrum().double()
    damping = damping_at(options, max(step - 1, 0), curvature.mean).double()
    total = (values + damping).clamp(min=torch.finfo(values.dtype).tiny)
    return LayerStats(
        trace=float(values.sum()),
        effective_dimension=float((values / total).sum()),
        top_eigenvalues=tuple(values.flip(0)[:TOP].tolist()),
        damping=float(damping),
        refresh_age=step - 1 - curvature.step,
        cosine=None if use is None else _cosine(use),
        samples=curvature.samples,
        nbytes=curvature.nbytes(),
        skipped_steps=skipped,
        spectrum=values.flip(0),
    )


def _cosine(use: Direction) -> float:
    """Return g.d / (|g| |d|) for d = g + U z, from n-vectors alone."""
    g2, y = use.seen.square, use.seen.y
    inner = g2 + torch.dot(y, use.z)
    square = inner + torch.dot(y, use.z) + torch.dot(use.z, use.state.matvec(use.z))
    scale = (g2 * square.clamp(min=0)).sqrt()
    return float(inner / scale) if float(scale) > 0 else 0.0


@dataclass(frozen=True)
class Coverage:
    """Which parameters are preconditioned and which pass through.

    Args:
        preconditioned: Estimator and reason by qualified parameter name.
        passed_through: Reason by qualified parameter name.
        share: Share of the trainable parameters that is preconditioned, in [0, 1].
    """

    preconditioned: dict[str, str]
    passed_through: dict[str, str]
    share: float

    def without(self, reasons: Mapping[str, str], parameters: Mapping[str, nn.Parameter]) -> Coverage:
        """Return the same with more parameters passing through, for these reasons; ``parameters``: all, by name."""
        preconditioned = {name: how for name, how in self.preconditioned.items() if name not in reasons}
        count = sum(parameters[name].numel() for name in preconditioned)
        share = count / sum(p.numel() for p in parameters.values())
        return Coverage(preconditioned, self.passed_through | dict(reasons), share)

    def __str__(self) -> str:
        width = max(map(len, (*self.preconditioned, *self.passed_through, "")))
        lines = [f"{name:<{width}}  {how}" for name, how in self.preconditioned.items()]
        lines += [f"{name:<{width}}  passes through: {why}" for name, why in self.passed_through.items()]
        return "\n".join([*lines, f"{self.share:.1%} of the trainable parameters are preconditioned"])


def coverage(
    layout: Layout, choices: Mapping[str, Choice], held: set[str], refused: Mapping[str, str] | None = None
) -> Coverage:
    """Describe how each trainable parameter is treated; ``refused``: why blocks' samples could not be used."""
    refused = refused or {}
    preconditioned, passed, count = {}, dict(layout.passed), 0
    for name, block in layout.blocks.items():
        choice = choices.get(name)
        for key, parameter in zip(block.parameter_names, block.parameters, strict=True):
            if name in refused or (choices and name not in held):
                passed[key] = refused.get(name, "no batch has used it yet")
                continue
            count += parameter.numel()
            unknown = "held from a loaded state" if name in held else "to be chosen at the first refresh"
            preconditioned[key] = f"{choice.form.name}: {choice.reason}" if choice else unknown
    total = count + sum(p.numel() for p in layout.passing.values())
    total += sum(
        p.numel()
        for block in layout.blocks.values()
        for key, p in zip(block.parameter_names, block.parameters, strict=True)
        if key in passed
    )
    return Coverage(preconditioned, passed, count / total)
