"""Statistics and coverage against dense eigenvalues of F and directions as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seng import SENG, Preconditioner
from seng.diagnostics import TOP
from seng.testing import dense_direction

from .runs import BLOCKS, backward, batch, directions, flat_gradients, perceptron, sample_rows
from .unsupported import Pairs

ACCURACY = 1e-9  # float64 eigenvalues of small matrices, relative
TRUNCATED = 1e-3  # what truncation may change, in units of the damping


def fisher(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("options", [{}, {"damping_mode": "absolute", "damping": 0.3}, {"estimator": "truncated"}])
def test_stats_match_dense_eigenvalues(power: float, options: dict[str, Any]) -> None:
    model = perceptron()
    rows = sample_rows(model, *batch(0))
    pre = Preconditioner(model, power=power, **options)
    directions(model, pre, *batch(0))
    tolerance = TRUNCATED if options.get("estimator") == "truncated" else ACCURACY
    for name, stats in pre.stats().items():
        values = torch.linalg.eigvalsh(fisher(rows[name])).flip(0)
        trace = float(values.sum())
        damping = 0.3 if options.get("damping_mode") == "absolute" else 0.1 * trace / 8
        assert stats.trace == pytest.approx(trace, rel=ACCURACY)
        assert stats.damping == pytest.approx(damping, rel=ACCURACY)
        assert stats.effective_dimension == pytest.approx(
            float((values / (values + damping)).sum()), rel=10 * tolerance
        )
        assert stats.top_eigenvalues == pytest.approx(values[:TOP].tolist(), rel=ACCURACY)
        held = torch.cat([stats.spectrum, values.new_zeros(8 - len(stats.spectrum))])
        torch.testing.assert_close(held, values[:8], rtol=0, atol=tolerance * trace)  # 8 samples, the rest is 0
        assert stats.samples == 8
        assert stats.nbytes > 0
        assert (stats.refresh_age, stats.skipped_steps) == (0, 0)


def test_span_surrounds_the_refresh_of_each_block() -> None:
    model, opened = perceptron(), []
    pre = Preconditioner(model, refresh_every=2)

    @contextmanager
    def span(name: str) -> Iterator[None]:
        held = len(pre.stats())
        yield
        opened.append((name, held, len(pre.stats())))

    pre.span = span
    for step in range(3):
        directions(model, pre, *batch(step))
    first, later = [("refresh", 0, 1), ("refresh", 1, 2)], [("refresh", 2, 2)] * 2
    assert opened == [*first, *later]


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("order", ["previous", "current"])
@pytest.mark.parametrize("every", [1, 2])
def test_cosine_is_that_of_the_last_direction(power: float, order: str, every: int) -> None:
    model = perceptron()
    pre = Preconditioner(model, power=power, curvature_batch=order, refresh_every=every)  # type: ignore[arg-type]
    for step in range(4):
        x, y = batch(step)
        backward(model, x, y)
        plain = flat_gradients(model)
        got = directions(model, pre, x, y)
        for name in BLOCKS:
            cosine = float(torch.cosine_similarity(plain[name], got[name], dim=0))
            assert pre.stats()[name].cosine == pytest.approx(cosine, rel=ACCURACY)


def test_cosine_is_unknown_before_the_first_use() -> None:
    model = perceptron()
    pre = Preconditioner(model)
    assert pre.stats() == {}
    directions(model, pre, *batch(0))
    state = pre.state_dict()
    pre.load_state_dict(state)
    assert pre.stats()["0"].cosine is None


def test_refresh_age_counts_steps_since_the_refresh() -> None:
    model = perceptron()
    pre = Preconditioner(model, refresh_every=3)
    ages = []
    for step in range(7):
        directions(model, pre, *batch(step))
        ages.append(pre.stats()["2"].refresh_age)
    assert ages == [0, 1, 2, 0, 1, 2, 0]


def test_damping_reported_is_the_one_of_the_last_step() -> None:
    model = perceptron()
    pre = Preconditioner(model, damping=lambda step: 1.0 + step, damping_mode="absolute", refresh_every=5)
    for step in range(3):
        directions(model, pre, *batch(step))
        assert pre.stats()["0"].damping == pytest.approx(1.0 + step)


def test_stats_explain_the_direction() -> None:
    model = perceptron()
    x, y = batch(0)
    rows = sample_rows(model, x, y)
    pre = Preconditioner(model, power=1.0)
    got = directions(model, pre, x, y)
    backward(model, x, y)
    for name, g in flat_gradients(model).items():
        expected = dense_direction(rows[name], g, damping=pre.stats()[name].damping, relative=False)
        assert (got[name] - expected).norm() <= ACCURACY * expected.norm()


class Mixed(nn.Module):
    """Covered, excluded, unsupported, unused and loose parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.idle, self.odd = nn.Linear(4, 4), Pairs(2, 2, 2)
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.body(x)) * self.gain
        return self.odd(y, y)


def test_coverage_names_every_parameter_with_a_reason() -> None:
    model = Mixed()
    pre = Preconditioner(model, exclude=["head"])
    before = pre.coverage()
    assert before.preconditioned["body.weight"] == "to be chosen at the first refresh"
    model(torch.randn(6, 4)).sum().backward()
    with pytest.warns(UserWarning, match="the batch did not use these layers, they pass through: idle"):
        assert pre.step()
    cover = pre.coverage()
    assert set(cover.preconditioned) == {"body.weight", "body.bias"}
    assert cover.preconditioned["body.weight"].startswith("operator: ")
    assert cover.passed_through == {
        "head.weight": "excluded",
        "head.bias": "excluded",
        "odd.weight": "Pairs is not supported",
        "odd.bias": "Pairs is not supported",
        "gain": "Mixed is not supported",
        "idle.weight": "no batch has used it yet",
        "idle.bias": "no batch has used it yet",
    }
    names = dict(model.named_parameters())
    assert set(names) == set(cover.preconditioned) | set(cover.passed_through)
    assert cover.share == pytest.approx(20 / sum(p.numel() for p in names.values()))
    text = str(cover)
    assert "gain         passes through: Mixed is not supported" in text
    assert text.endswith(f"{cover.share:.1%} of the trainable parameters are preconditioned")


def test_coverage_survives_a_checkpoint() -> None:
    model = perceptron()
    pre = Preconditioner(model)
    directions(model, pre, *batch(0))
    pre.load_state_dict(pre.state_dict())
    assert pre.coverage().share == 1.0


def test_optimizer_hands_the_reports_on() -> None:
    model = perceptron()
    optimizer = SENG(model, include=["0"])
    backward(model, *batch(0))
    optimizer.step()
    assert optimizer.stats() == optimizer.preconditioner.stats()
    assert optimizer.coverage() == optimizer.preconditioner.coverage()
    assert optimizer.coverage().passed_through["2.weight"] == "not included"
