"""Gauss-Newton: rows are derivatives of residuals. Exact as a Fisher matrix of a Gaussian model."""

from __future__ import annotations

from torch import Tensor

from .base import Fisher, SampleFunction


class GaussNewton(Fisher):
    """Squared residuals: the loss is half the mean of r^2, and its gradient J^T r."""

    def losses(self, fn: SampleFunction) -> SampleFunction:
        return lambda leaves, sample: 0.5 * fn(leaves, sample).square()

    def outputs(self, fn: SampleFunction) -> SampleFunction:
        return fn

    def losses_of(self, outputs: Tensor) -> Tensor:
        return 0.5 * outputs.square()

    def coefficients(self, outputs: Tensor) -> Tensor:
        return outputs
