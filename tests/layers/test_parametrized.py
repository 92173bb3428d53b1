"""Layers whose weight is computed from other parameters, against autograd sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

from seng import Preconditioner, verify
from seng.testing import check_direction

from .samples import check_samples
from .training import assert_all_of_it_trains

N = 5


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "two": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
    "bias": lambda layer: register_parametrization(layer, "bias", nn.Tanh()),
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 4), (2, 3)),
    "convolution": (lambda: nn.Conv2d(4, 2, 2, groups=2), (4, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose1d(2, 3, 2), (2, 3)),
}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_computed_weights_have_the_gradients_of_single_samples(wrap: str, layer: str, training: bool):
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    model = WRAPPED[wrap](make().double()).train(training)
    x = torch.randn(N, *shape, dtype=torch.float64)
    model(x)
    if wrap in ("spectral norm", "two") and training:
        before = {key: value.clone() for key, value in model.named_buffers()}

        def losses() -> Tensor:
            for key, value in model.named_buffers():  # each call iterates once, from the same start
                value.data.copy_(before[key])
            return model(x).tanh().square().flatten(1).sum(1)
    else:

        def losses() -> Tensor:
            return model(x).tanh().square().flatten(1).sum(1)

    check_samples(model, losses)


@pytest.mark.parametrize("frozen", ["original0", "original1"])
def test_computed_weights_match_autograd_with_a_frozen_parameter(frozen: str):
    torch.manual_seed(0)
    model = parametrizations.weight_norm(nn.Linear(3, 4).double())
    model.get_parameter(f"parametrizations.weight.{frozen}").requires_grad_(False)
    x = torch.randn(N, 3, dtype=torch.float64)
    check_samples(model, lambda: model(x).tanh().square().sum(1))


def test_a_parametrization_of_ones_own_is_covered_and_matches_the_oracle():
    torch.manual_seed(0)
    model = nn.Linear(3, 3).double()
    register_parametrization(model, "weight", Symmetric())
    x = torch.randn(N, 3, dtype=torch.float64)
    check_direction(model, lambda: model(x).tanh().square().sum(1).mean(), N, power=0.5)


@pytest.mark.parametrize("wrap", ["weight norm", "spectral norm"])
def test_models_with_computed_weights_train_and_verify(wrap: str):
    torch.manual_seed(0)
    model = nn.Sequential(WRAPPED[wrap](nn.Linear(3, 8)), nn.Tanh(), WRAPPED[wrap](nn.Linear(8, 1)))
    x = torch.randn(32, 3)

    def loss() -> Tensor:
        return (model(x) - x.prod(1, keepdim=True)).square().mean()

    report = verify(model, loss)
    assert report.ok, str(report)
    assert not report.passed_through
    assert_all_of_it_trains(model, loss)


def test_computed_tables_pass_through_with_their_reason():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Embedding(5, 3)), nn.Linear(3, 1))
    pre = Preconditioner(model)
    model(torch.arange(4)).square().mean().backward()
    with pytest.warns(UserWarning, match="0 .its weight is computed, and gradients of its lookups are not written out"):
        pre.step()
    pre.close()
