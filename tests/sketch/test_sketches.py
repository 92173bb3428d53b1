"""The laws of every sketch in the table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng.sketch import SKETCHES, Identity, Sampling, Sketch, draw, generator_for
from seng.sketch.row_norm import inclusion_probabilities

from .unbiased import is_unbiased

ROUNDING = 1e-12  # float64, sums of a few dozen terms
PROBABILITY = 1e-9  # of the sum of inclusion probabilities

every_sketch = pytest.mark.parametrize("name", SKETCHES)


def columns(d: int, n: int = 4) -> Tensor:
    """U [d, n] whose rows have very different norms."""
    u = torch.randn(d, n, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    return u * torch.logspace(0, 1.5, d, dtype=torch.float64)[:, None]


def sketched_gram(sketch: Sketch, u: Tensor) -> Tensor:
    rows = sketch(u.T)
    return rows @ rows.T


@every_sketch
@pytest.mark.parametrize("q", [1, 9])
def test_sketched_gram_is_unbiased(name: str, q: int) -> None:
    u = columns(12)
    assert is_unbiased(lambda generator: sketched_gram(draw(name, q, generator, u.square().sum(1)), u), u.T @ u)


@every_sketch
def test_mean_of_s_transposed_s_is_the_identity(name: str) -> None:
    scores, eye = columns(9).square().sum(1), torch.eye(9, dtype=torch.float64)
    assert is_unbiased(lambda generator: sketched_gram(draw(name, 4, generator, scores), eye), eye)


@every_sketch
def test_unbiasedness_check_rejects_a_sketch_five_percent_off(name: str) -> None:
    u = columns(12)
    scores = u.square().sum(1)
    assert not is_unbiased(lambda generator: sketched_gram(draw(name, 8, generator, scores), u * 0.95), u.T @ u)


def test_unbiasedness_check_rejects_the_scale_of_the_released_code() -> None:
    u = columns(12)

    def too_large(generator: torch.Generator) -> Tensor:
        sketch = SKETCHES["uniform"](12, 8, generator, u.square().sum(1))
        assert isinstance(sketch, Sampling)
        return sketched_gram(Sampling(sketch.index, sketch.weight**2), u)

    assert not is_unbiased(too_large, u.T @ u)


@every_sketch
@pytest.mark.parametrize("q", [12, 13, 400])
def test_full_size_sketch_is_the_identity(name: str, q: int) -> None:
    x = columns(12).T
    sketch = draw(name, q, torch.Generator(), torch.ones(12))
    assert isinstance(sketch, Identity)
    assert sketch.size == 12
    assert torch.equal(sketch(x), x)


@every_sketch
def test_draw_follows_its_generator(name: str) -> None:
    x, scores = columns(30).T, torch.rand(30, generator=torch.Generator().manual_seed(3))
    one, same, other = (draw(name, 7, torch.Generator().manual_seed(k), scores)(x) for k in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@every_sketch
@settings(max_examples=20, deadline=None)
@given(d=st.integers(2, 40), share=st.floats(0.05, 0.99), batch=st.sampled_from([(), (3,), (2, 3)]))
def test_sketch_is_linear_along_the_last_axis(name: str, d: int, share: float, batch: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(d)
    q = max(1, int(share * d))
    sketch = draw(name, q, generator, torch.rand(d, generator=generator))
    x, y = (torch.randn(*batch, d, generator=generator, dtype=torch.float64) for _ in range(2))
    assert sketch.size == q
    assert sketch(x).shape == (*batch, q)
    torch.testing.assert_close(sketch(2 * x - 3 * y), 2 * sketch(x) - 3 * sketch(y), rtol=ROUNDING, atol=100 * ROUNDING)
    matrix = sketch(torch.eye(d, dtype=torch.float64)).T
    torch.testing.assert_close(sketch(x), x @ matrix.T, rtol=ROUNDING, atol=100 * ROUNDING)


@every_sketch
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sketch_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    assert draw(name, 3, torch.Generator(), torch.ones(9))(torch.ones(2, 9, dtype=dtype)).dtype == dtype


@every_sketch
def test_sketch_of_nothing_is_drawn(name: str) -> None:
    sketch = draw(name, 3, torch.Generator().manual_seed(0), torch.zeros(9))
    assert sketch(torch.zeros(2, 9)).abs().sum() == 0
    assert sketch(torch.ones(2, 9)).isfinite().all()


@settings(max_examples=100, deadline=None)
@given(scores=st.lists(st.floats(0, 1e12), min_size=2, max_size=30), share=st.floats(0.01, 0.99))
def test_inclusion_probabilities_sum_to_the_size(scores: list[float], share: float) -> None:
    q = max(1, int(share * len(scores)))
    probability = inclusion_probabilities(torch.tensor(scores, dtype=torch.float64), q)
    assert abs(float(probability.sum()) - q) <= PROBABILITY * q
    assert (probability > 0).all()
    assert (probability <= 1).all()


def test_inclusion_probabilities_grow_with_the_scores() -> None:
    probability = inclusion_probabilities(torch.tensor([1.0, 2.0, 3.0, 100.0], dtype=torch.float64), 2)
    assert (probability.diff() > 0).all()
    assert float(probability[-1]) == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_row_norm_keeps_certain_rows_and_repeats_none(seed: int) -> None:
    scores = torch.ones(20)
    scores[[4, 11]] = 1e6
    sketch = SKETCHES["row_norm"](20, 6, torch.Generator().manual_seed(seed), scores)
    assert isinstance(sketch, Sampling)
    picked = sketch.index.tolist()
    assert {4, 11} <= set(picked)
    assert len(set(picked)) == 6
    weight = dict(zip(picked, sketch.weight.tolist(), strict=True))
    assert weight[4] == weight[11] == 1.0


def test_row_norm_varies_less_than_uniform_rows_where_norms_differ() -> None:
    u = columns(40)
    truth, scores = u.T @ u, u.square().sum(1)

    def error(name: str) -> float:
        generator = torch.Generator().manual_seed(0)
        return sum(float((sketched_gram(draw(name, 10, generator, scores), u) - truth).norm()) for _ in range(200))

    assert error("row_norm") < 0.3 * error("uniform")  # 0.19 for this seed


def test_generator_depends_on_seed_step_and_name() -> None:
    keys = [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 11, "a"), (1, 1, "1/a")]
    draws = [torch.rand(4, generator=generator_for(*key)) for key in keys]
    assert len({tuple(values.tolist()) for values in draws}) == len(keys)
    assert torch.equal(draws[0], torch.rand(4, generator=generator_for(0, 0, "a")))


def test_generator_is_the_same_in_every_process_and_release() -> None:
    state = 0xCBF29CE484222325  # FNV-1a of the key below; a change would break resumed runs
    for byte in b"3/14/layers.0":
        state = (state ^ byte) * 0x100000001B3 % 2**64
    assert generator_for(3, 14, "layers.0").initial_seed() == state % 2**63 == 3448798030906489015
