"""Evaluation: exact means over ragged batches, accuracies where they mean something, modes left as they were."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from seng.apps.train import Session, build_session, evaluate
from seng.apps.train.config import RunConfig
from seng.apps.train.data import Dataset, TensorSplit
from seng.apps.train.meters import Meter

SINGLE = 1e-6  # float32 means of batches of different sizes, relative


class _Answers(nn.Module):
    """Returns its input as scores, and notes the modes in which it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.modes.append(self.training)
        assert not torch.is_grad_enabled() or self.training
        return inputs


@pytest.fixture
def answers() -> _Answers:
    return _Answers()


@pytest.fixture
def session(small_run: RunConfig, answers: _Answers) -> Session:
    """A session whose model is right about a test picture or not as the picture itself says."""
    generator = torch.Generator().manual_seed(0)
    split = TensorSplit(torch.randn(1401, 10, generator=generator), torch.arange(1401) % 10)
    whole = build_session(small_run)
    return dataclasses.replace(whole, model=answers, data=Dataset(whole.data.train, split))


def test_evaluate_is_exact_over_ragged_batches(session: Session):
    split = session.data.test
    scores, targets = split.batch(torch.arange(1401))
    result = evaluate(session)
    assert result is not None
    order = scores.argsort(dim=1, descending=True)
    assert result.accuracy == (order[:, 0] == targets).sum().item() / 1401
    assert result.accuracy5 == (order[:, :5] == targets[:, None]).sum().item() / 1401
    assert result.loss == pytest.approx(nn.functional.cross_entropy(scores, targets).item(), rel=SINGLE)


def test_evaluate_asks_in_evaluation_mode_and_restores_the_mode(session: Session, answers: _Answers):
    for mode in (True, False):
        answers.train(mode)
        answers.modes.clear()
        evaluate(session)
        assert answers.modes == [False] * 3  # 1,401 pictures by 4 x 128
        assert answers.training is mode


def test_evaluate_leaves_off_when_told(session: Session, answers: _Answers):
    answers.train()
    stopped = iter((False, True))
    assert evaluate(session, lambda: next(stopped)) is None
    assert len(answers.modes) == 1
    assert answers.training


def _meter(classes: int | None, sums: list[float] | None = None) -> Meter:
    return Meter(torch.device("cpu"), classes, sums or ())


def test_meter_has_no_accuracy_without_classes():
    meter = _meter(None)
    meter.add(torch.tensor(2.0), torch.zeros(3, 4), torch.zeros(3, 4))
    meter.add(torch.tensor(5.0), torch.zeros(1, 4), torch.zeros(1, 4))
    result = meter.read()
    assert (result.loss, result.accuracy, result.accuracy5) == ((2.0 * 3 + 5.0) / 4, None, None)


def test_meter_counts_every_position_of_a_text():
    outputs = torch.zeros(2, 12, 5)
    outputs[:, 3] = 1.0
    targets = torch.full((2, 5), 3)
    targets[0, :4] = 1
    meter = _meter(12)
    meter.add(torch.tensor(1.0), outputs, targets, top=True)
    assert meter.read().accuracy == 6 / 10


def test_meter_knows_no_top_five_of_fewer_than_ten_classes():
    meter = _meter(9)
    meter.add(torch.tensor(1.0), torch.randn(4, 9), torch.arange(4), top=True)
    assert meter.read().accuracy5 is None


def test_meter_goes_on_from_the_sums_of_another():
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(20, 10, generator=generator), torch.arange(20) % 10
    one, two = _meter(10), _meter(10)
    one.add(torch.tensor(0.5), scores[:8], targets[:8], top=True)
    two.add(torch.tensor(0.5), scores[:8], targets[:8], top=True)
    two = _meter(10, two.sums())
    for meter in (one, two):
        meter.add(torch.tensor(0.25), scores[8:], targets[8:], top=True)
    assert one.read() == two.read()
