"""Networks whose layers do not all see one row a sample: routed, joined, flattened, or trained in turn."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .family import Family, classes
from .tasks import (
    CLASSES,
    FLAT,
    SERIES,
    Batch,
    class_losses,
    pictures,
)

WIDTH = 16


class Adversaries(nn.Module):
    """A generator and a discriminator of points."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(2, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, 1))


def adversaries() -> Family:
    """Least squares, at rest where both agree; compared by the distance of the means of real and made points."""

    def task(n: int, generator: Generator) -> Batch:
        real = torch.randn(n, 2, generator=generator) * 0.2 + torch.tensor([0.6, -0.6])
        return real, torch.randn(n, 4, generator=generator)

    def told(model: Adversaries, real: Tensor, z: Tensor) -> Tensor:
        right, wrong = model.discriminator(real), model.discriminator(model.generator(z).detach())
        return ((right - 1).square() + (wrong + 1).square())[:, 0] / 4

    def fooled(model: Adversaries, real: Tensor, z: Tensor) -> Tensor:
        return model.discriminator(model.generator(z)).square()[:, 0] / 2

    def score(model: Adversaries, real: Tensor, z: Tensor) -> Tensor:
        return (model.generator(z).mean(0) - real.mean(0)).square().sum()

    return Family(Adversaries, task, {"discriminator": told, "generator": fooled}, score=score)


class Experts(nn.Module):
    """Each position goes to the expert that its router names: an expert sees as many rows as there happen to be."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.router = nn.Linear(SERIES[1], WIDTH), nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)) for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        rows = x.flatten(0, 1)
        weight, chosen = self.router(rows).softmax(1).max(1)
        out = rows
        for k, expert in enumerate(self.experts):
            (own,) = (chosen == k).nonzero(as_tuple=True)
            out = out.index_add(0, own, expert(rows[own]) * weight[own, None])
        return self.head(out.view_as(x).mean(1))


class Messages(nn.Module):
    """Message passing over one large graph made of a batch's small ones: rows are nodes or edges until the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(SERIES[1], WIDTH)
        self.message = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.update = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        n, size, _ = nodes.shape
        offset = (torch.arange(n) * size)[:, None, None]
        start, end = (edges + offset).transpose(0, 1).flatten(1)
        x = self.enter(nodes.flatten(0, 1))
        for message, update in zip(self.message, self.update, strict=True):
            sent = torch.relu(message(torch.cat([x[start], x[end]], 1)))
            received = torch.zeros_like(x).index_add(0, end, sent)
            x = x + torch.relu(update(torch.cat([x, received], 1)))
        return self.head(x.view(n, size, -1).mean(1))


def graph() -> Family:
    """Tells the class of a graph."""

    def task(n: int, generator: Generator) -> Batch:
        nodes, y = pictures(*SERIES)(n, generator)
        return nodes, torch.randint(SERIES[0], (n, 2, 12), generator=generator).sort(2).values, y

    return Family(Messages, task, lambda model, nodes, edges, y: class_losses(model(nodes, edges), y))


class Siamese(nn.Module):
    """One trunk for both inputs, called twice, or once on both ``joined`` in dimension 0."""

    def __init__(self, joined: bool = False):
        super().__init__()
        self.joined = joined
        self.trunk = nn.Sequential(nn.Linear(FLAT, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.trunk(torch.cat([x, y])).chunk(2) if self.joined else (self.trunk(x), self.trunk(y))
        return self.head((a - b).square())


def siamese(joined: bool = False) -> Family:
    """Tells whether two inputs are of one class."""

    def task(n: int, generator: Generator) -> Batch:
        (x, y), (other, z) = (pictures(FLAT)(n, generator) for _ in range(2))
        same = torch.rand(n, generator=generator) < 0.5
        return x, torch.where(same[:, None], x.roll(0) + 0.1 * other, other), (same | (y == z)).float()

    def losses(model: nn.Module, x: Tensor, y: Tensor, same: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x, y)[:, 0], same.to(x), reduction="none")

    return Family(lambda: Siamese(joined), task, losses)


class Tasks(nn.Module):
    """Two heads on a trunk; each sample has a label for one of them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(FLAT, WIDTH), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(2))

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        hidden = self.trunk(x)
        out = hidden.new_zeros(len(x), CLASSES)
        for k, head in enumerate(self.heads):
            (own,) = (which == k).nonzero(as_tuple=True)
            out = out.index_add(0, own, head(hidden[own]))
        return out


def tasks() -> Family:
    def task(n: int, generator: Generator) -> Batch:
        x, y = pictures(FLAT)(n, generator)
        which = torch.randint(2, (n,), generator=generator)
        return x, which, (y + which) % CLASSES

    return Family(Tasks, task, lambda model, x, which, y: class_losses(model(x, which), y))


class Frames(nn.Module):
    """Frames of a film in dimension 0 for the convolutions, films for what is behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
        self.think = nn.Sequential(nn.Linear(3 * 8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.think(self.look(x.flatten(0, 1)[:, None]).mean((2, 3)).view(len(x), -1))


class Windows(nn.Module):
    """Layers see windows of a sequence, several a sample, in dimension 0; the head sees samples."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inside = nn.Linear(SERIES[1], WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.enter(x).view(-1, 4, WIDTH)
        windows = windows + torch.relu(self.inside(self.norm(windows)))
        return self.head(windows.view(len(x), -1, WIDTH).mean(1))


class Depth(nn.Module):
    """Residual layers, each left out of half of the training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(FLAT, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            if not self.training or torch.rand(()) < 0.5:
                x = x + torch.relu(layer(x))
        return self.head(x)


ROUTED_NETWORKS: dict[str, Family] = {
    "gan": adversaries(),
    "experts": classes(Experts, *SERIES),
    "graph": graph(),
    "siamese": siamese(),
    "siamese-joined": siamese(joined=True),
    "tasks": tasks(),
    "frames": classes(Frames, 3, 6, 6),
    "windows": classes(Windows, *SERIES),
    "stochastic-depth": classes(Depth, FLAT),
}
