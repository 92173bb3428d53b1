"""Empirical Fisher: rows are gradients of the samples' own losses, whatever these are. Source: PAPER section 1."""

from __future__ import annotations

from torch import Tensor

from .base import Fisher, SampleFunction


class Empirical(Fisher):
    """The function gives each sample's loss; the gradient is the mean of the rows."""

    def losses(self, fn: SampleFunction) -> SampleFunction:
        return fn

    def outputs(self, fn: SampleFunction) -> SampleFunction:
        return fn

    def coefficients(self, outputs: Tensor) -> Tensor:
        return outputs.new_ones(outputs.shape)
