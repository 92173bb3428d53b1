"""A small transformer that predicts the next character, all of it layers that have curvature."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

DEVIATION = 0.02  # of initial weights, as in GPT-2


class Attention(nn.Module):
    """Multi-head attention of each position to all, or where ``causal`` to itself and those before it.

    Its projections are nn.Linear, which a refresh reads without running attention again, as that of
    nn.MultiheadAttention has to be.
    """

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.projection = nn.Linear(width, width)

    def forward(self, inputs: Float[Tensor, "n s width"]) -> Float[Tensor, "n s width"]:
        """Return the projected mixture of values."""
        parts = (layer(inputs).unflatten(2, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        query, key, value = (part.transpose(1, 2) for part in parts)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=self.causal)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention, then two linear layers with GELU between, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float, blocks: int, causal: bool = True) -> None:
        super().__init__()
        attention, narrow = Attention(width, heads, dropout, causal), nn.Linear(hidden, width)
        self.attention = nn.Sequential(nn.LayerNorm(width), attention, nn.Dropout(dropout))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), narrow, nn.Dropout(dropout)
        )
        _start_weights(self)
        for writer in (attention.projection, narrow):
            nn.init.normal_(writer.weight, std=DEVIATION / math.sqrt(2 * blocks))

    def forward(self, stream: Float[Tensor, "n s width"]) -> Float[Tensor, "n s width"]:
        """Return the stream with both parts' outputs added."""
        stream = stream + self.attention(stream)
        return stream + self.perceptron(stream)


class CharTransformer(nn.Module):
    """A pre-norm transformer with learnt positions.

    Args:
        classes: number of characters.
        length: characters of the longest text it can take.
        width: of the stream between blocks, a multiple of ``heads``.
        hidden: width of the hidden layer of each block, one number a block.
        heads: attention heads.
        dropout: probability of dropping a number, in [0, 1).

    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2), also for the initial
    weights: deviation 0.02, divided by sqrt(2 blocks) where a block writes to the stream; biases 0.
    """

    def __init__(
        self, classes: int, length: int, width: int, hidden: tuple[int, ...], heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(classes, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        _start_weights(self)
        blocks = (TransformerBlock(width, size, heads, dropout, blocks=len(hidden)) for size in hidden)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, texts: Int[Tensor, "n s"]) -> Float[Tensor, "n classes s"]:
        """Return the scores of each position's next character, classes second as losses of classes want them."""
        places = torch.arange(texts.shape[1], device=texts.device).expand_as(texts)  # samples stay dimension 0
        stream = self.dropout(self.characters(texts) + self.positions(places))
        return self.head(self.norm(self.blocks(stream))).transpose(1, 2)


def _start_weights(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=DEVIATION)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
