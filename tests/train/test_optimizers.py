"""Optimizers and schedules follow their settings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from seng.apps.recipes import build_recipe
from seng.apps.train.config import OptimizerConfig, RunConfig, ScheduleConfig, SengConfig
from seng.apps.train.optimizers import build_optimizer, build_schedule
from seng.apps.train.settings import from_dict, override, to_dict
from seng.errors import SengError
from seng.optimizer import SENG


def _with(optimizer: OptimizerConfig) -> RunConfig:
    return replace(build_recipe("digits", "sgd"), optimizer=optimizer)


def _seng(**options: object) -> SENG:
    config = OptimizerConfig("seng", lr=0.1, seng=SengConfig(**options))  # type: ignore[arg-type]
    optimizer = build_optimizer(nn.Linear(4, 2), _with(config), steps_per_epoch=10)
    assert isinstance(optimizer, SENG)
    return optimizer


def test_recipes_may_reweight():
    reweighted = {"reweight": True, "refresh_every": 1, "curvature_batch": "current", "estimator": "exact"}
    assert _seng(**reweighted, distributed="none").preconditioner.options.reweight
    with pytest.raises(SengError, match="reweight does not go with this distributed"):
        _seng(**reweighted)


@pytest.mark.parametrize(("text", "samples"), [("16", 16), ("0.25", 0.25), ("none", None)])
def test_recipes_may_take_some_samples(text: str, samples: float | None):
    config = override(build_recipe("digits"), {"curvature_samples": text})
    assert from_dict(to_dict(config)) == config
    optimizer = build_optimizer(nn.Linear(4, 2), config, steps_per_epoch=10)
    assert isinstance(optimizer, SENG)
    found = optimizer.preconditioner.options.curvature_samples
    assert (found, type(found)) == (samples, type(samples))


def _rates(config: ScheduleConfig, epochs: int, steps_per_epoch: int) -> list[float]:
    """Learning rates of all steps, for a rate of 0.5."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = build_schedule(optimizer, config, epochs, steps_per_epoch)
    rates = []
    for _ in range(epochs * steps_per_epoch + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_polynomial_schedule_follows_its_law_to_zero():
    rates = _rates(ScheduleConfig("polynomial", power=2.0), epochs=2, steps_per_epoch=5)
    assert rates == pytest.approx([0.5 * (1 - t / 10) ** 2 for t in range(11)])


def test_polynomial_schedule_may_aim_beyond_the_end():
    rates = _rates(ScheduleConfig("polynomial", power=6.0, horizon_epochs=4), epochs=2, steps_per_epoch=5)
    assert rates == pytest.approx([0.5 * (1 - t / 20) ** 6 for t in range(11)])


def test_cosine_schedule_follows_its_law():
    rates = _rates(ScheduleConfig("cosine"), epochs=2, steps_per_epoch=5)
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * t / 10)) for t in range(11)])


def test_warmup_climbs_in_a_line_and_then_leaves_the_law():
    rates = _rates(ScheduleConfig("constant", warmup_epochs=0.8), epochs=2, steps_per_epoch=5)
    assert rates == pytest.approx([0.125, 0.25, 0.375] + [0.5] * 8)


def test_unknown_optimizer_lists_the_known():
    with pytest.raises(SengError, match=r"unknown optimizer.*'sgd'.*Did you mean 'seng'"):
        build_recipe("digits", "sengg")
    config = OptimizerConfig("lion", lr=0.1)  # type: ignore[arg-type]
    with pytest.raises(SengError, match="unknown optimizer.*'adamw'"):
        build_optimizer(nn.Linear(2, 2), _with(config), steps_per_epoch=10)


def test_seng_refuses_an_option_out_of_range():
    with pytest.raises(SengError, match="damping"):
        _seng(damping=-1.0)


def test_seng_is_refreshed_densely_at_first_where_asked():
    every = _seng(refresh_every=7, refresh_always_until=3).preconditioner.options.refresh_every
    assert callable(every)
    assert [every(step) for step in range(5)] == [1, 1, 1, 7, 7]


def test_damping_decays_by_epochs():
    damping = _seng(damping=0.17, damping_decay=0.9, damping_decay_epochs=2.0).preconditioner.options.damping
    assert callable(damping)
    assert [damping(step) for step in (0, 10, 20, 40)] == pytest.approx(
        [0.17, 0.17 * 0.9**0.5, 0.17 * 0.9, 0.17 * 0.81]
    )


@pytest.mark.parametrize("name", ["seng", "sgd", "adamw"])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_norms_and_biases_can_be_spared_of_weight_decay(name: str, base: str):
    convolution = nn.Conv2d(1, 2, 2, bias=False)  # batch norm would leave its bias without a gradient
    model = nn.Sequential(convolution, nn.BatchNorm2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    seng = SengConfig(base=base) if name == "seng" else None
    config = OptimizerConfig(name, lr=0.1, weight_decay=0.25, decay_norms=False, seng=seng)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, _with(config), steps_per_epoch=10)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {id(p): 0.25 if p.dim() > 1 else 0.0 for p in model.parameters()}
    model(torch.randn(4, 1, 3, 3)).square().mean().backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    optimizer.load_state_dict(optimizer.state_dict())
