"""Checkpoints: all state comes back, and a file that is not this run's is refused with a reason."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seng.apps.recipes import build_recipe
from seng.apps.train import Session, build_session
from seng.apps.train.checkpoint import (
    Position,
    checkpoint_path,
    checkpoints,
    restore_newest,
    write_checkpoint,
)
from seng.apps.train.config import RunConfig
from seng.apps.train.errors import CheckpointError, DamagedError
from seng.apps.train.settings import override

from ..pickled import HARMFUL, archive

AFTER_THREE = Position(step=3, epoch=0, seconds=1.5, sums=(1.0, 2.0, 0.0, 3.0, 3.0), metrics_bytes=7, ended="")


@pytest.fixture
def session(small_run: RunConfig) -> Session:
    return build_session(small_run)


@pytest.fixture
def path(tmp_path: Path, session: Session) -> Path:
    _steps(session, 3)
    write_checkpoint(tmp_path, session, AFTER_THREE)
    return checkpoint_path(tmp_path, 3)


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
    assert restore_newest(path.parent, other) == AFTER_THREE
    assert torch.equal(torch.rand(3), drawn)
    assert all(map(torch.equal, _snapshot(other), wanted))
    assert other.optimizer.param_groups[0]["lr"] == lr
    _steps(other, 2)
    assert all(map(torch.equal, _snapshot(other), changed))


@pytest.fixture(scope="module")
def small_state(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, RunConfig]:
    """A checkpoint of few bytes, and its settings."""
    config = override(build_recipe("digits", "sgd"), {"model.widths": "1", "train_samples": "100"})
    session = build_session(config)
    _steps(session, 1)
    folder = tmp_path_factory.mktemp("state")
    write_checkpoint(folder, session, AFTER_THREE)
    return checkpoint_path(folder, 3).read_bytes(), config


def _tensors(state: Any) -> Any:
    """Return a state with tensors as lists, so that it can be compared."""
    if isinstance(state, dict):
        return {key: _tensors(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_tensors(value) for value in state]
    return state.tolist() if isinstance(state, torch.Tensor) else state


def _edit(path: Path, **changes: Any) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def _assert_refused(path: Path, session: Session, match: str) -> None:
    before = _snapshot(session)
    with pytest.raises(CheckpointError, match=match):
        restore_newest(path.parent, session)
    assert all(map(torch.equal, _snapshot(session), before))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_truncated_checkpoint_is_refused(path: Path, session: Session, share: float):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    _assert_refused(path, session, "^seng train: .*step-00000003.pt is unreadable: expected a checkpoint written whole")


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_damaged_byte_is_refused_or_harmless(small_state: tuple[bytes, RunConfig], place: float, bit: int):
    content, config = small_state
    damaged = bytearray(content)
    damaged[int(place * len(content))] ^= 1 << bit
    with TemporaryDirectory() as folder:
        path = checkpoint_path(Path(folder), 3)
        path.write_bytes(damaged)
        session = build_session(config)
        try:
            position = restore_newest(path.parent, session)
        except DamagedError:
            return
        assert position == AFTER_THREE
        write_checkpoint(path.parent, session, AFTER_THREE)
        assert _tensors(torch.load(path, weights_only=True)) == _tensors(
            torch.load(io.BytesIO(content), weights_only=True)
        )


@pytest.mark.parametrize("name", HARMFUL)
def test_checkpoint_that_claims_more_than_it_holds_is_refused(path: Path, session: Session, name: str):
    path.write_bytes(archive(HARMFUL[name], {"archive/data/0": bytes(4)}).getvalue())
    _assert_refused(path, session, r"step-\d+\.pt is unreadable: expected a checkpoint written whole")


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


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 99}, "of another version: expected version 2, got 99"),
        ({"config": {"epochs": 3}}, "incomplete: expected settings and a model"),
        ({"model": 3}, "incomplete: expected settings and a model"),
        ({"position": {"step": 3}}, "incomplete: expected a whole checkpoint"),
        ({"schedule": None}, "incomplete: expected a whole checkpoint"),
        ({"optimizer": {"nothing": 1}}, "incomplete: expected a whole checkpoint"),
        ({"rng": {}}, "incomplete: expected a whole checkpoint"),
        ({"scaler": None, "rng": {"cpu": None}}, "incomplete: expected a whole checkpoint"),
    ],
)
def test_incomplete_checkpoint_is_refused(path: Path, session: Session, changes, match: str):
    _edit(path, **changes)
    _assert_refused(path, build_session(session.config), match)


def test_checkpoint_of_other_settings_is_refused(path: Path, session: Session):
    other = build_session(replace(session.config, seed=5))
    _assert_refused(path, other, "^seng train: .* is of a run with other settings")


def test_checkpoint_of_another_model_is_refused(path: Path, session: Session):
    wide = build_session(build_recipe("digits"))
    _edit(path, model=wide.model.state_dict())
    _assert_refused(path, session, r"of another model: expected 6 tensors of its shapes, got \[\('0.bias'")


def _write(folder: Path, session: Session, *steps: int) -> None:
    for step in steps:
        write_checkpoint(folder, session, replace(AFTER_THREE, step=step))


def test_only_the_last_checkpoints_are_kept(tmp_path: Path, session: Session):
    keeping = replace(session, config=replace(session.config, keep=3))
    (tmp_path / "best.pt").write_text("not a run's own")
    (tmp_path / ".step-00000004.pt.partial").write_text("half of one, by a killed process")
    _write(tmp_path, keeping, 1, 2, 10, 9, 100)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{step:08d}.pt" for step in (100, 10, 9)]
    assert sorted(path.name for path in tmp_path.iterdir() if path not in checkpoints(tmp_path)) == ["best.pt"]


def test_no_checkpoint_means_the_beginning(tmp_path: Path, session: Session):
    assert restore_newest(tmp_path / "none", session) is None


def test_newest_checkpoint_is_restored(tmp_path: Path, session: Session):
    _write(tmp_path, session, 5, 7)
    position = restore_newest(tmp_path, build_session(session.config))
    assert position is not None
    assert position.step == 7


def test_damaged_newest_checkpoint_gives_way_to_the_one_before_with_a_warning(tmp_path: Path, session: Session):
    _write(tmp_path, session, 5, 7)
    newest, before = checkpoints(tmp_path)
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=f"{newest.name} is unreadable.*Going on from {before.name}"):
        position = restore_newest(tmp_path, build_session(session.config))
    assert position is not None
    assert position.step == 5


def test_damage_to_every_checkpoint_is_an_error(tmp_path: Path, session: Session):
    _write(tmp_path, session, 5, 7)
    for path in checkpoints(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(DamagedError, match="step-00000007.pt is unreadable.*--overwrite"):
        restore_newest(tmp_path, session)


def test_newest_checkpoint_of_other_settings_is_no_reason_to_take_an_older_one(tmp_path: Path, session: Session):
    _write(tmp_path, session, 5, 7)
    with pytest.raises(CheckpointError, match="of a run with other settings"):
        restore_newest(tmp_path, build_session(replace(session.config, seed=5)))


def test_saved_scaler_comes_back(tmp_path: Path, small_run: RunConfig):
    session = build_session(replace(small_run, precision="fp16"))
    session.scaler.load_state_dict(session.scaler.state_dict() | {"scale": 32.0, "_growth_tracker": 5})
    write_checkpoint(tmp_path, session, AFTER_THREE)
    other = build_session(session.config)
    restore_newest(tmp_path, other)
    assert other.scaler.state_dict() == session.scaler.state_dict()
    assert other.scaler.state_dict()["scale"] == 32.0
