"""The estimator as the paper's authors released it, for comparisons only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..sketch import Identity, Sampling, Sketch
from .base import Grads, PerSampleGradients
from .product import Product
from .rows import Rows
from .sketched import Sketched


@dataclass(frozen=True)
class PaperCode(Sketched):
    """Biased sketch, and for implicit layers an outer product of two sums in place of U b.

    Coefficients keep the damping of the refresh while the outer 1 / damping follows its schedule. The bias of the
    sketch: sampled rows are scaled by d / q, so K and U^T g are too large by the product of the ratios.

    Source: PAPER section 8.
    """

    @property
    def frozen_damping(self) -> bool:
        return True

    def carrier(self) -> PerSampleGradients:
        return self  # its products are not those of ``full``

    @property
    def unsketched(self) -> PerSampleGradients:
        return self.full

    def add_rmv_(self, v: Grads, c: Float[Tensor, " n"], beta: float = 1.0) -> None:
        """Leave beta v + (sum_i sqrt|c_i| g_i)(sum_j c_j a_j / sum_k sqrt|c_k|)^T in v, for implicit layers."""
        if not isinstance(self.full, Product):
            return self.full.add_rmv_(v, c, beta)
        root = c.abs().sqrt()
        left = torch.einsum("n,cnrd->crd", root, self.full.g)
        right = torch.einsum("n,cnrd->crd", c / root.sum().clamp(min=torch.finfo(c.dtype).tiny), self.full.a)
        weight = v[0].view(left.shape[0], left.shape[2], right.shape[2])
        weight.mul_(beta).add_(left.mT @ right, alpha=self.full.scale)
        return None


def as_released(factor: Sketched) -> PaperCode:
    """Turn an unbiased row-sampled factor into the released, biased one."""
    left, right = _square(factor.left), None if factor.right is None else _square(factor.right)
    small: PerSampleGradients
    if isinstance(factor.full, Rows):
        small = Rows.of((left(torch.cat(factor.full.parts, 1)),))
    else:
        assert isinstance(factor.full, Product)
        assert right is not None
        small = replace(factor.full, a=right(factor.full.a), g=left(factor.full.g))
    return PaperCode(factor.full, small, left, right)


def _square(sketch: Sketch) -> Sketch:
    if isinstance(sketch, Identity):
        return sketch
    assert isinstance(sketch, Sampling)
    return Sampling(sketch.index, sketch.weight**2)
