"""The driver of a whole run: points, stages, stop rules, history and checkpoints around ``NaturalGradient``."""

from .driver import fit
from .records import Fit, Record
from .stages import RESAMPLING

__all__ = ["RESAMPLING", "Fit", "Record", "fit"]
