"""Records made from a live run."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seng.apps.train.metrics import CurvatureRecord
from seng.apps.train.records import SPECTRUM, merged, thin


@given(st.integers(0, 300))
def test_thinned_values_keep_the_ends_and_the_order(count: int):
    values = [float(number) for number in range(count)]
    kept = thin(values)
    assert len(kept) == min(count, SPECTRUM)
    assert kept == sorted(set(kept))
    assert kept[:1] == values[:1]
    assert kept[-1:] == values[-1:]


@pytest.mark.parametrize("count", [65, 128, 1000])
def test_thinned_values_are_evenly_spaced(count: int):
    kept = thin([float(number) for number in range(count)])
    steps = {round(later - earlier) for earlier, later in itertools.pairwise(kept)}
    assert max(steps) - min(steps) <= 1


def test_merged_record_has_every_layer_once_the_first_process_first():
    first = CurvatureRecord(1, 4, 1.0, {"a": {"damping": 1.0}}, {"a": [1.0]}, {"skipped_steps": 1})
    second = CurvatureRecord(1, 4, 9.0, {"a": {"damping": 2.0}, "b": {"damping": 3.0}}, {"b": [2.0]})
    both = CurvatureRecord(
        1, 4, 1.0, {"a": {"damping": 1.0}, "b": {"damping": 3.0}}, {"a": [1.0], "b": [2.0]}, {"skipped_steps": 1}
    )
    assert merged([first, second]) == both
    assert merged([first]) == first
