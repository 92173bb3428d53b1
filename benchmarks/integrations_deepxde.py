"""Three standard problems in DeepXDE, for ``integrations.py``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import deepxde as dde  # pyright: ignore[reportMissingImports]
import numpy
import torch

from seng.apps.science.problems.burgers import VISCOSITY, cole_hopf
from seng.integrations.deepxde import natural_gradient

PI = numpy.pi
Run = Callable[[str, float], dict[str, float]]


class Limit(dde.callbacks.Callback):
    """Ends training after so many CPU seconds."""

    def __init__(self, seconds: float):
        super().__init__()
        self.end = time.process_time() + seconds

    def on_epoch_end(self) -> None:
        if time.process_time() >= self.end:
            self.model.stop_training = True


def solve(model: Any, weights: Any, unknown: list[Any], error: Callable[[], float]) -> Run:
    """Return the function that trains a model by a method."""

    def phase(optimizer: Any, seconds: float, **options: Any) -> None:
        model.compile(
            optimizer, loss_weights=weights, external_trainable_variables=unknown or None, verbose=0, **options
        )
        model.stop_training = False
        model.train(iterations=10**7, display_every=10**8, callbacks=[Limit(seconds)], verbose=0)

    def run(method: str, seconds: float) -> dict[str, float]:
        begun = time.process_time()
        if method == "natural":
            phase(natural_gradient(model, unknown), seconds)
        else:
            phase("adam", seconds / 2, lr=1e-3)
            dde.optimizers.set_LBFGS_options(maxiter=10**7, ftol=0, gtol=0)
            dde.optimizers.config.LBFGS_options |= {"iter_per_step": 20, "fun_per_step": 25}
            phase("L-BFGS", begun + seconds - time.process_time())
        return {"error": error(), "seconds": round(time.process_time() - begun, 2), "steps": model.train_state.step}

    return run


def relative(got: Any, true: Any) -> float:
    return float(numpy.linalg.norm(got - true) / numpy.linalg.norm(true))


def second(y: Any, x: Any, axis: int) -> Any:
    return dde.grad.hessian(y, x, i=axis, j=axis)


def burgers(seed: int) -> Run:
    """u_t + u u_x = 0.01/pi u_xx from -sin(pi x)."""
    prepare(seed)

    def equation(x: Any, u: Any) -> Any:
        first = dde.grad.jacobian(u, x, i=0, j=0), dde.grad.jacobian(u, x, i=0, j=1)
        return first[1] + u * first[0] - VISCOSITY * second(u, x, 0)

    domain = dde.geometry.GeometryXTime(dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1))
    conditions = [
        dde.icbc.DirichletBC(domain, lambda x: 0, lambda _, on: on),
        dde.icbc.IC(domain, lambda x: -numpy.sin(PI * x[:, :1]), lambda _, on: on),
    ]
    data = dde.data.TimePDE(domain, equation, conditions, num_domain=500, num_boundary=40, num_initial=60)
    model = dde.Model(data, dde.nn.FNN([2] + [20] * 3 + [1], "tanh", "Glorot normal"))
    grid = torch.cartesian_prod(torch.linspace(-1, 1, 101), torch.linspace(0, 1, 51))
    true = torch.func.vmap(cole_hopf)(grid).numpy()
    return solve(model, None, [], lambda: relative(model.predict(grid.numpy()), true))


def helmholtz(seed: int) -> Run:
    """-Delta u - k^2 u = k^2 sin(k x) sin(k y) in the unit square, k = 4 pi, u = 0 on its edge."""
    prepare(seed)
    k = 4 * PI

    def equation(x: Any, u: Any) -> Any:
        source = k**2 * torch.sin(k * x[:, :1]) * torch.sin(k * x[:, 1:])
        return -second(u, x, 0) - second(u, x, 1) - k**2 * u - source

    square = dde.geometry.Rectangle([0, 0], [1, 1])
    edge = dde.icbc.DirichletBC(square, lambda x: 0, lambda _, on: on)
    data = dde.data.PDE(square, equation, edge, num_domain=400, num_boundary=80)
    model = dde.Model(data, dde.nn.FNN([2] + [32] * 2 + [1], "tanh", "Glorot uniform"))
    points = numpy.random.default_rng(0).random((2000, 2))
    true = numpy.sin(k * points).prod(1, keepdims=True)
    return solve(model, [1, 100], [], lambda: relative(model.predict(points), true))


def inverse_diffusion(seed: int) -> Run:
    """C in u_t = C u_xx + f from ten values of u = exp(-t) sin(pi x), where C = 1."""
    prepare(seed)
    c = dde.Variable(2.0)

    def solution(x: Any) -> Any:
        return numpy.exp(-x[:, 1:]) * numpy.sin(PI * x[:, :1])

    def equation(x: Any, u: Any) -> Any:
        source = torch.exp(-x[:, 1:]) * (1 - PI**2) * torch.sin(PI * x[:, :1])
        return dde.grad.jacobian(u, x, i=0, j=1) - c * second(u, x, 0) + source

    domain = dde.geometry.GeometryXTime(dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1))
    measured = numpy.vstack((numpy.linspace(-1, 1, 10), numpy.ones(10))).T
    conditions = [
        dde.icbc.DirichletBC(domain, solution, lambda _, on: on),
        dde.icbc.IC(domain, solution, lambda _, on: on),
        dde.icbc.PointSetBC(measured, solution(measured)),
    ]
    data = dde.data.TimePDE(domain, equation, conditions, 200, 20, 20, anchors=measured)
    model = dde.Model(data, dde.nn.FNN([2] + [32] * 3 + [1], "tanh", "Glorot uniform"))
    return solve(model, None, [c], lambda: abs(c.item() - 1))


def prepare(seed: int) -> None:
    dde.config.set_default_float("float64")
    dde.config.set_random_seed(seed)


PROBLEMS = {"burgers": burgers, "helmholtz": helmholtz, "inverse-diffusion": inverse_diffusion}
