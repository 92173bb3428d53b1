"""K = J J^T in tiles, and its Cholesky factor in the place of K.

Legend: n rows of all ranks, p parameters, lambda damping. The lower triangle of K is worked on; the upper one keeps a
copy of K, so that a factorisation that fails can be tried again without making K again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ..solve import FactorisationError
from ..solve.cholesky import JITTERS
from .layerwise import Factors
from .rows import Rows

STRIP = 192  # columns of K at a time: what is computed above the diagonal against the speed of a product
COLUMNS = 4096  # of J at a time, where K comes from factors
PASS = 24  # multiply-adds that a pass over a tile of K is worth
BLOCK = 512  # columns factorised at a time: large enough for matrix products to dominate


def gram(rows: Rows, dtype: torch.dtype) -> Float[Tensor, "n n"] | None:
    """Return K on the first rank (None elsewhere), without forming J where its rows are not held.

    Cost: n^2 p / 2 multiply-adds over all ranks; rows that are not held are made once for every tile of all ranks. From
    factors n^2 min(d e, m^2 (d + e)) / 2 for a layer of d inputs and e outputs that a sample passes m times.
    """
    if rows.factors is not None and rows.ranks.world == 1:
        return mirror_(_by_layers([factors.to(dtype) for factors in rows.factors]))
    bounds = [(piece.start, piece.stop) for piece in rows.pieces]
    own = rows.own
    k = rows.leaves[0].new_empty(own.stop - own.start, rows.n, dtype=dtype)
    like = rows.leaves[0].new_empty(rows.params.size)
    for column, other in rows.ranks.tiles(bounds, rows.tile, like):
        right = other.to(dtype).mT
        for j, (start, stop) in enumerate(bounds):
            if own.start + start < column:
                continue
            if own.start + start == column:
                lower_square(right, k[start:stop, column : column + right.shape[1]])
            else:
                k[start:stop, column : column + right.shape[1]] = rows.tile(j).to(dtype) @ right
    whole = rows.ranks.collect(k, rows.lengths)
    return None if whole is None else mirror_(whole)


def _by_layers(terms: list[Factors]) -> Float[Tensor, "n n"]:
    """Return the lower triangle of K as a sum over parameters."""
    n = sum(map(len, terms))
    k = terms[0].first.new_zeros(n, n)
    waiting: list[Tensor] = []
    for layer in range(len(terms[0].sizes)):
        if _is_cheaper_as_product(terms, layer):
            _add_product(k, [(len(term), term.pairs[layer]) for term in terms])
            continue
        for block in _column_blocks(terms, layer):
            waiting.append(block)
            if sum(block.shape[1] for block in waiting) >= COLUMNS:
                _add_lower_square(k, waiting)
                waiting = []
    if waiting:
        _add_lower_square(k, waiting)
    return k


def _is_cheaper_as_product(terms: list[Factors], layer: int) -> bool:
    """Whether K of a layer costs less as products of its factors than from its rows."""
    pairs = [term.pairs[layer] for term in terms]
    if any(term.dense[layer] is not None for term in terms):
        return False
    return any(pair is not None for pair in pairs) and all(
        pair is None or pair[0].shape[1] ** 2 * (pair[0].shape[2] + pair[1].shape[2] + PASS) < terms[0].sizes[layer]
        for pair in pairs
    )


def _add_product(k: Float[Tensor, "n n"], terms: list[tuple[int, tuple[Tensor, Tensor] | None]]) -> None:
    """Add sum_lm (g_il . g_jm) (a_il . a_jm) to the lower triangle."""
    at = 0
    for count, pair in terms:
        for start in range(0, count, STRIP) if pair is not None else ():
            stop, left = min(start + STRIP, count), 0
            for other_count, other in terms:
                width = min(other_count, at + stop - left)
                if pair is not None and other is not None and width > 0:
                    out = k[at + start : at + stop, left : left + width]
                    for g, a in zip(pair[0].unbind(1), pair[1].unbind(1), strict=True):
                        for h, b in zip(other[0].unbind(1), other[1].unbind(1), strict=True):
                            out.addcmul_(g[start:stop] @ h[:width].mT, a[start:stop] @ b[:width].mT)
                left += other_count
        at += count


def _column_blocks(terms: list[Factors], layer: int) -> Iterator[Float[Tensor, "n q"]]:
    """Yield J's columns of a parameter, some output units at a time."""
    shape = terms[0].shapes[layer]
    units = shape[0] if shape else 1
    step = max(1, COLUMNS * units // max(1, shape.numel()))
    for start in range(0, units, step):
        chosen = slice(None) if step >= units else slice(start, min(start + step, units))
        blocks = [term.block(layer, units=chosen) for term in terms]
        like = next((block for block in blocks if block is not None), None)
        if like is not None:
            yield torch.cat(
                [
                    like.new_zeros(len(term), like.shape[1]) if block is None else block
                    for term, block in zip(terms, blocks, strict=True)
                ]
            )


def _add_lower_square(k: Float[Tensor, "n n"], blocks: list[Tensor]) -> None:
    """Add J J^T of some columns to the lower triangle, in strips of rows."""
    j = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
    for start in range(0, len(k), STRIP):
        stop = min(start + STRIP, len(k))
        k[start:, start:stop].addmm_(j[start:], j[start:stop].mT)


def lower_square(right: Float[Tensor, "p m"], out: Float[Tensor, "m m"]) -> None:
    """Write the lower triangle of right^T right, in strips of columns: about half of the whole product."""
    left = right.mT
    for start in range(0, len(out), STRIP):
        out[start:, start : start + STRIP] = left[start:] @ right[:, start : start + STRIP]


def mirror_(k: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Copy the lower triangle over the upper one, block by block."""
    n = len(k)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        k[start:stop, stop:] = k[stop:, start:stop].mT
        corner = k[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).mT)
    return k


class InPlaceFactor:
    """L with L L^T = K + lambda I (+ jitter), written over the lower triangle of K.

    Args:
        k: K, symmetric; overwritten.
        damping: lambda >= 0.

    Attributes:
        rungs: How many jitters failed before one held.

    Raises:
        FactorisationError: K is not finite, or no jitter helps.

    Cost: n^3 / 3 multiply-adds; scratch of n BLOCK numbers.
    """

    def __init__(self, k: Float[Tensor, "n n"], damping: float):
        self.k, self.rungs = k, 0
        self._diagonal = diagonal = k.diagonal().clone()
        mean = float(diagonal.mean())
        if not torch.isfinite(diagonal.sum()):
            raise FactorisationError("the Gram matrix is not finite")
        rounding = len(k) * torch.finfo(k.dtype).eps
        for jitter in (JITTERS[0], rounding, *JITTERS[1:]):
            k.diagonal().copy_(diagonal + (damping + jitter * mean))
            if cholesky_(k):
                return
            self.rungs += 1
            mirror_(k.mT)  # the upper triangle still holds K
        k.diagonal().copy_(diagonal)
        raise FactorisationError("no jitter made the Gram matrix positive definite")

    def restore(self) -> Float[Tensor, "n n"]:
        """Return K, which takes the place of its factor again. Cost: n^2 copies."""
        self.k.diagonal().copy_(self._diagonal)
        return mirror_(self.k.mT).mT

    def solve(self, r: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return (K + lambda I)^-1 r. Cost: 2 n^2, without a copy of the factor."""
        half = torch.linalg.solve_triangular(self.k, r[:, None], upper=False)
        return torch.linalg.solve_triangular(self.k.mT, half, upper=True)[:, 0]


def cholesky_(k: Float[Tensor, "n n"]) -> bool:
    """Write the Cholesky factor over the lower triangle; return whether k is positive definite.

    Left-looking in blocks of columns. What is above the diagonal stays, but for the diagonal blocks.

    Source: Golub, Van Loan, "Matrix Computations", section 4.2.
    """
    n = len(k)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        panel, left = k[start:, start:stop], k[start:, :start]
        corner = panel[: stop - start]
        above = corner.triu(1)
        if start:
            panel.addmm_(left, left[: stop - start].mT, alpha=-1)
        factor, info = torch.linalg.cholesky_ex(corner)
        corner.copy_(factor.tril() + above)
        if int(info) != 0:
            return False
        below = panel[stop - start :]
        below.copy_(torch.linalg.solve_triangular(factor, below.mT, upper=False).mT)
    return True
