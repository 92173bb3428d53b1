"""Embeddings, without an n x vocabulary x d array."""

from __future__ import annotations

from torch import nn

from ..types import Lookup
from .contract import Gradients, LayerCall


def embedding(module: nn.Module, call: LayerCall) -> Gradients:
    """Indices beyond the batch dimension are positions; the padding index has no gradient."""
    assert isinstance(module, nn.Embedding)
    n = call.x.shape[0] if call.x.dim() else 1
    ids, g = call.x.reshape(n, -1), call.g.reshape(n, -1, module.embedding_dim)
    if module.padding_idx is not None:
        g = g * (ids != module.padding_idx)[..., None]
    return {call.wanted: Lookup(ids, g, module.num_embeddings)}


def unsupported_embedding(module: nn.Module) -> str | None:
    """Return which option changes the gradients, or the weight, of an embedding or a bag of them."""
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
    options = {"sparse": module.sparse, "scale_grad_by_freq": module.scale_grad_by_freq}
    options["max_norm"] = module.max_norm is not None
    used = next((name for name, used in options.items() if used), None)
    return f"{type(module).__name__} with {used} is not supported" if used else None
