"""Optimizers compared on equal terms: the same trials, schedule and budget for each.

    protocol (rules) -> optimizers, workloads (tables) -> trial (a run) -> lines (a file) -> summary -> report

An optimizer is a line in ``OPTIMIZERS``, a workload one in ``WORKLOADS``. docs/benchmarks.md tells the rules.
"""

from __future__ import annotations

from .lines import Lines
from .optimizers import OPTIMIZERS, Entry
from .protocol import FULL, QUICK, Protocol
from .report import write_report
from .run import run_suite
from .workloads import SUITES, WORKLOADS, Suite, Workload

__all__ = [
    "FULL",
    "OPTIMIZERS",
    "QUICK",
    "SUITES",
    "WORKLOADS",
    "Entry",
    "Lines",
    "Protocol",
    "Suite",
    "Workload",
    "run_suite",
    "write_report",
]
