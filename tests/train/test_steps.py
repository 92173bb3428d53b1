"""Ways to take a step: micro-batches, clipping, precisions, compiled and deterministic models."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seng.apps.recipes import build_recipe
from seng.apps.train import Session, build_session, create_run, train
from seng.apps.train.config import RunConfig
from seng.apps.train.errors import ConfigError
from seng.apps.train.metrics import Record, StepRecord
from seng.apps.train.settings import override
from seng.errors import SengError

from .conftest import SMALL

ROUNDING = 1e-3  # float32 sums in another order, over an epoch of training
HALF = 0.1  # bfloat16 keeps 8 bits and float16 11, over an epoch of training
EXACT = 1e-5  # a norm of float32 gradients


class _Losses:
    """The losses of all logged steps."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def advanced(self, samples: int) -> None:
        pass

    def logged(self, record: Record) -> None:
        if isinstance(record, StepRecord):
            self.seen.append(record.loss)


def _config(optimizer: str = "seng", **changes: str) -> RunConfig:
    return override(build_recipe("digits", optimizer), SMALL | {"log_every": "1"} | changes)


def _train(session: Session, folder: Path) -> list[float]:
    """Train for an epoch; return the losses of its steps."""
    losses = _Losses()
    train(session, create_run(folder, session.config), watchers=[losses], stop_after=1)
    return losses.seen


@pytest.mark.parametrize("optimizer", ["seng", "sgd"])
@pytest.mark.parametrize("parts", ["2", "5"])  # 5 does not divide 122 or 123 samples
def test_micro_batches_equal_one_batch(tmp_path: Path, optimizer: str, parts: str):
    whole = _train(build_session(_config(optimizer)), tmp_path / "whole")
    dealt = _train(build_session(_config(optimizer, accumulate=parts)), tmp_path / "dealt")
    assert dealt == pytest.approx(whole, rel=ROUNDING)
    assert dealt != whole


def test_micro_batches_are_what_the_model_sees(tmp_path: Path):
    session, sizes = build_session(_config(accumulate="4")), []
    session.model.register_forward_pre_hook(lambda model, inputs: sizes.append((model.training, len(inputs[0]))))
    _train(session, tmp_path)
    seen = [size for training, size in sizes if training]
    assert len(seen) == 11 * 4
    assert set(seen) <= {30, 31}
    assert sum(seen) == 1347


def _norm(model: nn.Module) -> float:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()


@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize("optimizer", ["seng", "sgd"])
def test_clipping_bounds_the_gradient_that_the_optimizer_gets(tmp_path: Path, optimizer: str, precision: str):
    norms: dict[str | None, list[float]] = {}
    for clip in ("none", "0.1"):
        session = build_session(_config(optimizer, precision=precision, clip=clip))
        seen = norms.setdefault(clip, [])
        session.optimizer.register_step_pre_hook(lambda *_, model=session.model, seen=seen: seen.append(_norm(model)))
        _train(session, tmp_path / clip)
    assert norms["none"][0] > 0.1
    assert max(norms["0.1"]) <= 0.1 * (1 + EXACT)
    assert norms["0.1"][0] == pytest.approx(0.1, rel=1e-4)  # torch divides by the norm plus 1e-6


def test_clipping_and_reweighting_exclude_each_other():
    reweighted = {"reweight": "true", "refresh_every": "1", "curvature_batch": "current", "estimator": "exact"}
    with pytest.raises(ConfigError, match="clip and reweight exclude each other: expected clip=none.*got 1.0"):
        _config(**reweighted, clip="1")


def test_float16_and_reweighting_exclude_each_other():
    reweighted = {"reweight": "true", "refresh_every": "1", "curvature_batch": "current", "estimator": "exact"}
    with pytest.raises(SengError, match="grad_scaler"):
        build_session(_config(**reweighted, precision="fp16"))


@pytest.mark.parametrize("optimizer", ["seng", "sgd"])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_low_precision_runs_layers_in_it_and_learns_alike(
    tmp_path: Path, optimizer: str, precision: str, dtype: torch.dtype
):
    session, seen = build_session(_config(optimizer, precision=precision)), set()
    session.model[0].register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))  # type: ignore[index]
    low = _train(session, tmp_path / "low")
    full = _train(build_session(_config(optimizer)), tmp_path / "full")
    assert seen == {dtype}
    assert {p.dtype for p in session.model.parameters()} == {torch.float32}
    assert low == pytest.approx(full, abs=HALF)
    assert low != full


@pytest.mark.filterwarnings("error:Detected call")
@pytest.mark.parametrize("optimizer", ["seng", "sgd"])
def test_overflow_of_float16_skips_the_step_and_lowers_the_scale(tmp_path: Path, optimizer: str):
    session = build_session(_config(optimizer, precision="fp16"))
    session.scaler.load_state_dict(session.scaler.state_dict() | {"scale": 2.0**30})
    weights: list[Tensor] = [next(session.model.parameters()).detach().clone()]
    session.optimizer.register_step_post_hook(
        lambda *_: weights.append(next(session.model.parameters()).detach().clone())
    )
    losses = _train(session, tmp_path)
    scale = session.scaler.state_dict()["scale"]
    skipped = round(torch.tensor(2.0**30 / scale).log2().item())
    assert 1 <= skipped < 11
    assert scale == 2.0 ** (30 - skipped)
    assert len(weights) == 1 + 11 - skipped  # the optimizer was not called
    assert not torch.equal(weights[-1], weights[0])
    assert all(loss < 20 for loss in losses)


@pytest.mark.parametrize("optimizer", ["seng", "sgd"])
def test_compiled_model_trains_the_same(tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch):
    calls: list[nn.Module] = []

    def compile_eagerly(model: nn.Module) -> nn.Module:
        calls.append(model)
        return _COMPILE(model, backend="eager")  # type: ignore[return-value]

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    session = build_session(_config(optimizer, compile="true"))
    compiled = _train(session, tmp_path / "compiled")
    plain = _train(build_session(_config(optimizer)), tmp_path / "plain")
    assert calls == [session.model]
    assert session.forward is not session.model
    assert compiled == pytest.approx(plain, rel=ROUNDING)


_COMPILE = torch.compile


@pytest.mark.slow
def test_model_compiled_to_machine_code_trains_the_same(tmp_path: Path):
    compiled = _train(build_session(_config(compile="true")), tmp_path / "compiled")
    plain = _train(build_session(_config()), tmp_path / "plain")
    assert compiled == pytest.approx(plain, rel=10 * ROUNDING)


@pytest.fixture
def restored() -> Iterator[None]:
    """Leave torch's determinism as it was."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    variable = os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if variable is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = variable


@pytest.mark.usefixtures("restored")
def test_deterministic_run_asks_torch_for_it(tmp_path: Path):
    torch.backends.cudnn.benchmark = True
    build_session(_config())
    assert not torch.are_deterministic_algorithms_enabled()
    session = build_session(_config(deterministic="true"))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    _train(session, tmp_path)  # no layer of it is refused


@pytest.mark.parametrize(("parts", "fits"), [("122", True), ("123", False)])
def test_every_micro_batch_needs_a_sample(parts: str, fits: bool):
    build = functools.partial(build_session, _config(accumulate=parts))
    if fits:  # the smallest batch of the epoch has 122
        assert build().config.accumulate == 122
    else:
        with pytest.raises(ConfigError, match="too small to be dealt out: expected.*1 processes x 123.*got 122"):
            build()


def test_target_that_the_data_cannot_have_is_refused_before_the_data_are_read():
    config = override(build_recipe("fashion-autoencoder"), {"until": "test_accuracy=0.9", "data_dir": "nowhere"})
    with pytest.raises(ConfigError, match="has no test_accuracy: expected a data set of 1 classes.*--until test_loss"):
        build_session(config)


def test_session_is_whole_without_ranks():
    session = build_session(_config())
    assert session.forward is session.model
    assert (session.ranks.rank, session.ranks.world, session.ranks.local) == (0, 1, 0)
