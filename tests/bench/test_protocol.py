"""Every optimizer is compared by the same rules."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seng.apps.bench import FULL, OPTIMIZERS, QUICK, SUITES, WORKLOADS
from seng.apps.bench.protocol import BUDGETS, MOST_TUNED, WARM_UP, Protocol, Range, design, rate_factor
from seng.apps.bench.run import tuning_trials
from seng.apps.bench.tasks import Network, build_task

CELLS = [
    (workload, optimizer)
    for workload, each in WORKLOADS.items()
    for optimizer in OPTIMIZERS
    if each.entry(optimizer) is not None
]


@pytest.mark.parametrize("protocol", [FULL, QUICK], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize(("workload", "optimizer"), CELLS)
def test_every_optimizer_has_as_many_trials(workload: str, optimizer: str, protocol: Protocol) -> None:
    for budget in BUDGETS:
        trials = tuning_trials(workload, optimizer, budget, protocol)
        assert len(trials) == protocol.trials
        assert len({tuple(trial.values.items()) for trial in trials}) == len(trials)
        assert len(trials[0].values) <= MOST_TUNED
        assert {trial.seed for trial in trials} == {protocol.tuning_seed}


@pytest.mark.parametrize("protocol", [FULL, QUICK], ids=lambda protocol: protocol.name)
def test_evaluation_seeds_are_not_those_of_tuning(protocol: Protocol) -> None:
    assert protocol.tuning_seed not in protocol.seeds
    assert len(set(protocol.seeds)) == len(protocol.seeds)


def test_five_seeds_and_both_budgets() -> None:
    assert len(FULL.seeds) == 5
    assert SUITES["core"].budgets == ("seconds", "steps")
    assert SUITES["core"].optimizers == tuple(OPTIMIZERS)


def test_auxiliary_rates_are_tuned_where_peers_have_them() -> None:
    assert {name for name, entry in OPTIMIZERS.items() if "aux_lr" in entry.ranges} == {"muon", "kfac"}


ranges = st.dictionaries(
    st.sampled_from(["lr", "damping", "momentum", "weight_decay"]),
    st.builds(
        lambda low, times, log: Range(low, low * times, log), st.floats(1e-5, 1.0), st.floats(2.0, 1e3), st.booleans()
    ),
    min_size=1,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ranges, st.integers(1, 20))
def test_design_tries_defaults_then_half_and_twice_then_the_ranges(spans: dict[str, Range], trials: int) -> None:
    defaults = {name: span.at(0.5) for name, span in spans.items()}
    tried = design(defaults, spans, trials)
    first = next(iter(spans))
    assert len(tried) == trials
    assert tried[0] == defaults
    factors = [values[first] / defaults[first] for values in tried[1:3]]
    assert factors == [0.5, 2.0][: len(factors)]
    assert all({**values, first: 0} == {**defaults, first: 0} for values in tried[1:3])
    rounding = 1.01  # three digits
    for values in tried[3:]:
        assert all(span.low / rounding <= values[name] <= span.high * rounding for name, span in spans.items())


def test_design_leaves_no_third_of_a_range_out() -> None:
    tried = design({"lr": 0.1}, {"lr": Range(1.0, 1000.0)}, FULL.trials)
    logs = sorted(values["lr"] for values in tried[3:])
    assert max(high / low for low, high in pairwise([1.0, *logs, 1000.0])) < 10


@given(st.floats(0, 1, exclude_max=True))
def test_rate_rises_and_falls_within_its_setting(share: float) -> None:
    factor = rate_factor(share)
    assert 0 < factor <= 1
    later = min(share + 0.01, 0.999)
    assert (
        rate_factor(later) >= factor if later <= WARM_UP else rate_factor(max(later, WARM_UP)) <= rate_factor(WARM_UP)
    )
    assert rate_factor(share, decays=False) >= factor


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_schedule_is_the_same_for_all(optimizer: str) -> None:
    if optimizer in ("soap", "shampoo", "kron", "schedule-free"):
        pytest.importorskip("pytorch_optimizer")
        pytest.importorskip("opt_einsum")
    workload = WORKLOADS["digits"]
    entry = workload.entry(optimizer)
    assert entry is not None
    assert entry.decays == (optimizer != "schedule-free")  # whose average stands in for the fall
    task = build_task(workload, entry, {}, 0, tuning=True)
    assert isinstance(task, Network)
    before = [group["lr"] for group in task.session.optimizer.param_groups]
    for share in (0.0, 0.03, 0.4, 0.99):
        task.step(share)
        factors = [group["lr"] / lr for group, lr in zip(task.session.optimizer.param_groups, before, strict=True)]
        assert factors == pytest.approx([rate_factor(share, entry.decays)] * len(factors))


def test_tuning_never_sees_test_samples() -> None:
    workload = WORKLOADS["digits"]
    entry = workload.entry("sgd")
    assert entry is not None
    tuned, judged = (build_task(workload, entry, {}, 0, tuning) for tuning in (True, False))
    assert isinstance(tuned, Network)
    assert isinstance(judged, Network)
    data, whole = tuned.session.data, judged.session.data
    assert len(data.train) + 1 + len(data.test) == len(whole.train)
    inputs, _ = data.test.batch(torch.arange(len(data.test)))
    expected, _ = whole.train.batch(torch.arange(len(data.train) + 1, len(whole.train)))
    assert inputs.equal(expected)


def test_an_optimizer_that_needs_samples_is_left_out_of_functions() -> None:
    poisson = WORKLOADS["poisson-2d"]
    assert poisson.entry("seng-muon") is None
    assert poisson.entry("kfac") is None
    assert poisson.entry("seng") is not None
    assert replace(poisson, own={}).entry("seng") is None
