"""Sparse sign embedding: a few +-1 entries in each column."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Heavy, Sketch

NONZEROS = 8  # a column; more changes little (Tropp et al. 2019)


@dataclass(frozen=True)
class SparseSign(Sketch):
    """Coordinate j is added to ``bucket[k, j]`` with weight ``sign[k, j] / sqrt(k_max)``.

    Args:
        bucket: Target rows, [k, d], in 0..size-1.
        sign: +1 or -1, [k, d].
        size: Number of rows q.
    """

    bucket: Tensor
    sign: Tensor
    size: int

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch q"]:
        out = x.new_zeros(*x.shape[:-1], self.size)
        for bucket, sign in zip(self.bucket.to(x.device), self.sign.to(x), strict=True):
            out.index_add_(-1, bucket, x * sign)
        return out / len(self.bucket) ** 0.5


@partial(Heavy, nbytes=lambda d, q: 9 * d * min(NONZEROS, q))  # a row as int64 and a sign as int8
def sparse_sign(d: int, q: int, generator: torch.Generator, scores: Tensor) -> SparseSign:
    """Draw k = min(8, q) signs a column, each in its own band of rows so that they never collide.

    Cost: O(k d) to draw and per vector.
    Source: Nelson and Nguyen, "OSNAP" (2013); Tropp, Yurtsever, Udell, Cevher (2019).
    """
    k = min(NONZEROS, q)
    edges = torch.linspace(0, q, k + 1).round().long()
    bands = [torch.randint(a, b, (d,), generator=generator) for a, b in pairwise(edges.tolist())]
    sign = torch.randint(0, 2, (k, d), generator=generator, dtype=torch.int8) * 2 - 1
    return SparseSign(torch.stack(bands), sign, q)
