"""Models called in unusual ways: several passes a step, masks beside samples, dictionaries, frozen or tied parts."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .family import Family, classes
from .networks import mlp
from .sequence_networks import Encoder, Translator, text_losses
from .tasks import (
    CLASSES,
    FLAT,
    LENGTH,
    NOISE,
    SERIES,
    VOCABULARY,
    Batch,
    class_losses,
    pictures,
    sequences,
    shifted_right,
    square_losses,
    texts,
    token_losses,
    translations,
)

WIDTH = 16


class Masked(Translator):
    """Called with masks [s, s], as nn.Transformer is: more arguments have dimensions of positions than of samples."""

    def forward(self, source: Tensor, target: Tensor, *masks: Tensor) -> Tensor:
        x, y = self.tokens(source), self.tokens(target)
        return self.head(self.body(x, y, *masks))


def masked() -> Family:
    def losses(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
        seen = nn.Transformer.generate_square_subsequent_mask(LENGTH).to(next(model.parameters()))
        every = torch.zeros_like(seen)
        return token_losses(model(source, shifted_right(target), every, seen, every), target)

    return Family(Masked, translations, losses)


class Dictionary(nn.Module):
    """Takes its batch as one dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        x = self.tokens(batch["tokens"]) + self.positions(torch.arange(LENGTH))
        return {"logits": self.head((torch.relu(self.norm(x)) * batch["mask"][..., None]).mean(1))}


def dictionary() -> Family:
    def losses(model: nn.Module, tokens: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        return class_losses(model({"tokens": tokens, "mask": mask})["logits"], y)

    return Family(Dictionary, texts, losses)


class Denoiser(nn.Module):
    """Predicts the noise that was added to a picture, told how much there was."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(4, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 8))
        self.norm, self.inside = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * torch.tensor([1.0, 3.0]).to(x)
        hidden = self.enter(x)
        shift = self.time(torch.cat([angles.sin(), angles.cos()], 1))[..., None, None]
        return self.leave(hidden + self.inside(F.silu(self.norm(hidden) + shift)))


def diffusion() -> Family:
    def task(n: int, generator: Generator) -> Batch:
        x, _ = pictures(1, 6, 6)(n, generator)
        return x, torch.rand(n, generator=generator), torch.randn(x.shape, generator=generator)

    def losses(model: nn.Module, x: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        mixed = x * (1 - time)[:, None, None, None] + noise * time[:, None, None, None]
        return square_losses(model(mixed, time), noise)

    return Family(Denoiser, task, losses)


def consistency() -> Family:
    """Two passes through one model for each sample, as in R-Drop."""

    def task(n: int, generator: Generator) -> Batch:
        x, y = pictures(FLAT)(n, generator)
        return x, x + NOISE * torch.randn(x.shape, generator=generator), y

    def losses(model: nn.Module, x: Tensor, again: Tensor, y: Tensor) -> Tensor:
        first, second = model(x), model(again)
        return class_losses(first, y) + (first - second).square().mean(1)

    return Family(mlp, task, losses)


class Student(nn.Module):
    """A network and a frozen copy of it whose output it follows."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = mlp().requires_grad_(False)
        self.student = deepcopy(mlp())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            told = self.teacher(x)
        return self.student(x), told


class Actor(nn.Module):
    """A policy and a value on one trunk, as in reinforcement learning."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(FLAT, WIDTH), nn.Tanh())
        self.policy, self.value = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.policy(hidden), self.value(hidden)


def actor() -> Family:
    def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        policy, value = model(x)
        reward = (policy.argmax(1) == y).to(x)
        advantage = (1 + reward - value[:, 0]).detach()
        return class_losses(policy, y) * advantage.abs() + 0.5 * (value[:, 0] - reward).square()

    return Family(Actor, pictures(FLAT), losses)


class Gathered(nn.Module):
    """A masked language model whose head sees the hidden positions alone, gathered in dimension 0."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mix = nn.Embedding(VOCABULARY, WIDTH), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.transform, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        x = torch.relu(self.mix(self.tokens(tokens).mT).mT)
        return self.head(self.norm(torch.relu(self.transform(x[hidden]))))


def gathered() -> Family:
    def task(n: int, generator: Generator) -> Batch:
        (tokens,) = sequences(n, generator)
        return tokens, torch.rand(tokens.shape, generator=generator) < 0.3

    def losses(model: nn.Module, tokens: Tensor, hidden: Tensor) -> Tensor:
        each = class_losses(model(tokens.where(~hidden, 0), hidden), tokens[hidden])
        return each.new_zeros(len(tokens)).index_add(0, hidden.nonzero()[:, 0], each) / 2

    return Family(Gathered, task, losses)


class Unpadded(nn.Module):
    """All layers see the tokens that are not padding, of all samples in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.inside, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        rows, owner = tokens[mask > 0], (mask > 0).nonzero()[:, 0]
        x = self.tokens(rows)
        x = x + torch.relu(self.inside(self.norm(x)))
        pooled = x.new_zeros(len(tokens), WIDTH).index_add(0, owner, x)
        return self.head(pooled / mask.sum(1, keepdim=True))


class Shared(nn.Module):
    """A projection of a table that has no samples, made by layers and added to every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.project = nn.Parameter(torch.randn(LENGTH, 4)), nn.Linear(4, WIDTH)
        self.enter, self.inside = nn.Linear(SERIES[1], WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x) + torch.tanh(self.project(self.table))
        return self.head(torch.relu(self.inside(x)).mean(1))


class Checkpointed(Encoder):
    """Recomputes its body in backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.deep = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(3))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for layer in self.deep:
            x = x + checkpoint(layer, x, use_reentrant=self.reentrant)
        return self.head((x * mask[..., None]).mean(1))


def half_frozen() -> nn.Module:
    """Return an MLP whose first layer is frozen, and of the next the weight."""
    model = mlp()
    model.get_submodule("0").requires_grad_(False)
    model.get_parameter("2.weight").requires_grad_(False)
    return model


def compiled() -> nn.Module:
    """Return an MLP with a compiled part."""
    model = mlp()
    model.add_module("0", cast(nn.Module, torch.compile(model.get_submodule("0"), backend="eager")))
    return model


PAIRED_NETWORKS: dict[str, Family] = {
    "transformer-masks": masked(),
    "dictionary": dictionary(),
    "diffusion": diffusion(),
    "consistency": consistency(),
    "student": Family(Student, pictures(FLAT), lambda model, x, y: square_losses(*model(x))),
    "actor": actor(),
    "gathered": gathered(),
    "unpadded": Family(Unpadded, texts, text_losses),
    "shared-projection": classes(Shared, *SERIES),
    "checkpointed": Family(lambda: Checkpointed(False), texts, text_losses),
    "checkpointed-reentrant": Family(lambda: Checkpointed(True), texts, text_losses),
    "half-frozen": classes(half_frozen, FLAT),
    "compiled-part": classes(compiled, FLAT),
}
