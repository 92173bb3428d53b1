"""Where a benchmark ran: recorded beside every committed figure."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

import seng

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Return versions, processor and thread count."""
    return {
        "date": date.today().isoformat(),
        "seng": seng.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def save(name: str, result: dict[str, Any]) -> Path:
    """Write a result with its environment to ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **result}, indent=2) + "\n")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
