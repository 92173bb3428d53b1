"""Colour pictures as bytes: kept, varied and moved so, and made numbers only where the network is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from .base import Split
from .draws import uniforms

MARGIN = 4


@runtime_checkable
class PictureSplit(Split, Protocol):
    """A split whose batches are bytes until they are scaled: a quarter of the memory to move to a GPU.

    ``batch(indices, draw)`` gives the pictures of ``pixels(indices, draw)`` after ``scaled``.
    """

    def pixels(self, indices: Int[Tensor, " n"], draw: int = 0) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        """Return some samples as bytes, with their classes."""
        ...

    def scaled(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Return pictures as the network wants them, on the device where they are."""
        ...


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each channel, for pixel values from 0 to 1."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def __call__(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Return (pixels / 255 - mean) / deviation."""
        values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        mean, deviation = (values.new_tensor(part).mul(255).view(3, 1, 1) for part in (self.mean, self.deviation))
        return values.sub_(mean).div_(deviation)


@dataclass(frozen=True)
class StoredPictures:
    """Pictures held in memory.

    Attributes:
        pictures: one a sample.
        targets: their classes.
        scale: mean and deviation of the channels.
        augment: whether each draw shifts a picture by up to four pixels (black comes in) and mirrors half of them.
    """

    pictures: UInt8[Tensor, "m 3 h w"]
    targets: Int[Tensor, " m"]
    scale: Scale
    augment: bool = False

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.targets)

    def pixels(self, indices: Int[Tensor, " n"], draw: int = 0) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        """Return some samples as bytes, varied if they are to be, with their classes."""
        pictures = self.pictures[indices]
        if self.augment:
            pictures = shifted_and_mirrored(pictures, uniforms(indices, draw, 3))
        return pictures, self.targets[indices]

    def scaled(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Return pictures with the channels' means and deviations taken out."""
        return self.scale(pixels)

    def batch(self, indices: Int[Tensor, " n"], draw: int = 0) -> tuple[Float[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        """Return the inputs and targets of some samples, in the order asked."""
        pixels, targets = self.pixels(indices, draw)
        return self.scaled(pixels), targets


def shifted_and_mirrored(
    pictures: UInt8[Tensor, "n c h w"], random: Float[Tensor, "n 3"], margin: int = MARGIN
) -> UInt8[Tensor, "n c h w"]:
    """Pad each picture by ``margin`` black pixels, cut its size out again somewhere, and mirror it or not.

    Args:
        pictures: as bytes.
        random: three numbers in [0, 1) a picture: for the cut's top, its left edge, and the mirror (from 0.5 on).
        margin: pixels.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.
    """
    height, width = pictures.shape[2:]
    top, left = (random[:, :2] * (2 * margin + 1)).long().unbind(1)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    columns = torch.where(random[:, 2:] < 0.5, columns, columns.flip(1))
    padded = F.pad(pictures, (margin,) * 4)
    places = rows[:, :, None] * (width + 2 * margin) + columns[:, None, :]
    places = places.flatten(1).unsqueeze(1).expand(-1, pictures.shape[1], -1)
    return padded.flatten(2).gather(2, places).view_as(pictures)
