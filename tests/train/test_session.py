"""Optimizers, schedules, losses and devices are those that the settings name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from seng.apps.recipes import build_recipe
from seng.apps.train import build_session
from seng.apps.train.config import LossConfig, RunConfig
from seng.apps.train.losses import build_loss
from seng.apps.train.settings import override
from seng.errors import SengError


@pytest.mark.parametrize(("name", "kind"), [("seng", "SENG"), ("sgd", "SGD"), ("adamw", "AdamW")])
def test_session_has_the_optimizer_and_its_settings(name: str, kind: str):
    config = override(build_recipe("digits", name), {"lr": "0.015", "weight_decay": "0.125"})
    optimizer = build_session(config).optimizer
    assert type(optimizer).__name__ == kind
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.015, 0.125)}


def test_label_smoothing_reaches_the_loss():
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    smoothed = build_loss(LossConfig(label_smoothing=0.25))(outputs, targets)
    log = outputs.log_softmax(1)
    plain = -log[torch.arange(5), targets].mean()
    torch.testing.assert_close(smoothed, 0.75 * plain - 0.25 * log.mean())


def test_unknown_loss_lists_the_known():
    with pytest.raises(SengError, match="unknown loss.*'cross-entropy'"):
        build_loss(LossConfig("hinge"))


def test_device_that_is_not_there_is_refused(small_run: RunConfig):
    with pytest.raises(SengError, match="device cannot be used: expected auto, cpu or cuda, got 'abacus'"):
        build_session(replace(small_run, device="abacus"))
    assert build_session(replace(small_run, device="cpu")).device == torch.device("cpu")


def test_session_sets_the_threads_that_a_run_asks_for(small_run: RunConfig, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    build_session(replace(small_run, threads=3))
    build_session(replace(small_run, threads=0))
    assert asked == [3]
