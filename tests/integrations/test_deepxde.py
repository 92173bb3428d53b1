"""Scripts of DeepXDE train by natural gradients. Skipped, with a word, where DeepXDE is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from seng.errors import BatchError, ModelError
from seng.integrations.capture import capture
from seng.integrations.deepxde import natural_gradient, place_of

SAME = 1e-9  # the same derivatives, summed otherwise


@pytest.fixture
def dde(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("DDE_BACKEND", "pytorch")
    module = pytest.importorskip("deepxde", reason="needs DeepXDE: pip install 'seng[deepxde]'")
    default = torch.get_default_dtype()
    module.config.set_default_float("float64")
    module.config.set_random_seed(0)
    yield module
    torch.set_default_dtype(default)


def problem(dde: Any, conditions: Any = None, width: int = 8) -> Any:
    """-Delta u = 2 pi^2 sin(pi x) sin(pi y)."""

    def equation(x: Any, u: Any) -> Any:
        second = [dde.grad.hessian(u, x, i=axis, j=axis) for axis in (0, 1)]
        return second[0] + second[1] + 2 * numpy.pi**2 * torch.sin(numpy.pi * x).prod(1, keepdim=True)

    square = dde.geometry.Rectangle([0, 0], [1, 1])
    edge = [dde.icbc.DirichletBC(square, lambda x: 0, lambda _, on: on)] if conditions is None else conditions(square)
    data = dde.data.PDE(square, equation, edge, num_domain=40, num_boundary=24)
    return dde.Model(data, dde.nn.FNN([2, width, width, 1], "tanh", "Glorot normal"))


def dense(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals and rows by one reverse pass for each number, through DeepXDE's own losses."""
    errors: list[torch.Tensor] = []

    def keep(target: Any, output: Any) -> Any:
        errors.append((output - target) * (2 / len(output)) ** 0.5)
        return output.square().mean()

    x = torch.as_tensor(model.data.train_x).requires_grad_()
    model.data.losses_train(None, model.net(x), keep, x, model)
    parameters, rows = list(model.net.parameters()), []
    values = torch.cat([error.reshape(-1) for error in errors])
    for number in values:
        grads = torch.autograd.grad(number, parameters, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
        rows.append(torch.cat([g.reshape(-1) for g in flat]))
    return values.detach(), torch.stack(rows)


def several(dde: Any) -> Any:
    """Conditions of several kinds, one of them of pairs of points."""
    return lambda square: [
        dde.icbc.DirichletBC(square, lambda x: 0, lambda x, on: on and x[1] < 1e-9),
        dde.icbc.PeriodicBC(square, 0, lambda x, on: on and min(x[0], 1 - x[0]) < 1e-9),
        dde.icbc.NeumannBC(square, lambda x: 0, lambda x, on: on and x[1] > 1 - 1e-9),
        dde.icbc.PointSetBC(numpy.array([[0.3, 0.4], [0.5, 0.5]]), numpy.array([[1.0], [2.0]])),
    ]


def closure_of(model: Any) -> Any:
    kept = []
    model.opt = SimpleNamespace(step=kept.append, zero_grad=model.net.zero_grad)
    model.train_step(*model.data.train_next_batch())
    return kept[0]


@pytest.mark.parametrize("conditions", [None, several])
def test_captured_rows_equal_a_loop_over_residuals(dde: Any, conditions: Any) -> None:
    model = problem(dde, None if conditions is None else conditions(dde), width=4)
    optimizer = natural_gradient(model)
    model.compile(optimizer, verbose=0)
    found = capture(closure_of(model), optimizer.recording, model.net, [], check=True)
    r, rows = dense(model)
    assert torch.allclose(found.r, r, rtol=SAME, atol=SAME * float(r.norm()))
    assert torch.allclose(found.rows, rows, rtol=SAME, atol=SAME * float(rows.norm()))


def test_script_trains_with_the_loss_that_deepxde_reports(dde: Any) -> None:
    model = problem(dde)
    optimizer = natural_gradient(model)
    model.compile(optimizer, loss_weights=[1, 10], verbose=0)
    history, _ = model.train(iterations=40, display_every=1, verbose=0)
    totals = numpy.array([sum(parts) for parts in history.loss_train])
    assert (numpy.diff(totals) <= 0).all()
    assert optimizer.result is not None
    assert optimizer.result.loss_after == pytest.approx(totals[-1], rel=SAME)
    x = numpy.random.default_rng(0).random((200, 2))
    true = numpy.sin(numpy.pi * x).prod(1, keepdims=True)
    assert numpy.linalg.norm(model.predict(x) - true) < 0.02 * numpy.linalg.norm(true)


def test_hard_constraints_and_features_are_followed(dde: Any) -> None:
    model = problem(dde, lambda square: [])
    model.net.apply_feature_transform(lambda x: torch.cat([x, torch.sin(numpy.pi * x)], 1)[:, 2:])
    model.net.apply_output_transform(lambda x, u: (x * (1 - x)).prod(1, keepdim=True) * u)
    model.compile(natural_gradient(model), verbose=0)
    model.train(iterations=25, display_every=25, verbose=0)
    x = numpy.random.default_rng(0).random((200, 2))
    true = numpy.sin(numpy.pi * x).prod(1, keepdims=True)
    assert numpy.linalg.norm(model.predict(x) - true) < 0.02 * numpy.linalg.norm(true)


def test_points_are_resampled_and_step_lengths_decay(dde: Any) -> None:
    model = problem(dde)
    optimizer = natural_gradient(model, lr=0.8, acceleration=False)
    model.compile(optimizer, decay=("step", 5, 0.5), verbose=0)
    model.data.train_distribution = "pseudo"  # the default draws the same points each time
    before = model.data.train_x.copy()
    resampler = dde.callbacks.PDEPointResampler(period=4)
    model.train(iterations=8, display_every=8, callbacks=[resampler], verbose=0)
    assert not numpy.array_equal(before, model.data.train_x)
    assert optimizer.result is not None
    assert optimizer.result.length == 0.4


def test_function_is_fitted(dde: Any) -> None:
    data = dde.data.Function(dde.geometry.Interval(-1, 1), lambda x: numpy.sin(3 * x), 30, 10)
    model = dde.Model(data, dde.nn.FNN([1, 8, 8, 1], "tanh", "Glorot normal"))
    model.compile(natural_gradient(model), verbose=0)
    model.train(iterations=30, display_every=30, verbose=0)
    x = numpy.linspace(-1, 1, 50)[:, None]
    assert numpy.abs(model.predict(x) - numpy.sin(3 * x)).max() < 1e-2


def test_residual_of_several_points_is_refused(dde: Any) -> None:
    data = dde.data.PDE(dde.geometry.Interval(0, 1), lambda x, u: u - u.mean() - x, [], num_domain=9)
    model = dde.Model(data, dde.nn.FNN([1, 4, 1], "tanh", "Glorot normal"))
    model.compile(natural_gradient(model), verbose=0)
    with pytest.raises(BatchError, match="depends on several points"):
        model.train(iterations=1, verbose=0)


def test_unknown_number_is_found(dde: Any) -> None:
    rate = dde.Variable(2.0)
    line = dde.geometry.TimeDomain(0, 1)
    times = numpy.linspace(0, 1, 8)[:, None]
    data = dde.data.PDE(
        line, lambda t, u: dde.grad.jacobian(u, t) + rate * u,
        [dde.icbc.PointSetBC(times, numpy.exp(-0.5 * times))], num_domain=20, num_boundary=2,
    )  # fmt: skip
    model = dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot normal"))
    model.compile(natural_gradient(model, rate), external_trainable_variables=rate, verbose=0)
    model.train(iterations=40, display_every=40, verbose=0)
    assert float(rate.detach()) == pytest.approx(0.5, abs=1e-3)


def test_run_resumes_from_what_deepxde_saves(dde: Any, tmp_path: Any) -> None:
    whole = problem(dde)
    whole.compile(natural_gradient(whole), verbose=0)
    whole.train(iterations=4, display_every=4, verbose=0)
    path = whole.save(str(tmp_path / "model"), verbose=0)
    points = whole.data
    whole.train(iterations=3, display_every=3, verbose=0)
    again = dde.Model(points, problem(dde).net)
    again.compile(natural_gradient(again), verbose=0)
    again.restore(path, verbose=0)
    again.train(iterations=3, display_every=3, verbose=0)
    assert all(torch.equal(p, q) for p, q in zip(whole.net.parameters(), again.net.parameters(), strict=True))


def test_other_losses_are_refused(dde: Any) -> None:
    model = problem(dde)
    model.compile(natural_gradient(model), loss="MAE", verbose=0)
    with pytest.raises(BatchError, match="loss is no mean squared error"):
        model.train(iterations=1, verbose=0)


# -- without DeepXDE ------------------------------------------------------------------------------------------------


class PDE:
    num_bcs = (3, 2)


@pytest.mark.parametrize(("net", "data", "problem"), [
    (object(), PDE(), "not a PyTorch network"),
    (nn.Linear(1, 1), object(), "data cannot be used"),
])  # fmt: skip
def test_models_that_cannot_be_used_are_refused(net: Any, data: Any, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        natural_gradient(SimpleNamespace(net=net, data=data))


def test_regularizer_is_refused() -> None:
    net = nn.Linear(1, 1)
    net.regularizer = ("l2", 1e-3)  # type: ignore[assignment]
    with pytest.raises(ModelError, match="the network has a regularizer"):
        natural_gradient(SimpleNamespace(net=net, data=PDE()))


def test_inputs_of_conditions_come_first() -> None:
    numbers = list(range(10))
    places = [numbers[place_of(k, 4, [3, 2])] for k in range(4)]
    assert places == [numbers[5:], numbers[5:], numbers[:3], numbers[3:5]]
