"""Points in boxes and on their faces, spread evenly: fewer of them tell as much as many random ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .problem import DTYPE, View

Bounds = Sequence[tuple[float, float]]  # lowest and highest coordinate along each axis


def spread(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Return n points spread evenly over the unit cube: a Kronecker sequence, shifted at random.

    Coordinate j of point i is the fraction of s_j + i / r^j, with r the root of r^(d+1) = r + 1 above 1.

    Source: Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018); Cranley, Patterson (1976).
    """
    r = 2.0
    for _ in range(60):  # a contraction; settled to the last bit long before
        r = (1 + r) ** (1 / (d + 1))
    steps = r ** -torch.arange(1, d + 1, dtype=DTYPE)
    shift = torch.rand(d, generator=generator, dtype=DTYPE)
    return (shift + torch.arange(n, dtype=DTYPE)[:, None] * steps) % 1


def inside(bounds: Bounds, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Return n points spread over a box."""
    low, high = torch.tensor(bounds, dtype=DTYPE).mT
    return low + (high - low) * spread(n, len(bounds), generator)


def face(bounds: Bounds, axis: int, side: int, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Return n points spread over one face of a box: where a coordinate is lowest (side 0) or highest (side 1)."""
    others = [pair for k, pair in enumerate(bounds) if k != axis]
    points = inside(others, n, generator)
    fixed = points.new_full((n, 1), bounds[axis][side])
    return torch.cat([points[:, :axis], fixed, points[:, axis:]], 1)


def faces(bounds: Bounds, n: int, generator: torch.Generator, axes: Sequence[int] = ()) -> Float[Tensor, "m d"]:
    """Return points on the faces of a box, n in all or a few less, the same number on each.

    Args:
        bounds: The box.
        n: How many.
        generator: Source of the shifts.
        axes: Axes whose two faces are meant; all where there is none.
    """
    chosen = [(axis, side) for axis in axes or range(len(bounds)) for side in (0, 1)]
    return torch.cat([face(bounds, axis, side, n // len(chosen), generator) for axis, side in chosen])


def start(bounds: Bounds, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Return n points on the face where the last coordinate, time, is lowest."""
    return face(bounds, len(bounds) - 1, 0, n, generator)


def view(
    bounds: Bounds, axes: tuple[str, str], shown: tuple[int, int] = (0, 1), size: int = 101, rest: float = 0.5
) -> View:
    """Return a grid over two axes of a box.

    Args:
        bounds: The box.
        axes: Names of the two axes.
        shown: The horizontal and the vertical axis.
        size: Points along each.
        rest: Where the other coordinates are, from 0 at the lowest to 1 at the highest.
    """
    low, high = torch.tensor(bounds, dtype=DTYPE).mT
    points = (low + rest * (high - low)).repeat(size, size, 1)
    across, up = (torch.linspace(*bounds[axis], size, dtype=DTYPE) for axis in shown)
    points[..., shown[0]] = across
    points[..., shown[1]] = up[:, None]
    return View(axes, points, (*bounds[shown[0]], *bounds[shown[1]]))
