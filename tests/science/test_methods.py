"""Methods: SOAP against its formulas, and what every method of the table does."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seng.apps.science import METHODS, PROBLEMS, Problem
from seng.apps.science.methods import LBFGS, SOAP, Adam, Natural, Soap
from seng.apps.science.problem import DTYPE

ROUNDING = 1e-10  # float64, sums in another order
SETTINGS = 5  # that comparisons try

each_method = pytest.mark.parametrize("name", METHODS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def small() -> Problem:
    """The two-dimensional problem with few points and a small network."""
    problem = PROBLEMS["poisson-2d"]()
    points = {term: samples[::15] for term, samples in problem.draw(torch.Generator().manual_seed(0)).items()}
    return replace(problem, sizes=(2, 8, 1), draw=lambda _: points)


# -- SOAP -----------------------------------------------------------------------------------------------------------


def soap_by_its_formulas(w: Tensor, gradients: list[Tensor], lr: float, every: int) -> Tensor:
    """SOAP of one matrix, written down from the paper: averages kept whole, corrected for their start."""
    beta, eps = 0.95, 1e-8
    left, right = (
        torch.linalg.eigh(side).eigenvectors for side in (gradients[0] @ gradients[0].T, gradients[0].T @ gradients[0])
    )
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    sides = [torch.zeros(len(w), len(w), dtype=DTYPE), torch.zeros(w.shape[1], w.shape[1], dtype=DTYPE)]
    for k, g in enumerate(gradients, 1):
        sides = [beta * sides[0] + (1 - beta) * g @ g.T, beta * sides[1] + (1 - beta) * g.T @ g]
        m = beta * m + (1 - beta) * g
        v = beta * v + (1 - beta) * (left.T @ g @ right).square()
        scaled = (left.T @ m @ right) / (1 - beta**k) / ((v / (1 - beta**k)).sqrt() + eps)
        w = w - lr * left @ scaled @ right.T
        if k % every == 0:
            orders = [
                (q.T @ s @ q).diagonal().argsort(descending=True) for q, s in zip((left, right), sides, strict=True)
            ]
            v = v[orders[0]][:, orders[1]]
            left, right = (torch.linalg.qr(s @ q[:, o]).Q for q, s, o in zip((left, right), sides, orders, strict=True))
    return w


@pytest.mark.parametrize("every", [1, 2, 10])
def test_soap_follows_its_formulas(every: int) -> None:
    w, gradients = draw(4, 3), [draw(4, 3, seed=k) for k in range(1, 8)]
    p = nn.Parameter(w.clone())
    optimizer = SOAP([p], 0.1, refresh_every=every)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), soap_by_its_formulas(w, gradients, 0.1, every), rtol=ROUNDING, atol=ROUNDING)


def test_soap_of_a_vector_is_adam() -> None:
    ours, theirs = nn.Parameter(draw(5)), nn.Parameter(draw(5))
    optimizers = [SOAP([ours], 0.1), torch.optim.Adam([theirs], 0.1, betas=(0.95, 0.95))]
    for k in range(6):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = draw(5, seed=k + 1)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)


def test_soap_bases_stay_orthogonal_and_become_eigenvectors() -> None:
    p, g = nn.Parameter(draw(4, 3)), draw(4, 3, seed=1) * torch.tensor([1.0, 3.0, 9.0], dtype=DTYPE)
    optimizer = SOAP([p], 0.01, refresh_every=1)
    for k in range(40):
        p.grad = g + 0.1 * draw(4, 3, seed=2 + k % 3)
        optimizer.step()
    state = optimizer.state[p]
    for side, basis in zip(state["sides"], state["bases"], strict=True):
        turned = basis.T @ side @ basis
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=DTYPE), rtol=0, atol=ROUNDING)
        assert float((turned - turned.diag().diag()).norm()) < 0.05 * float(turned.norm())


def test_soap_does_not_see_a_rotation_of_the_weights() -> None:
    """What Adam lacks: turned weights give the turned run."""
    turn = torch.linalg.qr(draw(3, 3, seed=9)).Q
    runs = []
    for q in (torch.eye(3, dtype=DTYPE), turn):
        p = nn.Parameter(draw(4, 3) @ q)
        optimizer = SOAP([p], 0.1, refresh_every=2)
        for k in range(5):
            p.grad = draw(4, 3, seed=k + 1) @ q
            optimizer.step()
        runs.append(p.detach() @ q.T)
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-6, atol=1e-6)


# -- the table ------------------------------------------------------------------------------------------------------


@each_method
def test_method_lowers_the_loss_in_place(name: str) -> None:
    problem = small()
    net = problem.network(0)
    points = problem.draw(torch.Generator())
    before, pointer = problem.loss(net, points).item(), next(net.parameters()).data_ptr()
    step = METHODS[name]().start(problem, net, 0)
    taken = [step(points, k / 20) for k in range(20)]
    assert taken[0].loss == pytest.approx(before)
    assert problem.loss(net, points).item() < before
    assert next(net.parameters()).data_ptr() == pointer
    assert all((t.damping is not None) == (name == "natural") for t in taken)


@each_method
def test_comparisons_try_five_settings(name: str) -> None:
    method = METHODS[name]
    known = {field.name for field in fields(method)}
    assert len(method.tried) == SETTINGS
    assert len({str(method(**settings)) for settings in method.tried}) == SETTINGS
    assert all(set(settings) <= known for settings in method.tried)


@pytest.mark.parametrize("method", [Adam(lr=0.5), Soap(lr=0.5)])
def test_learning_rate_follows_half_a_cosine(method: Any) -> None:
    problem = small()
    step = method.start(problem, problem.network(0), 0)
    points = problem.draw(torch.Generator())
    rates = [step(points, spent).length for spent in (0.0, 0.5, 1.0, 1.2)]
    assert rates == pytest.approx([0.5, 0.25, 0.0, 0.0])


def test_natural_gradient_is_that_of_the_engine() -> None:
    from seng.func import NaturalGradient

    problem, options = small(), {"damping": 0.3, "momentum": 0.2, "line_search": "grid"}
    points = problem.draw(torch.Generator())
    nets = [problem.network(0), problem.network(0)]
    step = Natural(**options).start(problem, nets[0], 0)
    optimizer = NaturalGradient(nets[1], dict(problem.residuals), weights=dict(problem.weights), **options)
    for _ in range(3):
        taken, result = step(points, 0.0), optimizer.step(points)
        assert (taken.loss, taken.damping, taken.length) == (result.loss, result.damping, result.length)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_lbfgs_forgets_its_history_with_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    kind = torch.optim.LBFGS
    monkeypatch.setattr(torch.optim, "LBFGS", lambda *a, **k: made.append(1) or kind(*a, **k))
    problem = small()
    step = LBFGS().start(problem, problem.network(0), 0)
    points = problem.draw(torch.Generator())
    for _ in range(3):
        step(points, 0.0)
    assert len(made) == 1
    step({term: samples.clone() for term, samples in points.items()}, 0.0)
    assert len(made) == 2
