"""Rows J [n, p]: derivatives of the outputs in all parameters, made in tiles and used as an operator.

Functions of one sample whose linear layers can be seen give factors of their rows (``layerwise``), from which tiles
and products come without differentiating again. Otherwise a sample's row is a reverse pass of its own, vectorised over
samples, and for functions that take the whole batch, a reverse pass of the batch for each unit vector. Such rows are
held where all fit the memory; if not, each use makes them again, and products J v and J^T c never make them at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev, jvp, vjp, vmap

from ..errors import MemoryBudgetError
from .layerwise import Factors, factors_of
from .ranks import Ranks
from .terms import Term
from .trees import Leaves, Params, take

COPIES = 4  # tiles at a time: derivatives of each leaf, the tile they are written to, and two factors of a product


@dataclass(frozen=True)
class Piece:
    """A tile: rows start..stop of this rank.

    Args:
        term: Index of its term.
        samples: First and last sample where functions take one, first and last row where they take all.
        start: First row.
        stop: Last row, not included.
    """

    term: int
    samples: tuple[int, int]
    start: int
    stop: int


@dataclass(frozen=True)
class Rows:
    """J as an operator over all ranks. Coefficients [n] are those of all ranks; parameters [p] are flat.

    Args:
        terms: Functions that are differentiated, with samples of the rows' dtype.
        scales: Factor of each term's rows.
        widths: Rows a sample of each term, 1 where the function takes the whole batch.
        params: Layout of the parameters.
        leaves: Values of the parameters, of the rows' dtype.
        pieces: The tiles of this rank.
        lengths: Rows of each rank.
        ranks: How ranks work together.
        hold: Whether all rows of this rank are kept once made.
        factors: Factors of each term's rows, scaled, or None where they have to be made in another way.
        columns: Factor of each parameter's column, or None for 1; of rows with factors it is in these.
    """

    terms: list[Term]
    scales: list[float]
    widths: list[int]
    params: Params
    leaves: Leaves
    pieces: list[Piece]
    lengths: list[int]
    ranks: Ranks
    hold: bool
    factors: list[Factors] | None = None
    columns: Float[Tensor, " p"] | None = None

    @property
    def n(self) -> int:
        """Number of rows of all ranks."""
        return sum(self.lengths)

    @property
    def own(self) -> slice:
        """This rank's rows among all."""
        base = sum(self.lengths[: self.ranks.rank])
        return slice(base, base + self.lengths[self.ranks.rank])

    @cached_property
    def held(self) -> Float[Tensor, "m p"] | None:
        """All rows of this rank, where they are held."""
        if not self.hold or self.factors is not None:
            return None
        held = self.leaves[0].new_empty(self.lengths[self.ranks.rank], self.params.size)
        for piece in self.pieces:
            self._write(piece, held[piece.start : piece.stop])
        return held

    @cached_property
    def squares(self) -> Float[Tensor, "t p"]:
        """Squares of each term's columns, in float64. Cost: n p multiply-adds, and the rows where they are not held."""
        total = self.leaves[0].new_zeros(len(self.terms), self.params.size, dtype=torch.float64)
        if self.factors is not None:
            return self.ranks.sum(torch.stack([factors.squares() for factors in self.factors]))
        for k, piece in enumerate(self.pieces):
            total[piece.term] += torch.linalg.vector_norm(self.tile(k), dim=0, dtype=torch.float64).square()
        return self.ranks.sum(total)

    @cached_property
    def trace(self) -> float:
        """The sum of all squares, which is the trace of K."""
        return float(self.squares.sum())

    def scaled(self, columns: Float[Tensor, " p"]) -> Rows:
        """Return the rows with each column times a factor. Held rows are scaled in place: do not use these any more."""
        scales = columns.to(self.leaves[0])
        if self.factors is None:
            rows = replace(self, columns=scales)
        else:
            rows = replace(self, factors=[factors.scaled(self.params.split(scales)) for factors in self.factors])
        rows.__dict__["squares"] = self.squares * columns.double().square()
        if self.held is not None:
            rows.__dict__["held"] = self.held.mul_(scales)
        return rows

    def tile(self, k: int) -> Float[Tensor, "m p"]:
        """Return the rows of one piece."""
        piece = self.pieces[k]
        if self.held is not None:
            return self.held[piece.start : piece.stop]
        tile = self.leaves[0].new_empty(piece.stop - piece.start, self.params.size)
        if self.factors is not None:
            width = self.widths[piece.term]
            self.factors[piece.term].write(tile, slice(piece.samples[0] * width, piece.samples[1] * width))
            return tile
        self._write(piece, tile)
        return tile

    def mv(self, v: Float[Tensor, " p"]) -> Float[Tensor, " n"]:
        """Return J v. Cost: one forward-mode pass, or m p where rows are held."""
        v = v.to(self.leaves[0].dtype)
        if self.factors is not None:
            image = torch.cat([factors.mv(self.params.split(v)) for factors in self.factors])
            return self.ranks.join(image, self.lengths)
        if self.held is not None:
            return self.ranks.join(self.held @ v, self.lengths)
        tangent = self.params.split(v if self.columns is None else v * self.columns)
        parts = []
        for k, piece in self._batches():
            term = self.terms[k]
            out = jvp(lambda *leaves: term.values(leaves, *piece), self.leaves, tangent)[1]  # noqa: B023
            parts.append(out * self.scales[k])
        return self.ranks.join(torch.cat(parts), self.lengths)

    def rmv(self, c: Float[Tensor, " n"]) -> Float[Tensor, " p"]:
        """Return J^T c. Cost: one reverse pass, or m p where rows are held."""
        c = c[self.own].to(self.leaves[0].dtype)
        if self.factors is not None:
            parts = c.split([len(factors) for factors in self.factors])
            total = [factors.rmv(part) for factors, part in zip(self.factors, parts, strict=True)]
            return self.ranks.sum(torch.stack(total).sum(0))
        if self.held is not None:
            return self.ranks.sum(self.held.mT @ c)
        total, start = c.new_zeros(self.params.size), 0
        for k, piece in self._batches():
            term = self.terms[k]
            out, pull = vjp(lambda *leaves: term.values(leaves, *piece), *self.leaves)[:2]  # noqa: B023
            parts = pull(c[start : start + len(out)].to(out.dtype) * self.scales[k])
            total += torch.cat([part.reshape(-1) for part in parts])
            start += len(out)
        return self.ranks.sum(total if self.columns is None else total * self.columns)

    def _batches(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Samples of each tile; the whole batch once for functions that take it whole."""
        for piece in self.pieces:
            term = self.terms[piece.term]
            if term.per_sample:
                yield piece.term, piece.samples
            elif piece.samples[0] == 0:
                yield piece.term, (0, term.count)

    def _write(self, piece: Piece, out: Float[Tensor, "m p"]) -> None:
        term, at = self.terms[piece.term], 0
        make = _per_sample if term.per_sample else _per_unit_vector
        for part in make(term, self.leaves, piece.samples, self.widths[piece.term]):
            flat = part.reshape(len(out), -1)
            out[:, at : at + flat.shape[1]] = flat
            at += flat.shape[1]
        out *= self.scales[piece.term]
        if self.columns is not None:
            out *= self.columns


def _per_sample(term: Term, leaves: Leaves, samples: tuple[int, int], width: int) -> tuple[Tensor, ...]:
    chosen = take(term.samples, *samples)
    if width == 1:
        return vmap(grad(lambda q, sample: term.fn(q, sample).reshape(())), (None, 0))(leaves, chosen)
    return vmap(jacrev(lambda q, sample: term.fn(q, sample).reshape(-1)), (None, 0))(leaves, chosen)


def _per_unit_vector(term: Term, leaves: Leaves, rows: tuple[int, int], width: int) -> tuple[Tensor, ...]:
    out, pull = vjp(lambda *q: term.fn(q, term.samples).reshape(-1), *leaves)[:2]
    units = out.new_zeros(rows[1] - rows[0], len(out))
    units[:, rows[0] : rows[1]].fill_diagonal_(1)
    return vmap(pull)(units)


def rows_of(
    terms: list[Term], counts: list[int], scales: list[float], params: Params, dtype: torch.dtype, itemsize: int,
    memory: int, ranks: Ranks, call: str,
) -> Rows:  # fmt: skip
    """Lay the rows of this rank out in tiles.

    Args:
        terms: Functions to differentiate.
        counts: Number of this rank's rows of each term.
        scales: Factor of each term's rows.
        params: The parameters.
        dtype: Of the rows.
        itemsize: Bytes a number in the widest precision that tiles are worked on.
        memory: Bytes that rows may take at a time.
        ranks: How ranks work together.
        call: For messages.

    Raises:
        MemoryBudgetError: One sample's rows do not fit.
    """
    widths = [count // term.count if term.per_sample else 1 for term, count in zip(terms, counts, strict=True)]
    row_bytes, m = params.size * itemsize, sum(counts)
    hold = (m + 2 * max(widths)) * row_bytes <= memory // 2
    most = memory // (2 if hold else COPIES) // row_bytes - (m if hold else 0)
    pieces, start = [], 0
    for k, width in enumerate(widths):
        if most < width:
            raise MemoryBudgetError(
                call, f"memory does not hold the rows of one sample of {terms[k].name!r}",
                expected=f"at least {COPIES * width * row_bytes} bytes", got=memory, fix="Raise memory",
            )  # fmt: skip
        step = most // width
        for first in range(0, counts[k] // width, step):
            last = min(first + step, counts[k] // width)
            pieces.append(Piece(k, (first, last), start, start + (last - first) * width))
            start = pieces[-1].stop
    leaves = params.values(dtype)
    cast = [term.in_dtype(dtype) for term in terms]
    factors = factors_of(cast, leaves, widths, scales, memory // 2, max(1, memory // (COPIES * row_bytes)))
    return Rows(cast, scales, widths, params, leaves, pieces, ranks.gather(m), ranks, hold, factors)
