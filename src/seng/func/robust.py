"""Residuals that outliers pull less on: half their squares are robust losses, exactly.

With rho the loss of a residual r of scale C, as scipy's ``least_squares`` has it, C^2 rho((r / C)^2) / 2, the function

    s(r) = r sqrt(rho(z) / z),   z = (r / C)^2,

has s^2 / 2 as that loss, so that all else is as in least squares.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import choose
from .config import require_number


def robust(residual: Tensor, loss: str = "huber", scale: float = 1.0) -> Tensor:
    """Return residuals whose half squares are a robust loss of those given. Call it last in a residual function.

    Args:
        residual: Residuals of one sample, of any shape.
        loss: Name in ``seng.func.ROBUST_LOSSES``. "huber" grows linearly beyond ``scale``, and "soft_l1" so without
            a kink in its second derivative; "cauchy" grows as a logarithm, and has local minima.
        scale: C > 0, the size from which on residuals count as outliers.

    Raises:
        OptionError: ``loss`` is unknown, or ``scale`` is not > 0.

    Source: Triggs et al., "Bundle adjustment" (2000), section 3; Huber, "Robust Statistics" (1981).

    Example:
        >>> robust(torch.tensor([0.5, 5.0]))  # the loss of the second is 1 * (5 - 1 / 2)
        tensor([0.5000, 3.0000])
    """
    ratio = choose(ROBUST_LOSSES, loss, call="robust()", option="loss")
    require_number("robust()", "scale", scale, low=0.0, open_low=True)
    return residual * ratio((residual / scale).square()).sqrt()


def _huber(z: Tensor) -> Tensor:
    far = z > 1
    beyond = torch.where(far, z, 1.0)
    return torch.where(far, (2 * beyond.sqrt() - 1) / beyond, 1.0)


def _soft_l1(z: Tensor) -> Tensor:
    return 2 / (1 + (1 + z).sqrt())


def _cauchy(z: Tensor) -> Tensor:
    near = z < 1e-4  # where log1p(z) / z is its series, to 1e-17
    beyond = torch.where(near, 1.0, z)
    small = torch.where(near, z, 0.0)
    return torch.where(near, 1 - small * (1 / 2 - small * (1 / 3 - small * (1 / 4))), beyond.log1p() / beyond)


ROBUST_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {  # rho(z) / z
    "huber": _huber,
    "soft_l1": _soft_l1,
    "cauchy": _cauchy,
}
