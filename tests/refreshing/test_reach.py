"""What ranks know of all curvature, and what must be alike on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seng import DenseThenSparse, Local, LowRank, Options
from seng.curvature import Curvature
from seng.distributed import Strategy
from seng.per_sample import Rows
from seng.refreshing import Facts, Reach
from seng.solve import EigenState

HALF = Options(damping=2.0, power=0.5)
SMALL = torch.tensor(1e-3, dtype=torch.float64)  # norm of gradients that the trust cap leaves alone


def curvature(mean: float, usable: bool = True) -> Curvature:
    state = EigenState(torch.ones(1), torch.ones(1, 1))
    factor = Rows((torch.ones(1, 1),), ((1, 1),)) if usable else None
    return Curvature(factor, state, torch.tensor(mean), torch.tensor(mean), 1, 0, torch.tensor(1.0))


class Pretended(Strategy):
    """Another rank's row beside one's own."""

    world = 2

    def __init__(self, other: list[float], pooled: bool):
        super().__init__()
        self.other, self.pooled = torch.tensor(other, dtype=torch.float64), pooled  # type: ignore[misc]

    def tables(self, own: torch.Tensor, purpose: str) -> torch.Tensor:
        return torch.stack([own, self.other])


NAN = float("nan")


def reach(other: list[float], pooled: bool) -> Reach:
    found = Reach(["a", "b", "c"])
    found.note("a", curvature(2.0))
    found.note("b", curvature(1e-30, usable=False))
    found.share(Pretended(other, pooled))
    return found


def test_holders_are_counted_by_rank() -> None:
    assert reach([8.0, 3.0, NAN], pooled=False).holders() == {"a": 2, "b": 1, "c": 0}


def test_pooled_curvature_has_one_holder() -> None:
    assert reach([NAN, NAN, 8.0], pooled=True).holders() == {"a": 1, "b": 0, "c": 1}


def test_pace_is_the_mean_over_ranks_each_by_its_mean_damping() -> None:
    assert reach([8.0, 32.0, NAN], pooled=False).pace(HALF, 0, SMALL) == pytest.approx((4**-0.5 + 40**-0.5) / 2)


def test_pace_of_pooled_curvature_is_that_of_one_process() -> None:
    assert reach([NAN, NAN, 8.0], pooled=True).pace(HALF, 0, SMALL) == pytest.approx(10**-0.5)


def test_rank_without_curvature_does_not_count() -> None:
    assert reach([NAN, NAN, NAN], pooled=False).pace(HALF, 0, SMALL) == pytest.approx(4**-0.5)


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("norm", [0.0, 0.1, 1e3])
def test_gradients_without_curvature_stay_within_the_trust_cap(power: float, norm: float) -> None:
    options = HALF.with_(power=power, trust=0.7, scale="natural")
    pace = reach([NAN, NAN, NAN], pooled=False).pace(options, 0, torch.tensor(norm))
    assert pace is not None
    slowest = min(1.0, 4**-power)
    assert 4 ** (power - 0.5) * float(pace) * norm <= 0.7 * (1 + 1e-6)
    assert float(pace) <= slowest
    assert (float(pace) == pytest.approx(slowest)) == (norm < 1)


def test_gradients_of_summed_losses_and_without_a_trust_cap_are_not_bounded() -> None:
    found, norm = reach([NAN, NAN, NAN], pooled=False), torch.tensor(1e6)
    for options in (HALF.with_(loss_reduction="sum"), HALF.with_(trust=None)):
        assert found.pace(options, 0, norm) == pytest.approx(4**-0.5)


def test_nothing_held_has_no_pace() -> None:
    empty = Reach(["a"])
    assert not empty.begun
    assert empty.pace(HALF, 0, SMALL) is None
    assert empty.holders() == {"a": 0}


def test_spent_curvature_has_no_holders() -> None:
    found = reach([8.0, 3.0, NAN], pooled=False)
    found.spent = True
    assert found.holders() == {}
    assert found.held() == {"a", "b"}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"damping": 0.3}, "damping"),
        ({"include": [torch.nn.Linear]}, "include"),
        ({"estimator": LowRank(8)}, "estimator"),
        ({"distributed": Local("bfloat16")}, "distributed"),
    ],
)
def test_facts_differ_where_options_do(changes: dict[str, Any], name: str) -> None:
    pairs = [(own, Facts(own, "model").at(own, 3)) for own in (Options(), Options(**changes))]
    (_, first), (_, second) = pairs
    assert {key for key in first if first[key] != second[key]} == {name}


def test_facts_tell_schedules_by_their_values() -> None:
    dense = Options(refresh_every=DenseThenSparse(1, 10, 5))
    alike = Options(refresh_every=lambda step: 1 if step < 5 else 10)
    assert Facts(dense, "m").at(dense, 2) == {**Facts(alike, "m").at(alike, 2)}
    other = Options(refresh_every=lambda step: 2)
    assert Facts(other, "m").at(other, 2)["refresh_every"] == "2"


def test_facts_hold_no_addresses() -> None:
    scaler = torch.amp.GradScaler("cpu")
    told = Facts(Options(grad_scaler=scaler, damping=lambda step: 0.1), "m").at(Options(), 0)
    assert told["grad_scaler"] == "GradScaler"
    assert not any("0x" in value for value in told.values())
