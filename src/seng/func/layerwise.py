"""Rows of many samples from one forward and one reverse pass, kept as factors of each linear layer.

Legend: n samples, w outputs of each, m times that a sample passes a layer (coefficients of a sweep, points, calls).
The derivative of output i in a layer's weight is sum_m g_im a_im^T, with the layer's inputs a and the derivatives g in
what it gives. Vectors and numbers among the parameters have rows of their own from the same reverse pass: each sample
gets its own copy of them. Matrices that are used otherwise than in linear layers are left to reverse mode.

Source: Goodfellow, "Efficient per-example gradient computations" (2015); PAPER section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .jets import Jet, apply
from .terms import Term
from .trees import Leaves, take

CACHED = 2**16  # numbers of a block that is used once
SMALL = 2**19  # numbers of J up to which reverse passes make it sooner
FEW_PASSES = 8  # up to which squares come from factors sooner than from rows
DIFFERENTIATION = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


class NotLayerwiseError(Exception):
    """A function differentiates within itself, which uses weights where no layer is seen."""


class Probes(TorchFunctionMode):
    """Within it, linear layers of known weights take these as constants, and add a probe to what they give.

    Args:
        leaves: Parameters, of which each sample has its own copy.
        values: The same, one for all samples.
        probes: What is added at each call of a layer, in order, or None while their shapes are looked for.

    Attributes:
        inputs: Inputs of each call.
        calls: Index of the weight, and shape of the output, of each call.
    """

    def __init__(self, leaves: Sequence[Tensor], values: Leaves, probes: Sequence[Tensor] | None = None):
        super().__init__()
        self._index = {id(leaf): k for k, leaf in enumerate(leaves) if leaf.dim() == 2}
        self._values, self._probes = values, probes
        self.inputs: list[Tensor] = []
        self.calls: list[tuple[int, torch.Size]] = []
        self.failed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DIFFERENTIATION or getattr(func, "__name__", "") == "_make_dual":
            self.failed = True
            raise NotLayerwiseError
        if any(issubclass(kind, Jet) for kind in types):
            with self:
                return apply(func, args, kwargs)
        return self._linear(*args, **kwargs) if func is F.linear else func(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        k = self._index.get(id(weight))
        if k is None:
            return F.linear(input, weight, bias)
        out = F.linear(input, self._values[k])
        self.inputs.append(input)
        self.calls.append((k, out.shape))
        if self._probes is not None:
            out = out + self._probes[len(self.calls) - 1]
        return out if bias is None else out + bias


@dataclass(frozen=True)
class Factors:
    """Rows [r, p] of some samples: for each parameter sum_m g_m a_m^T, or dense, or 0 where both are None.

    Args:
        pairs: (g [r, m, e], a [r, m, d]) of each parameter.
        dense: Rows [r, size] of each parameter.
        shapes: Shapes of the parameters.
    """

    pairs: list[tuple[Tensor, Tensor] | None]
    dense: list[Tensor | None]
    shapes: list[torch.Size]

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each parameter."""
        return [shape.numel() for shape in self.shapes]

    def block(self, k: int, rows: slice = slice(None), units: slice = slice(None)) -> Float[Tensor, "r q"] | None:
        """Return rows of one parameter, or of some output units of it. Cost: r m d e multiply-adds."""
        pair, dense = self.pairs[k], self.dense[k]
        if pair is not None:
            return torch.bmm(pair[0][rows, :, units].mT, pair[1][rows]).flatten(1)
        if dense is None or not self.shapes[k]:
            return None if dense is None else dense[rows]
        return dense[rows].unflatten(1, self.shapes[k])[:, units].flatten(1)

    def write(self, out: Float[Tensor, "r p"], rows: slice) -> None:
        """Write rows."""
        for k, part in enumerate(out.split(self.sizes, 1)):
            block = self.block(k, rows)
            part.zero_() if block is None else part.copy_(block)

    def mv(self, v: Leaves) -> Float[Tensor, " r"]:
        """Return J v. Cost: r m d e multiply-adds a layer."""
        total = self.first.new_zeros(len(self))
        for pair, dense, part in zip(self.pairs, self.dense, v, strict=True):
            if pair is not None:
                total += torch.einsum("rme,rme->r", pair[0], pair[1] @ part.mT)
            if dense is not None:
                total += dense @ part.reshape(-1)
        return total

    def rmv(self, c: Float[Tensor, " r"]) -> Float[Tensor, " p"]:
        """Return J^T c. Cost: as ``mv``."""
        parts = []
        for pair, dense, size in zip(self.pairs, self.dense, self.sizes, strict=True):
            total = c.new_zeros(size)
            if pair is not None:
                weighted = (pair[0] * c[:, None, None]).flatten(0, 1)
                total = (weighted.mT @ pair[1].flatten(0, 1)).reshape(-1)
            parts.append(total if dense is None else total + dense.mT @ c)
        return torch.cat(parts)

    def scaled(self, columns: Leaves) -> Factors:
        """Return the rows with each column times a factor."""
        pairs, dense = list(self.pairs), list(self.dense)
        for k, factor in enumerate(columns):
            block = None if bool((factor == 1).all()) else self.block(k)
            if block is not None:
                pairs[k], dense[k] = None, block * factor.reshape(-1)
        return Factors(pairs, dense, self.shapes)

    def to(self, dtype: torch.dtype) -> Factors:
        """Return the rows in another dtype."""
        pairs = [None if pair is None else (pair[0].to(dtype), pair[1].to(dtype)) for pair in self.pairs]
        return Factors(pairs, [None if x is None else x.to(dtype) for x in self.dense], self.shapes)

    def __len__(self) -> int:
        return len(self.first)

    @property
    def first(self) -> Tensor:
        """Any part of the rows."""
        return self._parts[0]

    @property
    def bytes(self) -> int:
        """What the parts take."""
        return sum(part.numel() * part.element_size() for part in self._parts)

    @property
    def uses_matrices(self) -> bool:
        """Whether a matrix is used otherwise than in a linear layer."""
        return any(x is not None and len(shape) > 1 for x, shape in zip(self.dense, self.shapes, strict=True))

    @property
    def _parts(self) -> list[Tensor]:
        return [x for pair in self.pairs if pair is not None for x in pair] + [x for x in self.dense if x is not None]

    def squares(self) -> Float[Tensor, " p"]:
        """Return the squares of all columns, in float64. Cost: n m^2 d e / 2 or n m d e multiply-adds a layer."""
        total = self.first.new_zeros(sum(self.sizes), dtype=torch.float64)
        for k, part in enumerate(total.split(self.sizes)):
            pair = self.pairs[k]
            if pair is not None and pair[0].shape[1] <= FEW_PASSES:
                part += _squares(*pair).clamp_(min=0)
                continue
            step = max(1, CACHED // max(1, self.sizes[k]))
            for start in range(0, len(self), step):
                block = self.block(k, slice(start, start + step))
                if block is not None:
                    part += block.double().square().sum(0)
        return total


def _squares(g: Float[Tensor, "r m e"], a: Float[Tensor, "r m d"]) -> Float[Tensor, " q"]:
    """Return sum_r (sum_m g_rm a_rm^T)^2 as products of factors."""
    gs, inputs = g.double().unbind(1), a.double().unbind(1)
    total = g.new_zeros(g.shape[2], a.shape[2], dtype=torch.float64)
    for i in range(len(gs)):
        for j in range(i + 1):
            total.addmm_((gs[i] * gs[j]).mT, inputs[i] * inputs[j], alpha=1 if i == j else 2)
    return total.reshape(-1)


def factors_of(
    terms: list[Term], leaves: Leaves, widths: list[int], scales: list[float], memory: int, most: int
) -> list[Factors] | None:
    """Return the rows of each term, or None where they have to be made in another way.

    Args:
        terms: The functions, with their samples.
        leaves: Values of the parameters.
        widths: Rows a sample.
        scales: Factors of all rows.
        memory: Bytes that the factors may take.
        most: Samples at a time.
    """
    count = sum(term.count * width for term, width in zip(terms, widths, strict=True))
    if count * sum(leaf.numel() for leaf in leaves) < SMALL or not all(term.per_sample for term in terms):
        return None
    try:
        one = [_factors(term, leaves, width, 1.0, (0, 1), None) for term, width in zip(terms, widths, strict=True)]
        size = sum(term.count * sample.bytes for term, (sample, _) in zip(terms, one, strict=True))
        if size > memory or not any(calls for _, calls in one) or any(sample.uses_matrices for sample, _ in one):
            return None
        return [
            _joined([_factors(term, leaves, width, scale, piece, calls)[0] for piece in term.pieces(most)])
            for term, width, scale, (_, calls) in zip(terms, widths, scales, one, strict=True)
        ]
    except Exception:  # of whatever kind: the function then raises it again
        return None


def _copies(leaves: Leaves, count: int) -> Leaves:
    return tuple(leaf.detach().expand(count, *leaf.shape).requires_grad_() for leaf in leaves)


Calls = list[tuple[int, torch.Size]]


def _calls(term: Term, leaves: Leaves) -> Calls:
    """Return the calls of layers by one sample."""
    found: Calls = []

    def look(own: Leaves, sample: Any) -> Tensor:
        with Probes(own, leaves) as probes:
            value = term.fn(own, sample)
        found.extend(probes.calls)
        return value

    vmap(look)(_copies(leaves, 1), take(term.samples, 0, 1))
    return found


def _factors(
    term: Term, leaves: Leaves, width: int, scale: float, piece: tuple[int, int], calls: Calls | None
) -> tuple[Factors, Calls]:
    """Return the rows of some samples, and the calls of layers by each."""
    n, calls = piece[1] - piece[0], _calls(term, leaves) if calls is None else calls
    probes = [leaves[0].new_zeros(()).expand(n, *shape).requires_grad_() for _, shape in calls]
    copies = _copies(leaves, n)

    def tracked(own: Leaves, sample: Any, added: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with Probes(own, leaves, added) as seen:
            value = term.fn(own, sample)
        if seen.failed or seen.calls != calls:
            raise NotLayerwiseError
        return value.reshape(-1), [x.detach().reshape(-1, x.shape[-1]) for x in seen.inputs]

    with torch.enable_grad():
        values, inputs = vmap(tracked)(copies, take(term.samples, *piece), probes)
        slopes = [
            torch.autograd.grad(values[:, j].sum(), [*probes, *copies], retain_graph=j < width - 1, allow_unused=True)
            for j in range(width)
        ]
    rows = [_rows(list(column), scale) for column in zip(*slopes, strict=True)]
    pairs: list[tuple[Tensor, Tensor] | None] = []
    for k in range(len(leaves)):
        used = [i for i, (index, _) in enumerate(calls) if index == k and rows[i] is not None]
        g = [rows[i].reshape(n * width, -1, len(leaves[k])) for i in used]  # pyright: ignore[reportOptionalMemberAccess]
        a = [inputs[i].repeat_interleave(width, 0) for i in used]
        pairs.append((torch.cat(g, 1), torch.cat(a, 1)) if used else None)
    dense = [None if x is None else x.reshape(n * width, -1) for x in rows[len(calls) :]]
    return Factors(pairs, dense, [leaf.shape for leaf in leaves]), calls


def _rows(slopes: list[Tensor | None], scale: float) -> Tensor | None:
    """Return derivatives of all outputs of a sample one below the other, [n w, ...]."""
    like = next((slope for slope in slopes if slope is not None), None)
    if like is None:
        return None
    filled = [torch.zeros_like(like) if slope is None else slope for slope in slopes]
    return (filled[0] if len(filled) == 1 else torch.stack(filled, 1).flatten(0, 1)) * scale


def _joined(parts: list[Factors]) -> Factors:
    """Return the rows of some samples below those of others: all have the same parts."""
    if len(parts) == 1:
        return parts[0]

    def together(tensors: tuple[Any, ...]) -> Any:
        return None if tensors[0] is None else torch.cat(tensors)

    dense = [together(column) for column in zip(*(part.dense for part in parts), strict=True)]
    pairs = [
        None if column[0] is None else tuple(map(torch.cat, zip(*column, strict=True)))
        for column in zip(*(part.pairs for part in parts), strict=True)
    ]
    return Factors(pairs, dense, parts[0].shapes)  # pyright: ignore[reportArgumentType]
