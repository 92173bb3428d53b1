"""Bare parameters that are added to activations, multiplied with them or expanded, against autograd by sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seng import Preconditioner, plan, verify
from seng.errors import OptionError
from seng.per_sample import Rows
from seng.testing import blocks_of

from .training import assert_all_of_it_trains

N, S, D = 5, 3, 4
ALL: dict[str, Any] = {"bare_parameters": ["*"]}


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(D) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class Tokens(nn.Module):
    """A class token, positions and a layer scale, as vision transformers have them, and a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, D)), nn.Parameter(torch.randn(1, S + 1, D))
        self.mix, self.scale = nn.Linear(D, D), Scale()
        self.shift, self.factor = nn.Parameter(torch.randn(S + 1, 1)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.scale(self.mix(x).tanh())
        return self.scale(x - self.shift.to(x.dtype)).mul(self.factor)


def _input() -> Tensor:
    return torch.randn(N, S, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().double()


def test_bare_parameters_have_the_gradients_of_single_samples(model: nn.Module):
    x = _input()
    blocks = set(blocks_of(model, **ALL))
    assert blocks == {"token", "positions", "mix", "scale.gamma", "shift", "factor"}
    layers = {name for name in blocks if name != "mix"}
    rows = _rows(model, x)
    assert layers <= set(rows)
    check = model(x).tanh().square().sum((1, 2))
    for name in layers:
        p = model.get_parameter(name)
        expected = torch.stack([torch.autograd.grad(one, p, retain_graph=True)[0].flatten() for one in check])
        torch.testing.assert_close(rows[name], expected, rtol=1e-10, atol=1e-12)


def _rows(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    pre = Preconditioner(model, estimator="exact", power=1.0, gradient_check=False, **ALL)
    model.zero_grad()
    model(x).tanh().square().sum((1, 2)).mean().backward()
    rows = {}
    for name, io in pre._capture.collect().layers.items():
        if isinstance(io, Rows):
            rows[name] = N * torch.cat(io.parts, 1)
    pre.close()
    return rows


def test_bare_parameters_are_left_where_nobody_names_them(model: nn.Module):
    assert set(blocks_of(model)) == {"mix"}
    assert set(blocks_of(model, bare_parameters=["*.gamma"])) == {"mix", "scale.gamma"}
    assert model.get_parameter("scale.gamma") is dict(model.named_parameters())["scale.gamma"]


def test_models_with_bare_parameters_train_and_verify():
    torch.manual_seed(0)
    model, x = Tokens(), _input().float()

    def loss() -> Tensor:
        return (model(x) - 1).square().mean()

    report = verify(model, loss, per_sample=True, **ALL)
    assert report.ok, str(report)
    assert not report.passed_through
    assert {row.name for row in plan(model, x, **ALL).rows} == set(blocks_of(model, **ALL))
    own = model.token
    assert_all_of_it_trains(model, loss, **ALL)
    assert model.token is own


class Elsewhere(nn.Module):
    """Reads its parameter in a way that no sample's gradient can be seen from."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(D, D)), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x @ self.table)


class Partly(Elsewhere):
    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.table.expand(len(x), -1, -1).mean(1)) @ self.table)


@pytest.mark.parametrize("kind", [Elsewhere, Partly])
def test_parameters_used_otherwise_pass_through(kind: type[nn.Module]):
    torch.manual_seed(0)
    model = kind()
    pre = Preconditioner(model, scale="gradient", **ALL)
    model(torch.randn(N, D)).square().mean().backward()
    grad = model.get_parameter("table").grad
    assert grad is not None
    before = grad.clone()
    with pytest.warns(UserWarning, match="table"):
        pre.step()
    assert "table" in pre.coverage().passed_through
    torch.testing.assert_close(grad, before)
    pre.close()


def test_a_forward_pass_that_fails_gives_the_parameter_back():
    class Failing(Scale):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("not today")

    model = nn.Sequential(nn.Linear(D, D), Failing())
    own = model.get_parameter("1.gamma")
    pre = Preconditioner(model, **ALL)
    with pytest.raises(RuntimeError, match="not today"):
        model(torch.randn(N, D))
    assert model.get_parameter("1.gamma") is own
    pre.close()


@pytest.mark.parametrize("value", ["*", [nn.Linear], 3])
def test_patterns_that_are_none_are_refused(value: Any):
    with pytest.raises(OptionError, match="bare_parameters out of range: expected a list of name patterns"):
        Preconditioner(nn.Linear(2, 2), bare_parameters=value)


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(OptionError, match="a pattern of bare_parameters matches no parameter: .*, got '.*gamma'"):
        Preconditioner(nn.Linear(2, 2), bare_parameters=["*.gamma"])
