"""The page of the protocol says what the tables of ``seng bench`` say."""

from __future__ import annotations

import pytest

from seng.apps.bench import FULL, OPTIMIZERS, WORKLOADS
from seng.apps.bench.protocol import WARM_UP
from seng.apps.bench.statistics import RESAMPLES

from .pages import DOCS, section, tables, text_of

PAGE = DOCS / "benchmarks.md"
WORDS = {"lr": ("learning rate",), "aux_lr": ("both learning rates",), "weight_decay": ("weight decay",)}
WORDS |= {"momentum": ("momentum", "first average"), "damping": ("damping",)}


def rows(title: str) -> dict[str, list[str]]:
    return {row[0].strip("`"): row for row in tables(section(PAGE, title))["name"]}


def test_optimizers_are_listed_with_what_is_tuned() -> None:
    listed = rows("Optimizers")
    assert list(listed) == list(OPTIMIZERS)
    for name, entry in OPTIMIZERS.items():
        told = listed[name][2].split(", ")
        assert len(told) == len(entry.ranges) - ("aux_lr" in entry.ranges)
        for value in entry.ranges.keys() - ({"lr"} if "aux_lr" in entry.ranges else set()):
            assert set(WORDS[value]) & set(told)


def test_workloads_are_listed_with_their_budgets() -> None:
    listed = rows("Workloads")
    assert list(listed) == list(WORKLOADS)
    for name, workload in WORKLOADS.items():
        assert listed[name][2:] == [str(workload.steps), f"{workload.seconds:g}"]
        if not isinstance(workload.source, str):
            size = workload.source.batch_size
            assert f"batches of {size:,}" in listed[name][1] or size == 60_000


@pytest.mark.parametrize(
    "words",
    [f"has {FULL.trials} tuning trials", f"first {WARM_UP:.0%} of the budget", f"{RESAMPLES:,} bootstrap draws",
     "five other seeds", "evaluated ten times"],
)  # fmt: skip
def test_rules_are_those_of_the_code(words: str) -> None:
    assert words in " ".join(text_of(PAGE).split())
    assert (len(FULL.seeds), FULL.points) == (5, 10)
