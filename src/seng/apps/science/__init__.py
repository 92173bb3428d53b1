"""Scientific problems, solved by natural gradients in sample space and by the methods they are compared with.

    problem (residuals, points, solution) -> method (a step) -> run (records) -> folder, pictures

A problem is one file in ``problems/``, a method one in ``methods/``, each with a line in its table.
"""

from __future__ import annotations

from .methods import METHODS, Method
from .problem import Points, Problem, View
from .problems import PROBLEMS, summary
from .run import Record, run

__all__ = ["METHODS", "PROBLEMS", "Method", "Points", "Problem", "Record", "View", "run", "summary"]
