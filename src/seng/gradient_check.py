"""Do the captured samples add up to ``.grad``? Freivalds' check, at every refresh.

For a weight W [rows, columns] whose gradient is G and whose captured samples have the sum S, a random u [rows] gives
the vectors x = S^T u and y = G^T u, equal if S = G, without forming S. They are compared up to what leaves curvature
right, y = beta x + gamma W^T u + delta sign(W)^T u: a multiple of the captured gradient, and penalties on the weights.
A bias is compared whole: penalties would explain any change of the one number that u leaves of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import hypot
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from .blocks import Block
from .curvature import BlockParts
from .sketch import generator_for
from .types import Grads, LayerIO, Lookup, Product, Rows

CHANNELS = 2  # input channels of a convolution that a check looks at, drawn anew each time
ROUNDINGS = 2.0**13  # of the dtype that may add up
HALF_ROUNDINGS = 16.0  # the same in half precision, whose products are accumulated in float32
REDUCED = 2.0**-8  # rounding of gradients that ranks may have averaged in half precision
TENSOR_CORES = 2.0**-10  # rounding of float32 products on a GPU that takes TensorFloat-32
LARGE_SCALE = 4096.0  # ratios above are loss scales; below, unless whole numbers, gradients may have been clipped
NUMBERS = 16  # of a weight to compare, at least where it has as many

DIGEST = 12  # random combinations of a probe's numbers that ranks compare in place of them
PENALTIES = 4  # of a block that ranks tell each other
COLUMNS = (2 + PENALTIES) * DIGEST + 3  # numbers by block: combinations; noise, rounding error, whether it is refused


@dataclass(frozen=True)
class View:
    """What a check looks at of one parameter: all of it, or random combinations of its rows.

    Args:
        u: The combinations, by group, or None for all of the parameter.
        channels: The input channels looked at, or None for all.
    """

    u: Float[Tensor, "c m rows"] | None = None
    channels: Tensor | None = None

    def __call__(self, value: Tensor) -> Float[Tensor, " k"]:
        """Return what is seen of a tensor of the parameter's shape."""
        if self.u is None:
            return value.reshape(-1)
        c, _, rows = self.u.shape
        value = value.reshape(c, rows, *value.shape[1:])
        if self.channels is not None:
            value = value.index_select(2, self.channels)
        return (self.u @ value.reshape(c, rows, -1)).reshape(-1)


@dataclass(frozen=True)
class Probe:
    """What a check sees of one block.

    Args:
        x: Of the captured sum.
        y: Of ``.grad``.
        penalised: Gives rows: of each parameter and of its signs, with zeros at the places of the others.
        noise: Size that x would have if the samples shared no direction, 0-d.
        eps: Relative rounding error of what was captured.
    """

    x: Float[Tensor, " k"]
    y: Float[Tensor, " k"]
    penalised: Callable[[], Tensor]
    noise: Tensor
    eps: float

    def ratio(self, eps: float = 0.0) -> float | None:
        """Return beta where y = beta x up to rounding and penalties on the weights, NaN where x is 0; else None."""
        eps = max(self.eps, eps)
        tolerance = eps * (HALF_ROUNDINGS if eps > torch.finfo(torch.float32).eps else ROUNDINGS)
        x, y, noise = self.x.double(), self.y.double(), float(self.noise)
        xx, xy, yy = float(x @ x), float(x @ y), float(y @ y)
        beta = xy / max(xx, sys.float_info.min)
        allowed = tolerance * hypot(yy**0.5, beta * noise)
        if float((y - beta * x).norm()) <= allowed:
            return beta if xx**0.5 > 2 * tolerance * noise else float("nan")
        basis = torch.stack([x, *self.penalised().double()], 1)
        basis = basis[:, basis.norm(dim=0) > 0]
        if basis.shape[1] >= len(x):
            return None
        scaled = basis / basis.norm(dim=0)
        fit = torch.linalg.lstsq(scaled, y[:, None], driver="gelsd" if y.device.type == "cpu" else None).solution[:, 0]
        found = float(fit[0] / basis[:, 0].norm()) if xx else float("nan")
        return found if float((y - scaled @ fit).norm()) <= allowed else None


def probe(block: Block, parts: BlockParts, grads: Grads, generator: torch.Generator) -> Probe:
    """Look at the captured sum, the gradient and the parameters of one block. Cost: one pass over each."""
    like = grads[0]
    views: dict[int, View] = {}
    sums: dict[int, Tensor] = {}
    noise, eps = like.new_zeros(()), 0.0
    for io, slots in parts:
        for slot in slots:
            if slot not in views:
                views[slot] = _view(io, generator, like) if slot == slots[0] else View()
        seen, square = _captured(io, views[slots[0]], like.dtype)
        for slot, own in zip(slots, seen, strict=True):
            sums[slot] = sums[slot] + own if slot in sums else own
        noise, eps = noise + square, max(eps, _rounding(io))
    pairs = [(views[k], k) for k in sorted(sums)]
    values = {k: block.parameters[k].detach() for _, k in pairs}

    def penalised() -> Tensor:
        own = [
            torch.block_diag(*(view(f(values[k]).to(like.dtype)) for view, k in pairs)) for f in (_same, Tensor.sign)
        ]
        return torch.cat(own)

    y = torch.cat([view(grads[k].view_as(values[k])) for view, k in pairs])
    return Probe(torch.cat([sums[k] for _, k in pairs]), y, penalised, noise.sqrt(), eps)


def _same(x: Tensor) -> Tensor:
    return x


def _view(io: LayerIO, generator: torch.Generator, like: Tensor) -> View:
    """Draw what is looked at of the first parameter of a layer."""
    if isinstance(io, Rows):
        return View()
    channels, (rows, columns) = None, io.shapes[0]
    c = io.g.shape[0] if isinstance(io, Product) else 1
    if isinstance(io, Product) and io.features > 1:
        channels = torch.randperm(io.a.shape[2], generator=generator)[:CHANNELS].to(like.device)
        columns = len(channels) * columns // io.a.shape[2]
    combinations = min(rows // c, -(-NUMBERS // max(1, c * columns)))
    return View(torch.randn(c, combinations, rows // c, generator=generator).to(like), channels)


def _captured(io: LayerIO, view: View, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Return what is seen of the captured sum of each parameter, and the sum of the squares of its terms."""
    if isinstance(io, Rows):
        parts = [part.to(dtype) for part in io.parts]
        return [part.sum(0) for part in parts], torch.stack([_square(part) for part in parts]).sum()
    assert view.u is not None
    g = io.g.to(dtype)
    if isinstance(io, Lookup):
        weights = view.u[0][:, io.ids].flatten(1)
        square = (weights.square() @ g.square().sum(2).flatten()).sum()
        return [(weights @ g.flatten(0, 1)).reshape(-1)], square
    c, n, d_out, s = g.shape
    if io.features == 1:
        weights = (g.mT.reshape(c, n * s, d_out) @ view.u.mT).mT
        a = io.a.mT.reshape(c, n * s, -1).to(dtype)
        seen = (weights @ a).reshape(-1)
    else:
        weights = view.u[:, None] @ g
        a = io.a if view.channels is None else io.a.index_select(2, view.channels)
        a = a.reshape(c, n, -1, s).to(dtype)
        seen = (weights @ a.mT).sum(1).reshape(-1)
    whole = _square(weights) * _square(a) / max(1, n * s)
    return ([seen, g.sum((1, 3)).reshape(-1)], whole + _square(g)) if io.bias else ([seen], whole)


def _square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x).square()


def _rounding(io: LayerIO) -> float:
    dtype = io.a.dtype if isinstance(io, Product) and io.a.dtype.is_floating_point else io.dtype
    eps = max(torch.finfo(io.dtype).eps, torch.finfo(dtype).eps)
    cuda = isinstance(io, Product) and io.g.is_cuda and dtype == torch.float32
    return max(eps, TENSOR_CORES) if cuda else eps


def common_ratio(ratios: Mapping[str, float], last: float = 1.0, tolerance: float = 1e-3) -> float:
    """Return what all gradients are multiples of the captured ones by, as a loss scale makes them; 1 where nothing is.

    Scales are whole numbers or far from 1. Other ratios come from clipping, which curvature takes no part in. Where
    gradients are too small to tell, the ratio is the last one.
    """
    known = [ratio for ratio in ratios.values() if ratio == ratio and ratio > 0]
    if not known:
        return last
    middle = median(known)
    if any(abs(ratio - middle) > tolerance * middle for ratio in known):
        return 1.0
    for value, power in ((middle, 1), (1 / middle, -1)):
        if value >= 1 and abs(value - round(value)) <= 1e-5 * value:
            return float(round(value)) ** power
    return middle if max(middle, 1 / middle) > LARGE_SCALE else 1.0


def digest(found: Probe, name: str) -> Tensor:
    """Return random combinations of what a check sees, as many numbers for every block."""
    vectors = torch.stack([found.x, found.y, *found.penalised()[:PENALTIES]]).double().cpu()
    mix = torch.randn(vectors.shape[1], DIGEST, generator=generator_for(0, 0, name), dtype=torch.float64)
    told = torch.zeros(2 + PENALTIES, DIGEST, dtype=torch.float64)
    told[: len(vectors)] = vectors @ mix
    return torch.cat([told.reshape(-1), torch.tensor([float(found.noise), found.eps, 0.0], dtype=torch.float64)])
