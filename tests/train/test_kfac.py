"""K-FAC beside dense Kronecker algebra in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seng.apps.train.kfac import KFAC, damped_inverses
from seng.errors import ModelError, OptionError

EXACT = 1e-10
SAMPLES, DAMPING, LR = 6, 0.05, 0.01


def linear(bias: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    layer = nn.Linear(3, 4, bias=bias)
    return nn.Sequential(layer), layer, torch.randn(SAMPLES, 3)


def on_positions(bias: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    layer = nn.Linear(3, 4, bias=bias)
    return nn.Sequential(layer), layer, torch.randn(SAMPLES, 5, 3)


def convolution(bias: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=bias)
    return nn.Sequential(layer, nn.Tanh()), layer, torch.randn(SAMPLES, 2, 5, 5)


MODELS = [linear, on_positions, convolution]


def mean_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum() / len(x)


def by_samples(model: nn.Module, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A and G from one backward pass a sample: [n, s, d] inputs and output gradients, summed in loops."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        seen.append(output)

    handle = layer.register_forward_hook(keep)
    width = layer.weight[0].numel() + (layer.bias is not None)  # type: ignore[index, operator, union-attr]
    a_sum, g_sum = torch.zeros(width, width), torch.zeros(len(layer.weight), len(layer.weight))  # type: ignore[arg-type]
    for sample in x.split(1):
        loss = mean_loss(model, sample)
        (g,) = torch.autograd.grad(loss, seen[-1])
        a = F.unfold(sample, 3, padding=1, stride=2)[0].T if isinstance(layer, nn.Conv2d) else sample.reshape(-1, 3)
        g = g[0].flatten(1).T if isinstance(layer, nn.Conv2d) else g.reshape(-1, 4)
        a = torch.cat([a, torch.ones(len(a), 1)], 1) if layer.bias is not None else a
        for one_a, one_g in zip(a, g, strict=True):
            a_sum += torch.outer(one_a, one_a) / len(x)
            g_sum += torch.outer(one_g, one_g) / (len(x) * len(a))
    handle.remove()
    return a_sum, g_sum


@pytest.fixture(autouse=True)
def doubles() -> object:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def stepped(model: nn.Module, x: Tensor, **options: float) -> KFAC:
    optimizer = KFAC(model, LR, momentum=0.0, damping=DAMPING, **{"decrease": 1e9, **options})  # type: ignore[arg-type]
    mean_loss(model, x).backward()
    optimizer.step()
    return optimizer


def flat(layer: nn.Module) -> Tensor:
    """The layer's parameters as one matrix, the bias its last column."""
    return torch.cat([p.detach().reshape(len(p), -1) for p in layer.parameters()], 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", MODELS)
def test_step_is_the_dense_kronecker_solve(make: object, bias: bool) -> None:
    model, layer, x = make(bias)  # type: ignore[operator]
    a, g = by_samples(model, layer, x)
    before = flat(layer)
    mean_loss(model, x).backward()
    gradient = torch.cat([p.grad.reshape(len(p), -1) for p in layer.parameters()], 1)  # type: ignore[union-attr]
    model.zero_grad()
    stepped(model, x)
    pi = (a.trace() / len(a) / (g.trace() / len(g))).sqrt()
    left, right = g + DAMPING**0.5 / pi * torch.eye(len(g)), a + pi * DAMPING**0.5 * torch.eye(len(a))
    dense = torch.linalg.solve(torch.kron(left, right), gradient.flatten()).reshape(gradient.shape)
    assert (before - flat(layer) - LR * dense).norm() <= EXACT * (LR * dense).norm()


@pytest.mark.parametrize("make", MODELS)
def test_predicted_decrease_is_capped_and_the_direction_kept(make: object) -> None:
    model, layer, x = make(True)  # type: ignore[operator]
    a, g = by_samples(model, layer, x)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    before = flat(layer)
    stepped(model, x)
    free = before - flat(layer)
    model.load_state_dict(start)
    model.zero_grad()
    predicted = float(free.flatten() @ torch.kron(g, a) @ free.flatten())
    stepped(model, x, decrease=predicted / 9)
    assert (before - flat(layer) - free / 3).norm() <= EXACT * free.norm()


def test_factored_damping_grows_the_inverses_alike() -> None:
    a, g = torch.diag(torch.tensor([4.0, 12.0])), torch.diag(torch.tensor([1.0, 3.0]))
    inverses = damped_inverses(a, g, 1.0)  # pi is 2
    assert torch.allclose(inverses[0], torch.diag(1 / torch.tensor([6.0, 14.0])))
    assert torch.allclose(inverses[1], torch.diag(1 / torch.tensor([1.5, 3.5])))


def test_other_parameters_are_left_to_others() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(2, 2, 1, groups=2))
    taken = {id(p) for group in KFAC(model, 0.1).param_groups for p in group["params"]}
    assert taken == {id(p) for p in model[0].parameters()}


def test_resumed_steps_are_the_same() -> None:
    def run(steps: list[int]) -> Tensor:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        data, state = torch.randn(10, SAMPLES, 3), None
        for part in steps:
            optimizer = KFAC(model, LR, refresh_every=3)
            if state is not None:
                optimizer.load_state_dict(state)
            for _ in range(part):
                optimizer.zero_grad()
                mean_loss(model, data[optimizer.param_groups[0]["step"]]).backward()
                optimizer.step()
            state = optimizer.state_dict()
        return flat(model[0])

    assert torch.equal(run([7]), run([4, 3]))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(OptionError, match="damping out of range"):
        KFAC(nn.Linear(2, 2), 0.1, damping=0.0)
    with pytest.raises(ModelError, match="no supported layer"):
        KFAC(nn.Bilinear(2, 2, 2), 0.1)
