"""Low-rank factors of many small matrix products at once.

Legend: n samples, s positions, r rank; sample i has M_i = G_i^T A_i with A_i [s, d_in], G_i [s, d_out].
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

OVERSAMPLING = 4


def low_rank_products(
    a: Float[Tensor, "n s d_in"],
    g: Float[Tensor, "n s d_out"],
    rank: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n r d_in"], Float[Tensor, "n r d_out"]]:
    """Return factors with M_i ~ sum_k ghat_ik ahat_ik^T, r = min(rank, s, d_in, d_out) terms a sample.

    Randomised range finder on the product itself with one power iteration, then an exact small
    decomposition: near the truncated SVD of the product, exact when no M_i has a rank above r. The product is never
    formed.

    Cost: about 4 n s (d_in + d_out) (r + 4) multiply-adds.
    Source: PAPER section 3; Halko, Martinsson, Tropp (2011).
    """
    s, d_in, d_out = a.shape[1], a.shape[2], g.shape[2]
    r = min(rank, s, d_in, d_out)
    if r == s:
        return a, g
    width = min(r + OVERSAMPLING, s, d_in, d_out)
    probe = torch.randn(d_in, width, generator=generator, dtype=torch.float64).to(a)
    basis = torch.linalg.qr(g.mT @ (a @ probe)).Q
    basis = torch.linalg.qr(a.mT @ (g @ basis)).Q
    basis = torch.linalg.qr(g.mT @ (a @ basis)).Q
    projected = (g @ basis).mT @ a  # [n, width, d_in], M_i ~ basis projected
    if width == r:
        return projected, basis.mT
    unit = projected / projected.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(projected.dtype).tiny)
    _, turn = torch.linalg.eigh((unit @ unit.mT).nan_to_num())  # what overflowed is found in the Gram matrix
    turn = turn[..., -r:]  # leading left singular vectors
    return turn.mT @ projected, (basis @ turn).mT
