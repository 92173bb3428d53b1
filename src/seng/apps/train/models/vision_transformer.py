"""A small transformer on patches of pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .transformer import DEVIATION, TransformerBlock

PATCH = 4  # pixels along each side of a patch


class VisionTransformer(nn.Module):
    """A pre-norm transformer on square patches, with learnt positions; the mean over patches is classified.

    Args:
        channels: of the pictures.
        size: height and width of the pictures, multiples of PATCH.
        classes: number of classes.
        width: of the stream between blocks, a multiple of ``heads``.
        hidden: width of the hidden layer of each block, one number a block.
        heads: attention heads.
        dropout: probability of dropping a number, in [0, 1).

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021; the mean in place of a class token is Beyer, Zhai
    and Kolesnikov's, 2022.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], classes: int, width: int, hidden: tuple[int, ...], heads: int,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches = nn.Conv2d(channels, width, PATCH, stride=PATCH)
        self.positions = nn.Embedding(size[0] // PATCH * (size[1] // PATCH), width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        nn.init.normal_(self.positions.weight, std=DEVIATION)
        nn.init.normal_(self.head.weight, std=DEVIATION)
        nn.init.zeros_(self.head.bias)
        blocks = (TransformerBlock(width, size, heads, dropout, len(hidden), causal=False) for size in hidden)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, pictures: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n classes"]:
        """Return the scores of each class."""
        stream = self.patches(pictures).flatten(2).mT
        places = torch.arange(stream.shape[1], device=stream.device).expand(stream.shape[:2])
        return self.head(self.norm(self.blocks(stream + self.positions(places))).mean(1))
