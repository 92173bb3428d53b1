"""What a family of models is to the sweep, and how one is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from .tasks import Batch, Task, class_losses, pictures, square_losses

Losses = Callable[..., Tensor]  # (model, *batch) -> [n], one loss a sample


@dataclass(frozen=True)
class Family:
    """A model, a task that SGD learns, and the losses of its samples.

    Args:
        build: Makes the model; draws its weights from torch's global generator.
        task: Draws a batch.
        losses: Per-sample losses; by name of the submodule that each trains, where several are trained in turn.
        apart: Whether each sample's loss is its own: independent of which samples are beside it.
        score: What is compared after training, of one batch; the (last) loss by default.
    """

    build: Callable[[], nn.Module]
    task: Task
    losses: Losses | Mapping[str, Losses]
    apart: bool = True
    score: Callable[..., Tensor] | None = None

    @property
    def players(self) -> Mapping[str, Losses]:
        return self.losses if isinstance(self.losses, Mapping) else {"": self.losses}

    def made(self, seed: int) -> nn.Module:
        """Return a model whose weights are the seed's."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build()

    def train(self, seed: int, optimizer: Callable[[nn.Module], Optimizer], steps: int, n: int) -> list[float]:
        """Return the score of each of the steps."""
        model, generator = self.made(seed), Generator().manual_seed(seed)
        optimizers = {name: optimizer(model.get_submodule(name)) for name in self.players}
        scores = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _ in range(steps):
                batch = self.task(n, generator)
                scores.append(self._step(model, batch, optimizers))
        return scores

    def _step(self, model: nn.Module, batch: Batch, optimizers: Mapping[str, Optimizer]) -> float:
        score = float("nan")
        for name, losses in self.players.items():
            optimizers[name].zero_grad()
            loss = losses(model, *batch).mean()
            loss.backward()
            optimizers[name].step()
            score = loss.item()
        if self.score is None:
            return score
        with torch.no_grad():
            return self.score(model, *batch).item()


def classes(build: Callable[[], nn.Module], *shape: int) -> Family:
    """A classifier of inputs of a shape."""
    return Family(build, pictures(*shape), lambda model, x, y: class_losses(model(x), y))


def copies(build: Callable[[], nn.Module], *shape: int) -> Family:
    """A model that returns its input."""
    return Family(build, pictures(*shape), lambda model, x, y: square_losses(model(x), x))
