"""Families of our own: plain torch modules, used as people use them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .family import Family, classes, copies
from .tasks import (
    CLASSES,
    FLAT,
    PICTURE,
    Batch,
    pictures,
    square_losses,
)

WIDTH = 16


class UNet(nn.Module):
    """Down and up again, with a skip, batch norm and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.leave = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.enter(x)
        return self.leave(torch.cat([wide, self.up(self.down(wide))], 1))


class Mixer(nn.Module):
    """One block of MLP-Mixer: a layer over positions, one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.places = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
        self.channels = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = x + self.places(self.norm[0](x).mT).mT
        x = x + self.channels(self.norm[1](x))
        return self.head(x.mean(1))


class Variational(nn.Module):
    """A variational autoencoder; the noise is part of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FLAT, WIDTH), nn.Tanh())
        self.mean, self.spread = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)
        self.decoder = nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), nn.Linear(WIDTH, FLAT))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        hidden = self.encoder(x)
        mean, spread = self.mean(hidden), self.spread(hidden)
        out = self.decoder(mean + noise * (spread / 2).exp())
        return square_losses(out, x) + 0.05 * (mean.square() + spread.exp() - spread - 1).mean(1)


def variational() -> Family:
    def task(n: int, generator: Generator) -> Batch:
        return pictures(FLAT)(n, generator)[0], torch.randn(n, 3, generator=generator)

    return Family(Variational, task, lambda model, x, noise: model(x, noise))


class Equilibrium(nn.Module):
    """One layer used over and over until its output no longer changes much."""

    def __init__(self) -> None:
        super().__init__()
        self.inject, self.layer, self.head = nn.Linear(FLAT, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        u = self.inject(x)
        z = torch.zeros_like(u)
        for _ in range(8):
            z = torch.tanh(self.layer(z) * 0.5 + u)
        return self.head(z)


class TiedAutoencoder(nn.Module):
    """The decoder multiplies with the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.shift = nn.Linear(FLAT, 6), nn.Parameter(torch.zeros(FLAT))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.T, self.shift)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, as LoRA has it; the layer is frozen."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 4 * self.up(self.down(x))


class Modulated(nn.Module):
    """FiLM: scale and shift of a batch-normalised layer come from a second input, its class's embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(FLAT, WIDTH), nn.BatchNorm1d(WIDTH, affine=False)
        self.film, self.leave = nn.Embedding(CLASSES, 2 * WIDTH), nn.Linear(WIDTH, FLAT)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = self.film(y).chunk(2, 1)
        return self.leave(torch.tanh(self.norm(self.enter(x)) * (1 + scale) + shift))


class Gain(nn.Module):
    """A normalisation of one's own, with a parameter that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.gain


def mlp(
    activation: Callable[[], nn.Module] = nn.ReLU, wrap: Callable[[nn.Linear], nn.Module] = lambda x: x
) -> nn.Module:
    layers = [wrap(nn.Linear(FLAT, WIDTH)), activation(), wrap(nn.Linear(WIDTH, WIDTH)), activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def sound() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 8, 5, stride=2), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv1d(8, 16, 5, stride=2, groups=2), nn.GELU(),
        nn.Conv1d(16, 16, 1), nn.BatchNorm1d(16), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(16, CLASSES),
    )  # fmt: skip


def pixels() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(16, 16, 2),
        nn.InstanceNorm2d(16, affine=True), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


NETWORKS: dict[str, Family] = {
    "mlp": classes(mlp, FLAT),
    "convolutions": classes(pixels, *PICTURE),
    "convolutions-1d": classes(sound, 1, 32),
    "autoencoder": copies(lambda: nn.Sequential(nn.Linear(FLAT, 6), nn.SELU(), nn.Linear(6, FLAT)), FLAT),
    "unet": copies(UNet, *PICTURE),
    "mixer": classes(Mixer, *PICTURE),
    "variational": variational(),
    "equilibrium": classes(Equilibrium, FLAT),
    "tied-autoencoder": copies(TiedAutoencoder, FLAT),
    "prelu": classes(lambda: mlp(nn.PReLU), FLAT),
    "weight-norm": classes(lambda: mlp(wrap=parametrizations.weight_norm), FLAT),
    "spectral-norm": classes(lambda: mlp(wrap=parametrizations.spectral_norm), FLAT),
    "adapters": classes(lambda: mlp(wrap=Adapted), FLAT),
    "modulated": Family(Modulated, pictures(FLAT), lambda model, x, y: square_losses(model(x, y), x)),
    "own-norm": classes(lambda: mlp(lambda: nn.Sequential(Gain(), nn.Tanh())), FLAT),
}
