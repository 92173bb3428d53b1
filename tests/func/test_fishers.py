"""Each choice of Fisher against the matrix it stands for, from a loop over single samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from seng.errors import BatchError, OptionError
from seng.func import natural_gradient
from seng.func.fishers.sampled import label_at
from seng.func.rows import COPIES

from .reference import DTYPE, draw, flat, jacobian, network, parameters

EXACT = 1e-9  # float64, systems of condition up to 1e6
N, CLASSES, DAMPING = 8, 3, 0.05
NET = network(outputs=CLASSES)
X, Y = draw(N, 2), torch.arange(N) % CLASSES
P = sum(p.numel() for p in NET.parameters())
TIGHT = COPIES * 3 * P * DTYPE.itemsize


def empirical(net: Any, sample: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(net(sample[0]), sample[1])


def logits(net: Any, sample: tuple[Tensor, Tensor]) -> Tensor:
    return net(sample[0])


def solve(fisher: Tensor, gradient: Tensor) -> Tensor:
    return torch.linalg.solve(fisher + DAMPING * torch.eye(P, dtype=DTYPE), gradient)


def per_sample_gradients(labels: Tensor) -> Tensor:
    return jacobian([cross_entropy(NET(x), y) for x, y in zip(X, labels, strict=True)], parameters(NET))


@pytest.mark.parametrize("memory", [TIGHT, 2**30])
def test_empirical_fisher_is_that_of_the_samples_gradients(memory: int) -> None:
    u = per_sample_gradients(Y)
    d, info = natural_gradient(
        empirical, NET, (X, Y), fisher="empirical", damping=DAMPING, damping_mode="absolute", memory=memory
    )
    expected = solve(u.mT @ u / N, u.mean(0))
    torch.testing.assert_close(flat(d), expected, rtol=EXACT, atol=EXACT)
    assert info.loss == pytest.approx(cross_entropy(NET(X), Y).item(), rel=EXACT)
    assert info.slope == pytest.approx(float(u.mean(0) @ expected), rel=EXACT)


def labels_of(seed: int, step: int = 0) -> Tensor:
    from seng.sketch import generator_for

    chance = torch.rand(N, generator=generator_for(seed, step, "labels of residual"), dtype=DTYPE)
    return label_at(NET(X).detach(), chance)


@pytest.mark.parametrize("memory", [TIGHT, 2**30])
@pytest.mark.parametrize("per_sample", [True, False])
def test_sampled_fisher_has_the_true_gradient_and_drawn_rows(memory: int, per_sample: bool) -> None:
    rows = per_sample_gradients(labels_of(seed=4))
    g = per_sample_gradients(Y).mean(0)
    d, info = natural_gradient(
        logits, NET, (X, Y), fisher="sampled", damping=DAMPING, damping_mode="absolute", memory=memory, seed=4,
        per_sample=per_sample,
    )  # fmt: skip
    expected = solve(rows.mT @ rows / N, g)
    torch.testing.assert_close(flat(d), expected, rtol=EXACT, atol=EXACT)
    assert info.loss == pytest.approx(cross_entropy(NET(X), Y).item(), rel=EXACT)
    assert info.slope == pytest.approx(float(g @ expected), rel=EXACT)
    assert info.curvature == pytest.approx(float(expected @ rows.mT @ rows @ expected) / N, rel=EXACT)


def test_momentum_goes_with_a_sampled_fisher() -> None:
    rows, start = per_sample_gradients(labels_of(seed=0)), draw(P, seed=7)
    parts = start.split([p.numel() for p in NET.parameters()])
    previous = {n: part.view_as(p) for (n, p), part in zip(NET.named_parameters(), parts, strict=True)}
    d, _ = natural_gradient(
        logits, NET, (X, Y), fisher="sampled", damping=DAMPING, damping_mode="absolute", momentum=0.5, previous=previous
    )
    expected = solve(rows.mT @ rows / N, per_sample_gradients(Y).mean(0) + DAMPING * 0.5 * start)
    torch.testing.assert_close(flat(d), expected, rtol=EXACT, atol=EXACT)


def test_labels_follow_the_softmax() -> None:
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=DTYPE)
    draws = 20_000
    labels = label_at(scores.expand(draws, 4), draw(draws))
    share = torch.bincount(labels, minlength=4) / draws
    torch.testing.assert_close(share.to(DTYPE), scores.softmax(0), rtol=0, atol=4 * 0.5 / draws**0.5)  # 4 deviations


@pytest.mark.parametrize(("chance", "label"), [(0.0, 0), (0.999999999, 2), (0.34, 1)])
def test_labels_cover_the_ends(chance: float, label: int) -> None:
    assert int(label_at(torch.zeros(3, dtype=DTYPE), torch.tensor(chance, dtype=DTYPE))) == label


def test_gauss_newton_of_a_gaussian_model_is_its_empirical_gradient() -> None:
    """The gradient does not depend on the choice of Fisher."""
    huge = 1e10
    residual = lambda w, x: w @ x - 1  # noqa: E731
    w = draw(2, seed=1)
    first = natural_gradient(residual, w, X, damping=huge, damping_mode="absolute")[0]
    second = natural_gradient(
        lambda w, x: 0.5 * residual(w, x) ** 2, w, X, fisher="empirical", damping=huge, damping_mode="absolute"
    )[0]
    torch.testing.assert_close(huge * first, huge * second, rtol=EXACT, atol=EXACT)


def test_sampled_fisher_needs_pairs() -> None:
    with pytest.raises(BatchError, match=r"expected a pair \(inputs, targets\), got 'Tensor'"):
        natural_gradient(logits, NET, X, fisher="sampled")


def test_sampled_fisher_needs_damping() -> None:
    with pytest.raises(OptionError, match="expected a number > 0 with a sketch or a sampled Fisher, got 0"):
        natural_gradient(logits, NET, (X, Y), fisher="sampled", damping=0)
