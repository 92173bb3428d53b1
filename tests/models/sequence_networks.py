"""Recurrent and attention networks of our own: plain torch modules, used as people use them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .family import Family, classes
from .tasks import (
    CLASSES,
    LENGTH,
    SERIES,
    VOCABULARY,
    class_losses,
    sequences,
    shifted_right,
    texts,
    token_losses,
    translations,
)

WIDTH = 16


class Last(nn.Module):
    """A recurrent layer, batch first, and a linear head on its last output."""

    def __init__(self, kind: Callable[..., nn.RNNBase]):
        super().__init__()
        self.recurrent = kind(SERIES[1], WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class RecurrentLanguageModel(nn.Module):
    """Embedding, two layers of LSTM and a tied output; ``sequence_first`` as torch has it by default."""

    def __init__(self, sequence_first: bool = False):
        super().__init__()
        self.sequence_first = sequence_first
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.recurrent = nn.LSTM(WIDTH, WIDTH, 2, batch_first=not sequence_first)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens.T if self.sequence_first else tokens)
        logits = self.head(self.recurrent(x)[0])
        return logits.transpose(0, 1) if self.sequence_first else logits


class Cells(nn.Module):
    """A recurrence written as a loop over nn.LSTMCell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(SERIES[1], WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for k in range(x.shape[1]):
            state = self.cell(x[:, k], state)
        assert state is not None
        return self.head(state[0])


class Recurrence(nn.Module):
    """A recurrence of linear layers, each used at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.keep = nn.Linear(SERIES[1], WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), WIDTH)
        for k in range(x.shape[1]):
            h = torch.tanh(self.read(x[:, k]) + self.keep(h))
        return self.head(h)


class Translator(nn.Module):
    """nn.Transformer with learned positions; ``batch_first`` or as torch has it by default."""

    def __init__(self, batch_first: bool = True):
        super().__init__()
        self.batch_first = batch_first
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.body = nn.Transformer(WIDTH, 2, 2, 2, 2 * WIDTH, dropout=0.0, batch_first=batch_first)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        places = self.positions(torch.arange(source.shape[1]))
        x, y = self.tokens(source) + places, self.tokens(target) + places
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        if self.batch_first:
            return self.head(self.body(x, y, tgt_mask=mask.to(x)))
        return self.head(self.body(x.transpose(0, 1), y.transpose(0, 1), tgt_mask=mask.to(x)).transpose(0, 1))


class Encoder(nn.Module):
    """nn.TransformerEncoder over padded texts, with a position parameter [1, s, d] and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, LENGTH + 1, WIDTH) * 0.1)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(tokens), -1, -1), self.tokens(tokens)], 1) + self.positions
        hidden = F.pad(mask == 0, (1, 0), value=False)
        return self.head(self.body(x, src_key_padding_mask=hidden)[:, 0])


class Bag(nn.Module):
    """A mean of embeddings, by nn.EmbeddingBag."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARY, WIDTH, padding_idx=2)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.bag(tokens))


class Latents(nn.Module):
    """A few learned queries attend to the input, as a Perceiver's do, through packed projections."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, WIDTH) * 0.3)
        self.enter, self.norm = nn.Linear(SERIES[1], WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(3 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x))
        out, _ = self.attention(self.queries.expand(len(x), -1, -1), x, x, need_weights=False)
        return self.head(out.flatten(1))


class QueryTable(nn.Module):
    """DETR's object queries: an embedding's weight, read without a call, and self-attention in linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(3, WIDTH)
        self.enter, self.q, self.k, self.v = nn.Linear(SERIES[1], WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(3 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q = self.q(self.queries.weight).expand(len(x), -1, -1)
        return self.head(F.scaled_dot_product_attention(q, self.k(x), self.v(x)).flatten(1))


def word_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    return token_losses(model(tokens)[:, :-1], tokens[:, 1:])


def text_losses(model: nn.Module, tokens: Tensor, mask: Tensor, y: Tensor) -> Tensor:
    return class_losses(model(tokens, mask), y)


def translation_losses(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    return token_losses(model(source, shifted_right(target)), target)


SEQUENCE_NETWORKS: dict[str, Family] = {
    "lstm": classes(lambda: Last(nn.LSTM), *SERIES),
    "gru": classes(lambda: Last(nn.GRU), *SERIES),
    "lstm-language": Family(RecurrentLanguageModel, sequences, word_losses),
    "lstm-sequence-first": Family(lambda: RecurrentLanguageModel(True), sequences, word_losses),
    "lstm-cells": classes(Cells, *SERIES),
    "recurrence": classes(Recurrence, *SERIES),
    "transformer": Family(Translator, translations, translation_losses),
    "transformer-sequence-first": Family(lambda: Translator(False), translations, translation_losses),
    "transformer-encoder": Family(Encoder, texts, text_losses),
    "embedding-bag": Family(Bag, texts, lambda model, tokens, mask, y: class_losses(model(tokens), y)),
    "latents": classes(Latents, *SERIES),
    "query-table": classes(QueryTable, *SERIES),
}
