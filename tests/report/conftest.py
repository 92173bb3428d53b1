"""Three made runs, of SENG, SGD and AdamW, and what a report says about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from seng.apps.report import Content, gather, render_page

from .made import make_run


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders called seng, sgd and adamw."""
    root = tmp_path_factory.mktemp("runs")
    speeds = {"seng": 2.0, "sgd": 1.0, "adamw": 1.4}
    return [make_run(root / name, name, speed=speed) for name, speed in speeds.items()]


@pytest.fixture(scope="session")
def content(folders: list[Path]) -> Content:
    """What a report says about the three runs."""
    return gather(folders)


@pytest.fixture(scope="session")
def page(content: Content) -> str:
    """The page about the three runs."""
    return render_page(content)
