"""The training application: everything behind ``seng train``."""

from typing import TYPE_CHECKING

from ...lazy import lazy

if TYPE_CHECKING:
    from .config import RunConfig
    from .evaluation import evaluate
    from .folder import RunFolder, create_run, open_run
    from .loop import train
    from .meters import Evaluation
    from .session import Session, build_session
else:
    __getattr__ = lazy(
        __name__,
        {
            "Evaluation": "meters",
            "RunConfig": "config",
            "RunFolder": "folder",
            "Session": "session",
            "build_session": "session",
            "create_run": "folder",
            "evaluate": "evaluation",
            "open_run": "folder",
            "train": "loop",
        },
    )

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
