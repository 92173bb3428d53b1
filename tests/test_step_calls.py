"""How much of the library a step touches: one linear layer, one process, counted by the interpreter itself."""

import os
import sys
from types import FrameType

import torch

import seng

HOME = os.path.dirname(seng.__file__)
COMPREHENSION = "<"  # names of frames that Python 3.12 no longer makes


def _calls_of_a_step(refreshing: bool) -> tuple[int, int]:
    """Return how many functions of the library a step calls, and in how many of its files."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    optimizer = seng.SENG(model, lr=0.01, refresh_every=5)
    x = torch.randn(16, 8)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    for _ in range(5 if refreshing else 6):
        step()
    files: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(HOME) and not code.co_name.startswith(COMPREHENSION):
            files.append(code.co_filename)

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return len(files), len(set(files))


def test_step_between_refreshes_touches_little() -> None:
    calls, files = _calls_of_a_step(refreshing=False)
    assert 0 < calls <= 45
    assert files <= 15


def test_refresh_step_touches_a_bounded_part() -> None:
    calls, files = _calls_of_a_step(refreshing=True)
    assert 0 < calls <= 203
    assert files <= 36
