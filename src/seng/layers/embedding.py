"""Embeddings and bags of them, without an n x vocabulary x d array."""

from __future__ import annotations

import torch
from torch import nn

from ..per_sample import Lookup
from .contract import Gradients, LayerCall


def embedding(module: nn.Module, call: LayerCall) -> Gradients:
    """Indices beyond the batch dimension are positions; the padding index has no gradient."""
    assert isinstance(module, nn.Embedding)
    n = call.x.shape[0] if call.x.dim() else 1
    ids, g = call.x.reshape(n, -1), call.g.reshape(n, -1, module.embedding_dim)
    if module.padding_idx is not None:
        g = g * (ids != module.padding_idx)[..., None]
    return {call.wanted: Lookup(ids, g, module.num_embeddings)}


def embedding_bag(module: nn.Module, call: LayerCall) -> Gradients:
    """A bag is a sample, its indices are positions; those of shorter bags are filled up without gradient."""
    assert isinstance(module, nn.EmbeddingBag)
    ids, offsets, weights = call.x, call.argument(1, "offsets"), call.argument(2, "per_sample_weights")
    if ids.dim() == 1:
        assert offsets is not None
        starts = offsets[:-1] if module.include_last_offset else offsets
        ends = offsets[1:] if module.include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(ids)])])
        places = starts[:, None] + torch.arange(int((ends - starts).max()) if len(starts) else 0, device=ids.device)
        inside = places < ends[:, None]
        places = places.clamp(max=max(0, len(ids) - 1))
        ids, weights = ids[places], None if weights is None else weights[places]
    else:
        inside = torch.ones_like(ids, dtype=torch.bool)
    if module.padding_idx is not None:
        inside = inside & (ids != module.padding_idx)
    g = call.g[:, None] * inside[..., None]
    if weights is not None:
        g = g * weights[..., None]
    elif module.mode == "mean":
        g = g / inside.sum(1).clamp(min=1)[:, None, None]
    elif module.mode == "max":
        values = module.weight.detach()[ids].masked_fill(~inside[..., None], float("-inf"))
        chosen = torch.zeros_like(values, dtype=torch.bool)
        g = g * chosen.scatter_(1, values.argmax(1, keepdim=True), True) if ids.shape[1] else g
    return {call.wanted: Lookup(ids, g, module.num_embeddings)}


def unsupported_embedding(module: nn.Module) -> str | None:
    """Return which option changes the gradients, or the weight, of an embedding or a bag of them."""
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
    options = {"sparse": module.sparse, "scale_grad_by_freq": module.scale_grad_by_freq}
    options["max_norm"] = module.max_norm is not None
    used = next((name for name, used in options.items() if used), None)
    return f"{type(module).__name__} with {used} is not supported" if used else None
