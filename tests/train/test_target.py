"""Targets: what they accept, when they are reached."""

from __future__ import annotations

import dataclasses

import pytest

from seng.apps.train.errors import ConfigError
from seng.apps.train.metrics import EpochRecord
from seng.apps.train.target import METRICS, Target

RECORD = EpochRecord(1, 10, 0.5, 0.75, 0.25, 0.875, 1.0, 2.0, test_accuracy5=None)


def test_metrics_are_those_of_the_record():
    assert set(METRICS) <= {field.name for field in dataclasses.fields(EpochRecord)}


@pytest.mark.parametrize(
    ("text", "reached"),
    [
        ("test_accuracy=0.875", True),
        ("test_accuracy = 0.876", False),
        ("test_loss=0.25", True),
        ("test_loss=0.249", False),
        ("train_loss=1", True),
        ("train_accuracy=1e-1", True),
        ("test_accuracy5=0", False),  # the record has none
    ],
)
def test_target_is_reached_from_below_by_accuracies_and_from_above_by_losses(text: str, reached: bool):
    assert Target.parse(text).reached(RECORD) is reached


@pytest.mark.parametrize(
    "text", ["", "test_accuracy", "test_accuracy=", "accuracy=0.9", "seconds=3", "test_accuracy=97", "test_loss=-1"]
)
def test_target_that_no_epoch_can_have_is_refused(text: str):
    with pytest.raises(ConfigError, match="until is out of range: expected test_accuracy or .*test_accuracy=0.97"):
        Target.parse(text)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_target_is_a_finite_number(value: str):
    with pytest.raises(ConfigError, match="until is out of range"):
        Target.parse(f"test_loss={value}")
