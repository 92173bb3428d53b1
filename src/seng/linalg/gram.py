"""Gram matrices K = U^T U of per-sample gradients.

Legend: n samples, s positions, p parameters, U [p, n] with columns u_i, rows = U^T [n, p].
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SCRATCH = 2**24  # elements of a temporary: 64 MiB in float32


def gram_of_rows(rows: Float[Tensor, "n p"]) -> Float[Tensor, "n n"]:
    """Return rows @ rows^T. Cost: n^2 p multiply-adds.

    All of it is computed: half of a symmetric product in blocks was never faster (docs/lab-log.md).
    """
    return rows @ rows.T


def gram_of_products(
    a: Float[Tensor, "n s d_in"], g: Float[Tensor, "n s d_out"], bias: bool, scale: float = 1.0
) -> Float[Tensor, "n n"]:
    """Return K_ij = scale^2 sum_st (a_is . a_jt + bias) (g_is . g_jt) without forming a per-sample gradient.

    For s = 1 this is scale^2 (A A^T + bias) o (G G^T). The bias stands for a column of ones in ``a``.

    Cost: n^2 s^2 (d_in + d_out) multiply-adds; scratch of 2 SCRATCH elements.
    Source: PAPER section 3.
    """
    n, s, _ = a.shape
    flat_a, flat_g = a.reshape(n * s, -1), g.reshape(n * s, -1)
    k = a.new_empty(n, n)
    step = max(1, SCRATCH // (n * s * s))
    for i in range(0, n, step):
        part = slice(i * s, min(n, i + step) * s)
        block = flat_a[part] @ flat_a.T
        block = block.add_(1.0) if bias else block
        block.mul_(torch.addmm(block, flat_g[part], flat_g.T, beta=0, alpha=scale**2))
        if s == 1 and step >= n:
            return block
        k[i : i + step] = block.view(-1, s, n, s).sum((1, 3))
    return k
