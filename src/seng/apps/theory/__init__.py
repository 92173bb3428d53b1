"""The theory, executed: each claim of docs/theory.md as an experiment whose numbers can be looked at.

ntk            residuals of wide networks contract at a rate that no condition number slows down
stationarity   gradients of a noisy, non-convex problem go to zero at the order that the step lengths give
sketches       a sketched direction is off by what the sketch does to the space it is used in
solvers        the same of sketches in sample space, those of ``seng.func``
"""

from __future__ import annotations

from .ntk import ntk_study
from .sketches import sketch_study
from .solvers import solver_study
from .stationarity import stationarity_study

__all__ = ["ntk_study", "sketch_study", "solver_study", "stationarity_study"]
