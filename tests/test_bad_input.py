"""What is refused, or survived, with everything as it was before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seng import SENG, Preconditioner, plan, verify
from seng.errors import BatchError, ModelError, OptionError, OrderError, SengError
from seng.solve import CholeskyState, DirectState, EigenState, FactorisationError

from .runs import backward, batch, directions, flat_gradients, loss_of, perceptron, sample_rows, snapshot, train
from .unsupported import Pairs, Slope

CALLS: dict[str, Callable[..., object]] = {
    "SENG()": SENG,
    "Preconditioner()": Preconditioner,
    "plan()": lambda model, **options: plan(model, torch.zeros(2, 4), **options),
    "verify()": lambda model, **options: verify(model, lambda: model(torch.zeros(2, 4)).sum(), **options),
}
each_call = pytest.mark.parametrize("call", CALLS)


def frozen_model() -> nn.Module:
    return perceptron().requires_grad_(False)


# -- models -----------------------------------------------------------------------------------------------------------


@each_call
@pytest.mark.parametrize(
    "thing", [None, 3.0, "model", [nn.Linear(4, 3)], nn.Linear, torch.ones(3), perceptron().parameters()]
)
def test_what_is_no_module_is_refused(call: str, thing: Any) -> None:
    with pytest.raises(
        OptionError, match=rf"^{call[:-2]}\(\): model out of range: expected a torch.nn.Module, got '\w+'"
    ):
        CALLS[call](thing)


@pytest.mark.parametrize("inputs", [None, 3.0, object(), iter([1])])
def test_plan_refuses_what_is_no_batch(inputs: Any) -> None:
    with pytest.raises(OptionError, match="inputs out of range: expected a tensor, or a sequence or mapping"):
        plan(perceptron(), inputs)


@each_call
@pytest.mark.parametrize("make", [nn.Module, nn.ReLU, nn.Sequential, frozen_model])
def test_model_without_trainable_parameters_is_refused(call: str, make: Callable[[], nn.Module]) -> None:
    expected = (
        rf"^{call[:-2]}\(\): the model has no trainable parameters: expected at least one, got '\w+'\. Pass a model"
    )
    with pytest.raises(ModelError, match=expected):
        CALLS[call](make())


@each_call
@pytest.mark.parametrize("make", [lambda: nn.GRUCell(4, 2), lambda: Slope(), lambda: Pairs(4, 4, 2)])
def test_model_without_supported_layers_is_refused(call: str, make: Callable[[], nn.Module]) -> None:
    with pytest.raises(
        ModelError, match=rf"^{call[:-2]}\(\): no supported layer: expected one of Linear, .*, got '\w+'\."
    ):
        CALLS[call](make())


@each_call
@pytest.mark.parametrize("options", [{"include": []}, {"exclude": [nn.Linear]}, {"exclude": ["*"]}])
def test_selection_that_leaves_nothing_is_refused(call: str, options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="no supported layer: .* check include and exclude"):
        CALLS[call](perceptron(), **options)


@each_call
def test_data_parallel_is_refused(call: str) -> None:
    expected = rf"^{call[:-2]}\(\): unsupported wrapper: expected .*, got 'DataParallel'\. Use torch.nn.parallel.Distri"
    with pytest.raises(ModelError, match=expected):
        CALLS[call](nn.DataParallel(perceptron()))


# -- order of calls and batches ---------------------------------------------------------------------------------------

AFTER = pytest.mark.parametrize("steps", [0, 1, 3], ids=["at first", "between refreshes", "later"])


def run_of(steps: int, **options: Any) -> tuple[nn.Sequential, SENG]:
    model = perceptron()
    optimizer = SENG(model, lr=0.05, refresh_every=2, **options)
    train(model, optimizer, range(steps))
    return model, optimizer


def refused(model: nn.Module, optimizer: SENG, error: type[SengError], match: str) -> None:
    before = snapshot(model, optimizer)
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    with pytest.raises(error, match=match):
        optimizer.step()
    assert snapshot(model, optimizer) == before
    for p, g in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None and g is None) or torch.equal(p.grad, g)  # type: ignore[arg-type]


@AFTER
def test_step_before_backward_is_refused(steps: int) -> None:
    model, optimizer = run_of(steps)
    optimizer.zero_grad()
    match = r"^step\(\): no gradients: expected \.grad on the model's parameters, got None\. Call loss\.backward\(\)"
    refused(model, optimizer, OrderError, match)
    model(batch(0)[0])  # a forward pass alone is not enough
    refused(model, optimizer, OrderError, match)
    train(model, optimizer, range(steps, steps + 2))


def test_hooks_placed_after_the_forward_pass_are_refused() -> None:
    model = perceptron()
    loss = loss_of(model, *batch(0))
    optimizer = SENG(model)
    loss.backward()
    refused(model, optimizer, OrderError, r"^step\(\): no layer was captured: expected a forward and backward pass")


def test_gradients_set_by_hand_before_any_capture_are_refused() -> None:
    model, optimizer = run_of(0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    refused(model, optimizer, OrderError, "no layer was captured")


def test_first_batch_of_one_sample_is_refused() -> None:
    model, optimizer = run_of(0)
    backward(model, *batch(0, n=1))
    match = r"^step\(\): the first batch is too small for curvature: expected at least 2 samples, got 1\. Use a larger"
    refused(model, optimizer, BatchError, match)
    train(model, optimizer, range(2))
    assert optimizer.stats()["0"].samples == 8


@pytest.mark.parametrize("order", ["previous", "current"])
def test_later_batch_of_one_sample_keeps_the_curvature(order: str) -> None:
    model, optimizer = run_of(2, curvature_batch=order)
    held = optimizer.state_dict()["preconditioner"]["curvature"]
    optimizer.zero_grad()
    loss_of(model, *batch(2, n=1)).backward()
    with pytest.warns(UserWarning, match="a refresh was put off: the batch had fewer than 2 samples"):
        optimizer.step()
    after = optimizer.state_dict()["preconditioner"]
    assert after["counters"]["small_batches"] == 1
    assert after["step"] == 3
    assert [entry["step"] for entry in after["curvature"].values()] == [entry["step"] for entry in held.values()]
    train(model, optimizer, range(3, 4))  # the refresh is made up for at once
    assert optimizer.stats()["0"].refresh_age == 0


def test_single_samples_can_be_accumulated() -> None:
    model, optimizer = run_of(0)
    x, y = batch(0)
    for i in range(2):
        (loss_of(model, x[i : i + 1], y[i : i + 1]) / 2).backward()
    optimizer.step()
    assert optimizer.stats()["0"].samples == 2


# -- curvature that cannot be factorised ------------------------------------------------------------------------------


def failing(*_: object, **__: object) -> None:
    raise FactorisationError("no factorisation of the Gram matrix converged")


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize(("order", "every"), [("previous", 1), ("current", 2)])
def test_failed_refresh_keeps_the_last_curvature(
    power: float, order: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = perceptron()
    pre = Preconditioner(model, power=power, refresh_every=every, curvature_batch=order)  # type: ignore[arg-type]
    directions(model, pre, *batch(0))
    if every == 2:
        directions(model, pre, *batch(0))
    held = pre.state_dict()["curvature"]
    other = perceptron()
    reference = Preconditioner(other, power=power, refresh_every=100)
    directions(other, reference, *batch(0))
    for solver in (CholeskyState, DirectState, EigenState):
        monkeypatch.setattr(solver, "factorise", failing)
    with pytest.warns(UserWarning, match="the curvature of layer 0 could not be factorised and is kept"):
        got = directions(model, pre, *batch(1))
    expected = directions(other, reference, *batch(1))
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert pre.counters["failed_refreshes"] == 2  # one a block
    assert pre.state_dict()["curvature"].keys() == held.keys()
    monkeypatch.undo()
    for _ in range(every):  # the next refresh is due an interval after the one that failed
        directions(model, pre, *batch(2))
    assert pre.stats()["0"].refresh_age == 0


def test_failed_first_refresh_leaves_plain_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    for solver in (CholeskyState, DirectState, EigenState):
        monkeypatch.setattr(solver, "factorise", failing)
    model = perceptron()
    pre = Preconditioner(model)
    backward(model, *batch(0))
    plain = flat_gradients(model)
    with pytest.warns(UserWarning, match="could not be factorised"):
        assert pre.step()
    assert all(torch.equal(g, plain[name]) for name, g in flat_gradients(model).items())
    assert pre.stats() == {}
    assert pre.counters["failed_refreshes"] == 2
    assert pre.steps == 1


def test_gram_that_overflows_leaves_plain_gradients() -> None:
    model = perceptron().float()
    pre = Preconditioner(model)
    x, y = (t.float() for t in batch(0))
    rows = sample_rows(model, x, y)
    traces = [float(own.square().sum(1).mean()) for own in rows.values()]
    squares = [float(own.mean(0).square().sum()) for own in rows.values()]
    scale = (torch.finfo(torch.float32).max / (min(traces) * max(squares)) ** 0.5) ** 0.5
    assert scale**2 * max(squares) < torch.finfo(torch.float32).max < scale**2 * min(traces)
    backward(model, x, y, scale)  # the squared norm of the mean is finite, the mean squared norm is not
    plain = flat_gradients(model)
    with pytest.warns(UserWarning, match="could not be factorised"):
        assert pre.step()
    assert all(torch.equal(g, plain[name]) for name, g in flat_gradients(model).items())


def test_rungs_of_the_ladder_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.linalg.cholesky_ex

    def broken(matrix: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        factor, info = real(matrix, **options)
        return factor, torch.ones_like(info)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", broken)
    model, other = perceptron(), perceptron()
    pre, exact = Preconditioner(model, power=1.0), Preconditioner(other, power=1.0, damping=lambda step: 0.1)
    got, expected = directions(model, pre, *batch(0)), directions(other, exact, *batch(0))
    assert pre.counters["ladder_rungs"] > 0
    for name, d in expected.items():
        assert (got[name] - d).norm() <= 1e-9 * d.norm()  # eigenvalues serve in place of the Cholesky factor


# -- gradients of nothing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("mode", ["relative", "absolute"])
def test_zero_gradients_stay_zero(power: float, mode: str) -> None:
    model = perceptron()
    optimizer = SENG(model, lr=0.1, power=power, damping_mode=mode, weight_decay=0.0)  # type: ignore[arg-type]
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        (loss_of(model, *batch(0)) * 0.0).backward()
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert not optimizer.preconditioner.counters.get("skipped_steps")


def test_curvature_recovers_from_a_batch_without_gradient() -> None:
    model = perceptron()
    pre = Preconditioner(model, refresh_every=1)
    directions_of_nothing(model, pre)
    directions(model, pre, *batch(0))
    got = directions(model, pre, *batch(1))
    assert all(d.isfinite().all() for d in got.values())
    assert pre.stats()["0"].trace > 0


def directions_of_nothing(model: nn.Module, pre: Preconditioner) -> None:
    backward(model, *batch(0), scale=0.0)
    assert pre.step()


def test_stats_of_nothing_are_finite() -> None:
    model = perceptron()
    pre = Preconditioner(model)
    directions_of_nothing(model, pre)
    for stats in pre.stats().values():
        assert stats.trace == 0.0
        assert stats.effective_dimension == 0.0
