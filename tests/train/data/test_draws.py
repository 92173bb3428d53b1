"""Random numbers by sample and draw: what they depend on, and that they look random."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from seng.apps.train.data.draws import uniforms

WORD = 2**64
SIGMAS = 5.0  # a fair generator passes such a bound but once in two million


def _mixed(value: int) -> int:
    """Splitmix64's next output from a state, with Python's own integers."""
    value = (value + 0x9E3779B97F4A7C15) % WORD
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % WORD
    return value ^ (value >> 31)


@given(index=st.integers(0, 2**40), draw=st.integers(-(2**62), 2**62))
def test_uniforms_equal_splitmix64_in_whole_numbers(index: int, draw: int):
    assert _mixed(0) == 0xE220A8397B1DCDAF  # published for the seed 0
    seed = _mixed((index + _mixed(draw % WORD)) % WORD)
    expected = [(_mixed((seed + k * 0x9E3779B97F4A7C15) % WORD) >> 11) / 2**53 for k in range(1, 4)]
    assert uniforms(torch.tensor([index]), draw, 3).tolist() == [expected]


def test_uniforms_do_not_depend_on_the_place_in_a_batch_or_on_the_count():
    rows = uniforms(torch.arange(100), draw=7, count=5)
    some = torch.tensor([41, 3, 99])
    assert torch.equal(uniforms(some, draw=7, count=5), rows[some])
    assert torch.equal(uniforms(some, draw=7, count=2), rows[some, :2])


def test_uniforms_are_uniform_and_unrelated_between_samples_draws_and_columns():
    count = 20_000
    first, second = (uniforms(torch.arange(count), draw, 2) for draw in (0, 1))
    assert first.min() >= 0
    assert first.max() < 1
    bins = torch.histc(first[:, 0], bins=100, min=0, max=1)
    chi_square = ((bins - count / 100) ** 2 / (count / 100)).sum()
    assert abs(chi_square - 99) < SIGMAS * (2 * 99) ** 0.5
    for one, other in (
        (first[:, 0], first[:, 1]),
        (first[:, 0], second[:, 0]),
        (first[:-1, 0], first[1:, 0]),
        (first[1:, 0], second[:-1, 0]),  # a draw is no shift of the samples
    ):
        correlation = torch.corrcoef(torch.stack((one, other)))[0, 1]
        assert abs(correlation) < SIGMAS / count**0.5
