"""Steps on many ranks, foretold from shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from seng import plan
from seng.errors import OptionError
from seng.planning.forecast import FORWARD_AND_BACKWARD, forecasts
from seng.planning.network import Network

NETWORK = Network(1e-5, 1e9)
RATE = 1e9  # operations a second
STRATEGIES = ["plain", "local", "global", "sharded"]


def model() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 4))


def rows(ranks: list[int], seconds: float | None = None, **options: Any):
    found = forecasts(model(), torch.empty(8, 30, device="meta"), ranks, NETWORK, RATE, seconds, **options)
    return {(row.strategy, row.ranks): row for row in found}


def test_forecasts_are_of_every_strategy_and_number_of_ranks():
    assert list(rows([1, 4])) == [(name, world) for world in (1, 4) for name in STRATEGIES]


def test_forecast_of_one_rank_is_its_work_alone():
    planned = plan(model(), torch.empty(8, 30, device="meta"), refresh_every=4)
    found = rows([1], refresh_every=4)
    assert found["plain", 1].seconds == pytest.approx(FORWARD_AND_BACKWARD * planned.backward_flops / RATE)
    for name in STRATEGIES[1:]:
        work = found[name, 1].seconds - found["plain", 1].seconds
        assert work == pytest.approx(planned.share(4) * planned.backward_flops / RATE)
        assert found[name, 1].held == planned.nbytes


def test_forecast_takes_the_measured_step():
    assert rows([1], seconds=0.25)["plain", 1].seconds == 0.25


def test_sharded_holds_less_and_global_more_the_more_ranks_there_are():
    found = rows([2, 4])
    assert found["local", 2].held == found["local", 4].held
    assert found["global", 4].held > found["global", 2].held
    assert found["sharded", 2].held < found["global", 2].held


def test_four_thousand_ranks_are_foretold():
    found = rows([4096])
    assert found["local", 4096].seconds < found["sharded", 4096].seconds < found["global", 4096].seconds


def test_rounding_on_the_wire_halves_what_local_receives():
    whole, rounded = rows([8])["local", 8], rows([8], wire_dtype="bfloat16")["local", 8]
    assert rounded.step_bytes - 32 == (whole.step_bytes - 32) // 2


def test_preconditioning_has_a_rate_of_its_own():
    slow, even, fast = (rows([1], step_flops=rate)["local", 1].seconds for rate in (RATE / 2, None, 2 * RATE))
    assert slow - even == pytest.approx(2 * (even - fast))


def test_forecasts_refuse_what_the_optimizer_refuses():
    with pytest.raises(OptionError, match="estimator"):
        rows([1], estimator="guess")
