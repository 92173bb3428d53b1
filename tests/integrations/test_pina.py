# pyright: reportMissingImports=false
"""Scripts of PINA train by natural gradients. Skipped, with a word, where PINA is not installed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pina = pytest.importorskip("pina", reason="needs PINA: pip install 'seng[pina]'")

from seng.errors import ModelError  # noqa: E402
from seng.integrations.capture import Recorder  # noqa: E402
from seng.integrations.pina import use_natural_gradient  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of lightning and PINA, of their own
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(default)


def poisson(points: int = 40) -> Any:
    """Delta u = -2 pi^2 sin(pi x) sin(pi y) in the unit square, u = 0 on its edge."""
    from pina import Condition
    from pina.domain import CartesianDomain
    from pina.equation import Equation
    from pina.operator import laplacian
    from pina.problem import SpatialProblem

    def equation(x: Any, u: Any) -> Any:
        source = torch.sin(math.pi * x.extract(["x"])) * torch.sin(math.pi * x.extract(["y"]))
        return laplacian(u, x, components=["u"], d=["x", "y"]) + 2 * math.pi**2 * source

    class Poisson(SpatialProblem):
        output_variables = ["u"]  # noqa: RUF012
        spatial_domain = CartesianDomain({"x": [0, 1], "y": [0, 1]})
        domains = {"inside": spatial_domain, "edge": spatial_domain.partial()}  # noqa: RUF012
        conditions = {  # noqa: RUF012
            "inside": Condition(domain="inside", equation=Equation(equation)),
            "edge": Condition(domain="edge", equation=Equation(lambda x, u: u)),
        }

    problem = Poisson()
    problem.discretise_domain(points, mode="random", domains=["inside"])
    problem.discretise_domain(20, mode="random", domains=["edge"])
    return problem


class Factor(nn.Module):
    """A network times a factor that is 0 on the edge, by the labels of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Any) -> Any:
        a, b = x.extract(["x"]), x.extract(["y"])
        return self.net(x.as_subclass(Tensor)) * a * (1 - a) * b * (1 - b)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1))


def solver_of(model: nn.Module, problem: Any, **options: Any) -> Any:
    from pina.solver import PhysicsInformedSingleModelSolver

    return PhysicsInformedSingleModelSolver(problem, model, **options)


def train(solver: Any, epochs: int, path: Any = None) -> Any:
    trainer = pina.Trainer(
        solver, max_epochs=epochs, shuffle=False, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    if path is None:
        trainer.train()
    else:
        trainer.fit(solver, datamodule=trainer.data_module, ckpt_path=path, weights_only=False)
    return trainer


def error(solver: Any) -> float:
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = solver(pina.LabelTensor(x, ["x", "y"])).as_subclass(Tensor)[:, 0]
    true = torch.sin(math.pi * x).prod(1)
    return float((got - true).norm() / true.norm())


@pytest.mark.parametrize("model", [network, Factor])
def test_script_trains(model: Any) -> None:
    solver = use_natural_gradient(solver_of(model(), poisson()))
    train(solver, 40)
    assert error(solver) < 0.05


def test_weights_of_conditions_are_followed() -> None:
    from pina.weighting import ScalarWeighting

    solver = solver_of(network(), poisson(), weighting=ScalarWeighting({"inside": 0.5, "edge": 30.0}))
    use_natural_gradient(solver)
    seen: list[dict[int, float]] = []
    begin = solver.optimizer.hook

    def hook(parameters: Any) -> None:
        begin(parameters)
        optimizer = solver.optimizer.instance
        plain = optimizer.recording

        @contextmanager
        def recording(recorder: Recorder) -> Iterator[None]:
            with plain(recorder):
                yield
            seen.append({len(weight): float(weight.sum()) for weight in recorder.weights})

        optimizer.recording = recording

    solver.optimizer.hook = hook
    train(solver, 1)
    assert seen[0] == {40: pytest.approx(0.5), 20: pytest.approx(30.0)}


def test_unknown_number_is_found() -> None:
    from pina import Condition, LabelTensor
    from pina.domain import CartesianDomain
    from pina.equation import Equation
    from pina.operator import grad
    from pina.problem import InverseProblem, TimeDependentProblem

    times = torch.linspace(0, 1, 8)[:, None]

    def decay(t: Any, u: Any, params_: Any) -> Any:
        return grad(u, t, components=["u"], d=["t"]) + params_["rate"] * u

    class Decay(TimeDependentProblem, InverseProblem):
        output_variables = ["u"]  # noqa: RUF012
        temporal_domain = CartesianDomain({"t": [0, 1]})
        unknown_parameter_domain = CartesianDomain({"rate": [0, 3]})
        domains = {"all": temporal_domain}  # noqa: RUF012
        conditions = {  # noqa: RUF012
            "all": Condition(domain="all", equation=Equation(decay)),
            "data": Condition(input=LabelTensor(times, ["t"]), target=LabelTensor(torch.exp(-0.5 * times), ["u"])),
        }

    problem = Decay()
    problem.discretise_domain(20, mode="grid", domains=["all"])
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    train(use_natural_gradient(solver_of(model, problem)), 40)
    assert float(problem.unknown_parameters["rate"].detach()) == pytest.approx(0.5, abs=1e-3)


def test_run_resumes_from_a_checkpoint_of_lightning(tmp_path: Any) -> None:
    problem, model = poisson(), network()
    begun = [p.detach().clone() for p in model.parameters()]
    train(use_natural_gradient(solver_of(model, problem)), 6)
    again = network()
    again.load_state_dict(dict(zip(again.state_dict(), begun, strict=True)))
    train(use_natural_gradient(solver_of(again, problem)), 3).save_checkpoint(tmp_path / "half.ckpt")
    resumed = network()
    train(use_natural_gradient(solver_of(resumed, problem)), 6, tmp_path / "half.ckpt")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_solvers_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ModelError, match="solver cannot be used"):
        use_natural_gradient(object())
    with pytest.raises(ModelError, match="loss is no mean squared error"):
        use_natural_gradient(solver_of(network(), poisson(), loss=nn.L1Loss()))
