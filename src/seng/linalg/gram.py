"""Gram matrices K = U^T U of per-sample gradients.

Legend: n samples, s positions, p parameters, U [p, n] with columns u_i, rows = U^T [n, p].
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_MIN = 128  # below this a symmetric product in blocks costs more than it saves
SCRATCH = 2**24  # elements of a temporary: 64 MiB in float32


def gram_of_rows(rows: Float[Tensor, "n p"]) -> Float[Tensor, "n n"]:
    """Return rows @ rows^T, computing only the blocks on and under the diagonal.

    Cost: about 3/4 of n^2 p multiply-adds for n >= 128, else n^2 p.
    """
    n = len(rows)
    if n < 2 * BLOCK_MIN:
        return rows @ rows.T
    k = rows.new_empty(n, n)
    half = n // 2
    top, bottom = rows[:half], rows[half:]
    torch.mm(top, top.T, out=k[:half, :half])
    torch.mm(bottom, bottom.T, out=k[half:, half:])
    torch.mm(bottom, top.T, out=k[half:, :half])
    k[:half, half:] = k[half:, :half].T
    return k


def gram_of_products(a: Float[Tensor, "n s d_in"], g: Float[Tensor, "n s d_out"], bias: bool) -> Float[Tensor, "n n"]:
    """Return K_ij = sum_st (a_is . a_jt + bias) (g_is . g_jt) without forming a per-sample gradient.

    For s = 1 this is (A A^T + bias) o (G G^T). The bias stands for a column of ones in ``a``.

    Cost: n^2 s^2 (d_in + d_out) multiply-adds; scratch of 2 SCRATCH elements.
    Source: PAPER section 3.
    """
    n, s, _ = a.shape
    if s == 1:
        k = gram_of_rows(a[:, 0])
        return k.add_(1.0).mul_(gram_of_rows(g[:, 0])) if bias else k.mul_(gram_of_rows(g[:, 0]))
    flat_a, flat_g = a.reshape(n * s, -1), g.reshape(n * s, -1)
    k = a.new_empty(n, n)
    step = max(1, SCRATCH // (n * s * s))
    for i in range(0, n, step):
        part = slice(i * s, min(n, i + step) * s)
        block = flat_a[part] @ flat_a.T
        block = block.add_(1.0) if bias else block
        block = block.mul_(flat_g[part] @ flat_g.T)
        k[i : i + step] = block.view(-1, s, n, s).sum((1, 3))
    return k
