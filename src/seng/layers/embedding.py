"""Embeddings, without an n x vocabulary x d array."""

from __future__ import annotations

from torch import Tensor, nn

from ..types import LayerIO, Lookup


def embedding(module: nn.Module, x: Tensor, g: Tensor, wanted: tuple[str, ...], training: bool) -> LayerIO:
    """Indices beyond the batch dimension are positions; the padding index has no gradient."""
    assert isinstance(module, nn.Embedding)
    n = x.shape[0] if x.dim() else 1
    ids, g = x.reshape(n, -1), g.reshape(n, -1, module.embedding_dim)
    if module.padding_idx is not None:
        g = g * (ids != module.padding_idx)[..., None]
    return Lookup(ids, g, module.num_embeddings)
