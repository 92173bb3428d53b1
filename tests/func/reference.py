"""The dense reference: rows by a loop over torch.autograd.grad, directions by solves with p x p matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DTYPE = torch.float64


def network(seed: int = 0, width: int = 6, inputs: int = 2, outputs: int = 1) -> nn.Sequential:
    """A small smooth network whose initial weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))
        return nn.Sequential(*layers).to(DTYPE)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def parameters(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def flat(tensors: Any) -> Tensor:
    tensors = tensors.values() if isinstance(tensors, dict) else tensors
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def jacobian(outputs: list[Tensor], params: list[Tensor]) -> Tensor:
    """Rows by one backward pass for each number."""
    rows = []
    for output in outputs:
        for number in output.reshape(-1):
            if not number.requires_grad:
                rows.append(torch.zeros(sum(p.numel() for p in params), dtype=number.dtype))
                continue
            grads = torch.autograd.grad(number, params, retain_graph=True, allow_unused=True)
            rows.append(flat([torch.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True)]))
    return torch.stack(rows)


@dataclass(frozen=True)
class Dense:
    """J and r, scaled as the package says."""

    j: Tensor
    r: Tensor

    @property
    def loss(self) -> float:
        return 0.5 * self.r.square().sum().item()

    @property
    def gradient(self) -> Tensor:
        return self.j.mT @ self.r

    def damping(self, relative: float) -> float:
        return relative * self.j.square().sum().item() / len(self.r)

    def direction(self, damping: float, start: Tensor | None = None) -> Tensor:
        """(J^T J + lambda I)^-1 (g + lambda s): the minimiser of |J d - r|^2 + lambda |d - s|^2."""
        fisher = self.j.mT @ self.j + damping * torch.eye(self.j.shape[1], dtype=self.j.dtype)
        start = torch.zeros_like(self.gradient) if start is None else start
        return torch.linalg.solve(fisher, self.gradient + damping * start)


def dense(
    functions: dict[str, Callable[[Tensor], Tensor]],
    batch: dict[str, Tensor],
    params: list[Tensor],
    weights: dict[str, float] | None = None,
) -> Dense:
    """Evaluate ordinary functions of one sample, sample by sample, with ordinary autograd."""
    rows, residuals = [], []
    for name, fn in functions.items():
        outputs = [fn(sample) for sample in batch[name]]
        j = jacobian(outputs, params)
        scale = ((weights or {}).get(name, 1.0) / len(j)) ** 0.5
        rows.append(scale * j)
        residuals.append(scale * torch.cat([output.detach().reshape(-1) for output in outputs]))
    return Dense(torch.cat(rows), torch.cat(residuals))


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """d y / d x for a number y, by ordinary reverse mode, differentiable again."""
    return torch.autograd.grad(y, x, create_graph=True)[0]
