"""Checkpoints: all state comes back, and a file that is not this run's is refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seng.recipes import build_recipe
from seng.train import Session, build_session
from seng.train.checkpoint import Position, load_checkpoint, save_checkpoint
from seng.train.config import RunConfig
from seng.train.errors import CheckpointError


@pytest.fixture
def session(small_run: RunConfig) -> Session:
    return build_session(small_run)


@pytest.fixture
def path(tmp_path: Path, session: Session) -> Path:
    _steps(session, 3)
    save_checkpoint(tmp_path / "checkpoint.pt", session, Position(3, 1.5))
    return tmp_path / "checkpoint.pt"


def _steps(session: Session, count: int) -> None:
    for _ in range(count):
        inputs, targets = session.data.train.batch(torch.arange(64))
        session.optimizer.zero_grad()
        session.loss(session.model(inputs), targets).backward()
        session.optimizer.step()
        session.schedule.step()


def _snapshot(session: Session) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in session.model.state_dict().values()]


def test_load_restores_model_optimizer_schedule_generator_and_position(path: Path, session: Session):
    wanted = _snapshot(session)
    lr = session.optimizer.param_groups[0]["lr"]
    drawn = torch.rand(3)
    _steps(session, 2)
    changed = _snapshot(session)
    other = build_session(session.config)
    assert load_checkpoint(path, other) == Position(3, 1.5)
    assert torch.equal(torch.rand(3), drawn)
    assert all(map(torch.equal, _snapshot(other), wanted))
    assert other.optimizer.param_groups[0]["lr"] == lr
    _steps(other, 2)
    assert all(map(torch.equal, _snapshot(other), changed))


def _edit(path: Path, **changes: Any) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def _assert_refused(path: Path, session: Session, match: str) -> None:
    before = _snapshot(session)
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(path, session)
    assert all(map(torch.equal, _snapshot(session), before))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_truncated_checkpoint_is_refused(path: Path, session: Session, share: float):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    _assert_refused(path, session, "checkpoint.pt is unreadable: expected a checkpoint written whole")


class _Pickled:
    """An object that is no plain value."""


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"weights": 1}, r"not a checkpoint of seng train: expected format 'seng-run', got \['weights'\]"),
        ([1, 2], "not a checkpoint of seng train.*got 'list'"),
        (_Pickled(), "unreadable"),
    ],
)
def test_foreign_checkpoint_is_refused(path: Path, session: Session, content: Any, match: str):
    torch.save(content, path)
    _assert_refused(path, session, match)


def test_absent_checkpoint_is_refused(tmp_path: Path, session: Session):
    _assert_refused(tmp_path / "none.pt", session, "none.pt is unreadable.*No such file")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 99}, "of another version: expected version 1, got 99"),
        ({"config": {"epochs": 3}}, "incomplete: expected settings and a model"),
        ({"model": 3}, "incomplete: expected settings and a model"),
        ({"position": {"step": 3}}, "incomplete: expected a whole checkpoint"),
        ({"schedule": None}, "incomplete: expected a whole checkpoint"),
        ({"optimizer": {"nothing": 1}}, "incomplete: expected a whole checkpoint"),
        ({"rng": {}}, "incomplete: expected a whole checkpoint"),
    ],
)
def test_incomplete_checkpoint_is_refused(path: Path, session: Session, changes, match: str):
    _edit(path, **changes)
    _assert_refused(path, build_session(session.config), match)


def test_checkpoint_of_other_settings_is_refused(path: Path, session: Session):
    other = build_session(replace(session.config, seed=5))
    _assert_refused(path, other, "of a run with other settings")


def test_checkpoint_of_another_model_is_refused(path: Path, session: Session):
    wide = build_session(build_recipe("digits"))
    _edit(path, model=wide.model.state_dict())
    _assert_refused(path, session, r"of another model: expected 6 tensors of its shapes, got \[\('0.bias'")
