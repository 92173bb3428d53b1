"""Nonlinear regression with certified answers: 27 data sets and models, two starts each.

Source: NIST, Statistical Reference Datasets (a work of the United States government, in the public domain).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import torch
from jaxtyping import Float
from torch import Tensor

from .problem import DTYPE

Model = Callable[[Tensor, Tensor], Tensor]  # parameters [p], predictors of one observation [d] -> its response


@dataclass(frozen=True)
class Regression:
    """A data set with the certified parameters of its model.

    Args:
        model: The model.
        x: Predictors, [n, d].
        y: Responses, [n].
        starts: Two starts, the first far from the answer, [2, p].
        certified: Certified parameters, [p].
        deviations: Certified standard deviations of the parameters, [p].
        squares: Certified sum of squared residuals.
    """

    model: Model
    x: Float[Tensor, "n d"]
    y: Float[Tensor, " n"]
    starts: Float[Tensor, "2 p"]
    certified: Float[Tensor, " p"]
    deviations: Float[Tensor, " p"]
    squares: Float[Tensor, ""]

    def residual(self, b: Tensor, sample: tuple[Tensor, Tensor]) -> Tensor:
        """Return what the model misses at one observation."""
        return self.model(b, sample[0]) - sample[1]

    def digits(self, b: Float[Tensor, " p"]) -> float:
        """Return the number of correct digits of the worst parameter, at most 11: those that are certified."""
        error = float(((b - self.certified) / self.certified).abs().max())
        return min(11.0, -math.log10(max(error, 1e-11))) if math.isfinite(error) else 0.0


def regression(name: str) -> Regression:
    """Return one of ``MODELS``."""
    held = json.loads((files("seng.apps.science") / "nist.json").read_text(encoding="utf-8"))[name]
    values = {key: torch.tensor(value, dtype=DTYPE) for key, value in held.items()}
    return Regression(MODELS[name], **values)


def _gauss(b: Tensor, x: Tensor) -> Tensor:
    peaks = [b[k] * torch.exp(-(((x[0] - b[k + 1]) / b[k + 2]).square())) for k in (2, 5)]
    return b[0] * torch.exp(-b[1] * x[0]) + peaks[0] + peaks[1]


def _lanczos(b: Tensor, x: Tensor) -> Tensor:
    return (b[::2] * torch.exp(-b[1::2] * x[0])).sum()


def _cubics(b: Tensor, x: Tensor) -> Tensor:
    powers = torch.stack([x[0] ** k for k in range(4)])
    return (b[:4] @ powers) / (1 + b[4:] @ powers[1:])


def _chwirut(b: Tensor, x: Tensor) -> Tensor:
    return torch.exp(-b[0] * x[0]) / (b[1] + b[2] * x[0])


def _enso(b: Tensor, x: Tensor) -> Tensor:
    total = b[0]
    for period, (cosine, sine) in ((torch.full_like(b[0], 12.0), b[1:3]), (b[3], b[4:6]), (b[6], b[7:9])):
        angle = 2 * math.pi * x[0] / period
        total = total + cosine * torch.cos(angle) + sine * torch.sin(angle)
    return total


MODELS: dict[str, Model] = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x[0]) ** (-1 / b[2]),
    "BoxBOD": lambda b, x: b[0] * (1 - torch.exp(-b[1] * x[0])),
    "Chwirut1": _chwirut,
    "Chwirut2": _chwirut,
    "DanWood": lambda b, x: b[0] * x[0] ** b[1],
    "ENSO": _enso,
    "Eckerle4": lambda b, x: b[0] / b[1] * torch.exp(-0.5 * ((x[0] - b[2]) / b[1]).square()),
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "Gauss3": _gauss,
    "Hahn1": _cubics,
    "Kirby2": lambda b, x: (b[0] + b[1] * x[0] + b[2] * x[0] ** 2) / (1 + b[3] * x[0] + b[4] * x[0] ** 2),
    "Lanczos1": _lanczos,
    "Lanczos2": _lanczos,
    "Lanczos3": _lanczos,
    "MGH09": lambda b, x: b[0] * (x[0] ** 2 + x[0] * b[1]) / (x[0] ** 2 + x[0] * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * torch.exp(b[1] / (x[0] + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * torch.exp(-x[0] * b[3]) + b[2] * torch.exp(-x[0] * b[4]),
    "Misra1a": lambda b, x: b[0] * (1 - torch.exp(-b[1] * x[0])),
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x[0] / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x[0]) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x[0] / (1 + b[1] * x[0]),
    "Nelson": lambda b, x: b[0] - b[1] * x[0] * torch.exp(-b[2] * x[1]),  # of the response's logarithm
    "Rat42": lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x[0])),
    "Rat43": lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x[0])) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x[0] - torch.atan(b[2] / (x[0] - b[3])) / math.pi,
    "Thurber": _cubics,
}
