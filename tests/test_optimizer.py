"""SENG as a torch optimizer: closures, skipped steps, schedulers and scalers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seng import SENG
from seng.errors import OptionError

from .runs import BLOCKS, assert_close, batch, loss_of, perceptron, snapshot, train

SAME = 1e-9  # float64, the same run with scaled losses


def without_skips(state: Any) -> Any:
    """A snapshot without the count of skipped steps."""
    parameters, optimizer = state
    optimizer["preconditioner"]["counters"].pop("skipped_steps", None)
    return [parameters, optimizer]


def trained(steps: int = 3, **options: Any) -> tuple[nn.Module, SENG]:
    model = perceptron()
    optimizer = SENG(model, lr=0.05, refresh_every=2, **options)
    train(model, optimizer, range(steps))
    return model, optimizer


def test_training_lowers_the_loss() -> None:
    model = perceptron()
    optimizer = SENG(model, lr=0.1, refresh_every=2)
    before = loss_of(model, *batch(0)).item()
    train(model, optimizer, range(30), make=lambda step: batch(0))
    assert loss_of(model, *batch(0)).item() < 0.5 * before


def test_step_calls_the_closure_first_and_returns_its_loss() -> None:
    model, other = perceptron(), perceptron()
    optimizer, plain = SENG(model, lr=0.05), SENG(other, lr=0.05)
    x, y = batch(0)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    train(other, plain, range(1))
    assert isinstance(first, Tensor)
    assert first.item() == loss_of(perceptron(), x, y).item()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert optimizer.preconditioner.steps == 1


def test_step_without_closure_returns_nothing() -> None:
    model = perceptron()
    optimizer = SENG(model)
    loss_of(model, *batch(0)).backward()
    assert optimizer.step() is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("steps", [0, 1, 3], ids=["first step", "between refreshes", "refresh step"])
def test_closure_with_a_bad_loss_is_skipped(bad: float, steps: int) -> None:
    model, optimizer = trained(steps)
    before = snapshot(model, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, *batch(steps)) * bad
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match=r"^seng: a step was skipped: the loss is not finite\. Counted in `counters`"):
        assert optimizer.step(closure) is not None
    assert without_skips(snapshot(model, optimizer)) == without_skips(before)
    assert optimizer.preconditioner.counters["skipped_steps"] == 1


def test_closure_may_return_a_float() -> None:
    model = perceptron()
    optimizer = SENG(model)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(model, *batch(0))
        loss.backward()
        return loss.item()

    assert isinstance(optimizer.step(closure), float)
    assert optimizer.preconditioner.steps == 1


SPOILERS = {
    "input": lambda model, x, y: (x.fill_(float("nan")), y),
    "infinite input": lambda model, x, y: (x.fill_(float("inf")), y),
    "one input": lambda model, x, y: (x.index_fill_(0, torch.tensor([3]), float("nan")), y),
    "target": lambda model, x, y: (x, y.index_fill_(0, torch.tensor([2]), float("inf"))),
}


@pytest.mark.parametrize("spoiled", SPOILERS)
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("order", ["previous", "current"])
def test_bad_batch_is_skipped_and_changes_nothing(spoiled: str, steps: int, order: str) -> None:
    model, optimizer = trained(steps, curvature_batch=order)
    before = snapshot(model, optimizer)
    x, y = SPOILERS[spoiled](model, *batch(steps))
    optimizer.zero_grad()
    loss_of(model, x, y).backward()
    with pytest.warns(UserWarning, match=r"^seng: a step was skipped: a gradient is not finite\."):
        optimizer.step()
    assert without_skips(snapshot(model, optimizer)) == without_skips(before)
    assert optimizer.preconditioner.counters["skipped_steps"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["covered", "passing"])
def test_one_bad_gradient_entry_skips_the_step(bad: float, where: str) -> None:
    model, optimizer = trained(3, exclude=["2"])
    before = snapshot(model, optimizer)
    optimizer.zero_grad()
    loss_of(model, *batch(3)).backward()
    parameter = model.get_parameter("0.weight" if where == "covered" else "2.bias")
    assert parameter.grad is not None
    parameter.grad.view(-1)[-1] = bad
    gradients, stats = [copy.deepcopy(p.grad) for p in model.parameters()], optimizer.stats()
    with pytest.warns(UserWarning, match="a gradient is not finite"):
        optimizer.step()
    assert without_skips(snapshot(model, optimizer)) == without_skips(before)
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients, rtol=0, atol=0, equal_nan=True)
    assert {name: replace(own, skipped_steps=0) for name, own in optimizer.stats().items()} == stats


def test_skipped_steps_are_warned_of_once_and_counted() -> None:
    model, optimizer = trained(1)

    def skip(times: int) -> None:
        for _ in range(times):
            optimizer.zero_grad()
            (loss_of(model, *batch(1)) * float("nan")).backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="step was skipped") as seen:
        skip(3)
    assert len(seen) == 1
    assert optimizer.preconditioner.counters["skipped_steps"] == 3
    assert {stats.skipped_steps for stats in optimizer.stats().values()} == {3}


@pytest.mark.filterwarnings("ignore:seng. a step was skipped")
def test_run_goes_on_after_a_skipped_step_as_if_it_had_not_been() -> None:
    model, optimizer = trained(3)
    other, unspoiled = trained(3)
    optimizer.zero_grad()
    (loss_of(model, *batch(9)) * float("nan")).backward()
    optimizer.step()
    train(model, optimizer, range(3, 7))
    train(other, unspoiled, range(3, 7))
    assert without_skips(snapshot(model, optimizer)) == without_skips(snapshot(other, unspoiled))


@pytest.mark.parametrize("option", ["lr", "momentum", "weight_decay", "nesterov", "base_options"])
def test_base_settings_out_of_range_are_refused(option: str) -> None:
    bad: dict[str, tuple[Any, ...]] = {
        "lr": (
            -0.1,
            float("nan"),
            float("inf"),
            "0.1",
            True,
            10**400,
            torch.tensor([0.1, 0.2]),
            torch.tensor(-1.0),
            torch.tensor(1),
        ),
        "momentum": (-0.1, 1.0, 2, float("nan"), "0.9", None),
        "weight_decay": (-1e-4, float("nan"), float("inf"), None),
        "base_options": ([1], "betas", 3),
    }
    if option == "nesterov":
        with pytest.raises(OptionError, match=r"^SENG\(\): nesterov out of range: expected False where momentum is 0"):
            SENG(perceptron(), momentum=0.0, nesterov=True)
    for value in bad.get(option, ()):
        given: dict[str, Any] = {option: value}
        with pytest.raises(OptionError, match=rf"^SENG\(\): {option} out of range: expected .*, got "):
            SENG(perceptron(), **given)


@pytest.mark.parametrize("value", [0, 0.0])
def test_learning_rate_of_zero_moves_nothing(value: float) -> None:
    model = perceptron()
    before = [p.detach().clone() for p in model.parameters()]
    train(model, SENG(model, lr=value), range(2))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_parameters_in_place_of_the_model_are_refused() -> None:
    with pytest.raises(
        OptionError, match=r"model out of range: expected a torch.nn.Module, got 'generator'\. Pass the"
    ):
        SENG(perceptron().parameters())  # type: ignore[arg-type]


def test_grad_scaler_gives_the_unscaled_run() -> None:
    def run(scaler: torch.amp.GradScaler | None) -> dict[str, Tensor]:  # type: ignore[name-defined]
        model = perceptron()
        optimizer = SENG(model, lr=0.05, refresh_every=2, grad_scaler=scaler)
        for step in range(5):
            optimizer.zero_grad()
            loss = loss_of(model, *batch(step))
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        return {name: model.get_parameter(f"{name}.weight").detach() for name in BLOCKS}

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    assert_close(run(scaler), run(None), SAME)
    assert scaler.get_scale() > 2.0**8  # the scale changed on the way


def test_grad_scaler_that_skips_a_step_leaves_seng_ready() -> None:
    model, optimizer = trained(2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer.preconditioner.options = optimizer.preconditioner.options.with_(grad_scaler=scaler)
    before = snapshot(model, optimizer)
    optimizer.zero_grad()
    scaler.scale(loss_of(model, *batch(2)) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert snapshot(model, optimizer) == before
    optimizer.zero_grad()
    scaler.scale(loss_of(model, *batch(2))).backward()
    scaler.step(optimizer)
    assert optimizer.preconditioner.steps == 3
    assert optimizer.stats()["0"].samples == 8  # the skipped batch was forgotten


def test_zero_grad_forgets_what_was_captured() -> None:
    model = perceptron()
    optimizer = SENG(model)
    loss_of(model, *batch(0)).backward()
    optimizer.zero_grad()
    loss_of(model, *batch(1)).backward()
    optimizer.step()
    assert optimizer.stats()["0"].samples == 8


def test_close_removes_the_hooks() -> None:
    model = perceptron()
    optimizer = SENG(model)
    optimizer.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_parameter_groups_are_the_bases_own() -> None:
    optimizer = SENG(perceptron(), lr=0.3)
    optimizer.param_groups[0]["lr"] = 0.0
    assert optimizer.bases[0].param_groups[0]["lr"] == 0.0
    assert isinstance(optimizer, torch.optim.Optimizer)
