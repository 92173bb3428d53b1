"""Choices of the Fisher matrix. One file each; adding one is a line in the table."""

from __future__ import annotations

from .base import Fisher, SampleFunction
from .empirical import Empirical
from .gauss_newton import GaussNewton
from .sampled import Sampled

__all__ = ["FISHERS", "Empirical", "Fisher", "GaussNewton", "SampleFunction", "Sampled"]

FISHERS: dict[str, type[Fisher]] = {"gauss_newton": GaussNewton, "empirical": Empirical, "sampled": Sampled}
