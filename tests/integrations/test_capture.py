"""Rows that are captured from a closure equal derivatives by loops, and whole runs work in a plain loop of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seng.errors import BatchError, OptionError, OrderError, StateError
from seng.integrations.capture import Recorder, capture, residuals
from seng.integrations.optimizer import NaturalGradientOptimizer

DTYPE = torch.float64
SAME = 1e-10  # the same derivatives, summed otherwise


class Loop:
    """A training loop as libraries have them: residuals of a batch, weighted mean squares, a closure."""

    def __init__(self, weights: tuple[float, float] = (1.0, 10.0), points: int = 6, seed: int = 0, outputs: int = 1):
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, outputs)).to(DTYPE)
        self.inside = torch.rand(points, 2, generator=generator, dtype=DTYPE)
        self.edge = torch.rand(4, 2, generator=generator, dtype=DTYPE)
        self.rate = torch.tensor(0.7, dtype=DTYPE, requires_grad=True)
        self.weights, self.mean_square = weights, lambda error: error.square().mean()

    def errors(self) -> list[Tensor]:
        x = self.inside.clone().requires_grad_()
        u = self.net(x)
        first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)[0]
        return [u * first[:, 1:] - self.rate * second[:, :1] + 1, self.net(self.edge) - 1]

    def closure(self) -> Tensor:
        for p in (*self.net.parameters(), self.rate):
            p.grad = None
        parts = [w * self.mean_square(error) for w, error in zip(self.weights, self.errors(), strict=True)]
        total = torch.stack(parts).sum()
        total.backward()
        return total.detach()

    @contextmanager
    def recording(self, recorder: Recorder) -> Iterator[None]:
        before, self.mean_square = self.mean_square, lambda error: recorder.square(error).mean()
        try:
            yield
        finally:
            self.mean_square = before

    def parameters(self) -> list[Tensor]:
        return [*self.net.parameters(), self.rate]

    def optimizer(self, **options: Any) -> NaturalGradientOptimizer:
        return NaturalGradientOptimizer(self.parameters(), self.net, self.recording, **options)

    def dense(self) -> tuple[Tensor, Tensor]:
        """Residuals and rows by one reverse pass for each number."""
        values, rows = [], []
        for weight, error in zip(self.weights, self.errors(), strict=True):
            factor = (2 * weight / error.numel()) ** 0.5
            for number in error.reshape(-1):
                grads = torch.autograd.grad(number, self.parameters(), retain_graph=True, allow_unused=True)
                flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self.parameters(), strict=True)]
                rows.append(factor * torch.cat([g.reshape(-1) for g in flat]))
                values.append(factor * number.detach())
        return torch.stack(values), torch.stack(rows)


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), st.integers(1, 9), st.integers(0, 1000), st.integers(1, 3)
)
def test_captured_rows_equal_a_loop_over_residuals(
    weights: tuple[float, float], points: int, seed: int, outputs: int
) -> None:
    loop = Loop(weights, points, seed, outputs)
    found = capture(loop.closure, loop.recording, loop.net, [loop.rate], check=True)
    r, rows = loop.dense()
    assert torch.allclose(found.r, r, rtol=SAME, atol=SAME * float(r.norm()))
    assert torch.allclose(found.rows, rows, rtol=SAME, atol=SAME * float(rows.norm()))
    assert torch.allclose(found.factors * residuals(loop.closure, loop.recording), r, rtol=SAME, atol=0)
    assert float(found.r.square().sum() / 2) == pytest.approx(loop.closure().item(), rel=SAME)


def test_capture_leaves_the_network_as_it_was() -> None:
    loop = Loop()
    before, keys = [p.detach().clone() for p in loop.parameters()], set(vars(loop.net))
    capture(loop.closure, loop.recording, loop.net, [loop.rate], check=True)
    assert set(vars(loop.net)) == keys
    assert all(torch.equal(p, q) for p, q in zip(before, loop.parameters(), strict=True))


def test_optimizer_lowers_the_loss_as_the_closure_computes_it() -> None:
    loop = Loop(points=30)
    optimizer, losses = loop.optimizer(), []
    for _ in range(25):
        losses.append(loop.closure().item())
        assert float(optimizer.step(loop.closure)) == pytest.approx(losses[-1], rel=SAME)
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 1e-3 * losses[0]
    assert loop.rate.item() != 0.7


def test_schedulers_set_the_step_length() -> None:
    loop = Loop()
    optimizer = loop.optimizer(lr=0.5, acceleration=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [1.0, 0.5, 0.0][step])
    lengths = []
    for _ in range(2):
        optimizer.step(loop.closure)
        assert optimizer.result is not None
        lengths.append(optimizer.result.length)
        scheduler.step()
    assert lengths == [0.5, 0.25]
    before = [p.detach().clone() for p in loop.parameters()]
    optimizer.step(loop.closure)  # the schedule ends at 0
    assert all(torch.equal(p, q) for p, q in zip(before, loop.parameters(), strict=True))


def test_run_resumes_bit_for_bit(tmp_path: Any) -> None:
    whole, first, second = Loop(), Loop(), Loop(seed=0)
    optimizer = whole.optimizer(momentum=0.3)
    for _ in range(8):
        optimizer.step(whole.closure)
    before = first.optimizer(momentum=0.3)
    for _ in range(3):
        before.step(first.closure)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for p, q in zip(second.parameters(), first.parameters(), strict=True):
            p.copy_(q)
    after = second.optimizer(momentum=0.3)
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(5):
        after.step(second.closure)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))


def test_state_of_another_optimizer_is_refused() -> None:
    loop = Loop()
    with pytest.raises(StateError, match="not a whole state"):
        loop.optimizer().load_state_dict(torch.optim.SGD(loop.parameters(), lr=0.1).state_dict())


def mixed(loop: Loop) -> None:
    plain = loop.errors
    loop.errors = lambda: [plain()[0] - plain()[0].mean(), plain()[1]]  # type: ignore[method-assign]


def penalised(loop: Loop) -> None:
    plain = loop.closure
    loop.closure = lambda: plain() + 1.0  # type: ignore[method-assign]


def negative(loop: Loop) -> None:
    loop.weights = (1.0, -1.0)


def beside_the_network(loop: Loop) -> None:
    plain = loop.errors
    loop.errors = lambda: [plain()[0] * loop.net[0].weight.sum(), plain()[1]]  # type: ignore[method-assign,operator]


@pytest.mark.parametrize(("spoil", "problem"), [
    (mixed, "depends on several points"),
    (penalised, "no sum of squared residuals"),
    (negative, "no sum of squared residuals"),
    (beside_the_network, "outside of the network's forward"),
])  # fmt: skip
def test_losses_that_are_no_squares_of_single_points_are_refused(spoil: Callable[[Loop], None], problem: str) -> None:
    loop = Loop()
    spoil(loop)
    before = [p.detach().clone() for p in loop.parameters()]
    with pytest.raises(BatchError, match=problem):
        loop.optimizer().step(loop.closure)
    assert all(torch.equal(p, q) for p, q in zip(before, loop.parameters(), strict=True))


def test_residuals_that_are_not_finite_are_skipped() -> None:
    loop = Loop()
    loop.inside[0, 0] = float("nan")
    optimizer = loop.optimizer()
    before = [p.detach().clone() for p in loop.parameters()]
    with pytest.warns(UserWarning, match="step skipped"):
        optimizer.step(loop.closure)
    assert all(torch.equal(p, q) for p, q in zip(before, loop.parameters(), strict=True))


def test_calls_in_the_wrong_order_are_refused() -> None:
    loop = Loop()
    optimizer = loop.optimizer()
    with pytest.raises(OrderError, match="no closure"):
        optimizer.step()
    optimizer.step(loop.closure)
    with pytest.raises(OrderError, match="steps have been taken"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})


@pytest.mark.parametrize(("options", "problem"), [
    ({"damping": -1.0}, "damping out of range"),
    ({"fisher": "empirical"}, "option cannot be used"),
    ({"weights": {"residual": 2.0}}, "option cannot be used"),
    ({"speed": 2.0}, "unknown option"),
])  # fmt: skip
def test_bad_options_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        Loop().optimizer(**options)


def test_network_without_some_of_its_parameters_is_refused() -> None:
    loop = Loop()
    optimizer = NaturalGradientOptimizer(list(loop.net[2].parameters()), loop.net, loop.recording)
    with pytest.raises(OptionError, match="parameters of the network are left out"):
        optimizer.step(loop.closure)
