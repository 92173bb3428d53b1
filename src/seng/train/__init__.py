"""The training application: everything behind ``seng train``."""

from __future__ import annotations

from .config import RunConfig
from .folder import RunFolder, create_run, open_run
from .loop import Evaluation, evaluate, train
from .session import Session, build_session

__all__ = [
    "Evaluation",
    "RunConfig",
    "RunFolder",
    "Session",
    "build_session",
    "create_run",
    "evaluate",
    "open_run",
    "train",
]
