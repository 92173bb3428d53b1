"""A small float64 model whose samples do not see each other, its batches, and what tests ask of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seng import SENG, Preconditioner
from seng.testing import loop_gradients

SAMPLES = 8
BLOCKS = ("0", "2")


def perceptron(seed: int = 0) -> nn.Sequential:
    """4 inputs, 5 hidden units, 3 outputs: blocks "0" with 25 and "2" with 18 parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(seed: int = 0, n: int = SAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, 3, generator=generator, dtype=torch.float64)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().sum(1).mean()


def backward(model: nn.Module, x: Tensor, y: Tensor, scale: float = 1.0) -> None:
    """Leave fresh gradients of the scaled mean loss."""
    model.zero_grad()
    (scale * loss_of(model, x, y)).backward()


def flat_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradient of each block, flattened, by name; a copy."""
    found = {}
    for name in BLOCKS:
        grads = [p.grad for p in model.get_submodule(name).parameters()]
        found[name] = torch.cat([g.detach().reshape(-1) for g in grads if g is not None])
    return found


def sample_rows(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Per-sample gradients of each block, from a loop over single samples."""
    return {
        name: loop_gradients(
            lambda i: loss_of(model, x[i : i + 1], y[i : i + 1]),
            list(model.get_submodule(name).parameters()),
            len(x),
        )
        for name in BLOCKS
    }


def directions(model: nn.Module, pre: Preconditioner, x: Tensor, y: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    """Backward and precondition; the direction of each block, flattened."""
    backward(model, x, y, scale)
    assert pre.step()
    return flat_gradients(model)


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare block by block, relative to the norm."""
    for name, wanted in expected.items():
        error = float((got[name] - wanted).norm() / wanted.norm())
        assert error <= tolerance, f"block {name}: relative error {error:.1e}"


def train(
    model: nn.Module, optimizer: SENG, steps: range, make: Callable[[int], tuple[Tensor, Tensor]] = batch
) -> None:
    """Train on the batches of the given steps."""
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, *make(step)).backward()
        optimizer.step()


def frozen(value: Any) -> Any:
    """Return a deep copy of a state with tensors as bytes, so that ``==`` asks for bit-equality."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), data.tolist()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    return value


def snapshot(model: nn.Module, optimizer: SENG | Preconditioner) -> Any:
    """Everything that must not change when something is refused: parameters, curvature, momentum, counters."""
    state = optimizer.state_dict()
    state = {
        key: value for key, value in state.items() if key not in ("state", "param_groups")
    }  # the same in another form
    return frozen([model.state_dict(), state])
