"""Multi-head attention: its projections as products, from the inputs, the output gradient and attention run again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import Gradients, LayerCall, Names
from .linear import product
from .randomness import drawn_again

ENDS: tuple[Names, ...] = (("out_proj.weight", "out_proj.bias"), ("bias_k", "bias_v"))


def attention_parts(module: nn.Module) -> tuple[Names, ...]:
    """Return the parameters' names: each projection with its bias, where these are packed likewise."""
    if module._qkv_same_embed_dim:
        return (("in_proj_weight", "in_proj_bias"), *ENDS)
    return (("q_proj_weight",), ("k_proj_weight",), ("v_proj_weight",), ("in_proj_bias",), *ENDS)


def attention_draws(module: nn.Module) -> bool:
    """Return whether a call draws a dropout mask."""
    assert isinstance(module, nn.MultiheadAttention)
    return module.training and module.dropout > 0


def attention(module: nn.Module, call: LayerCall) -> Gradients:
    """Run attention again to get the gradients of what the projections gave.

    Cost: attention forward and backward once more, without the weights' gradients.
    """
    assert isinstance(module, nn.MultiheadAttention)
    dtype, wanted = module.out_proj.weight.dtype, call.wanted
    given = [call.argument(k, name) for k, name in enumerate(("query", "key", "value"))]
    alike = all(x is given[0] for x in given)
    inputs = [_batch_first(module, x).to(dtype) for x in given]
    g = _batch_first(module, call.g).to(dtype) if call.grads[0] is not None else torch.zeros_like(inputs[0])
    weights_grad = call.grads[1] if len(call.grads) > 1 else None
    n = len(inputs[0])
    with torch.enable_grad():
        leaves = [_leaf(F.linear(x, w, b)) for x, w, b in zip(inputs, *_projections(module), strict=True)]
        extra = [_leaf(p.expand(n, 1, -1)) for p in (module.bias_k, module.bias_v) if p is not None]
        with drawn_again(call.random, call.training and module.dropout > 0):
            context, weights = _attend(module, call, leaves, extra)
        outputs = [(context, g @ module.out_proj.weight.detach())]
        if weights_grad is not None and weights is not None:
            averaged = call.argument(6, "average_attn_weights", True)
            weights = weights.mean(1) if averaged else weights
            outputs.append((weights, weights_grad.reshape(weights.shape).to(dtype)))
        grads = torch.autograd.grad([y for y, _ in outputs], [*leaves, *extra], [own for _, own in outputs])
    found = dict(product(context.detach()[None], g[None], wanted, *ENDS[0]))
    found |= {name: own for name, own in zip(ENDS[1], grads[3:], strict=False) if name in wanted}
    return found | _input_gradients(module, wanted, inputs, list(grads[:3]), alike)


def _input_gradients(
    module: nn.MultiheadAttention, wanted: Names, inputs: list[Tensor], grads: list[Tensor], alike: bool
) -> dict[Any, Any]:
    if not module._qkv_same_embed_dim:
        found: dict[Any, Any] = {}
        for name, x, g in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), inputs, grads, strict=True):
            found |= product(x[None], g[None], wanted, name, "")
        return found | {"in_proj_bias": torch.cat([g.sum(1) for g in grads], 1)}
    if alike:
        a, g = inputs[0][None], torch.cat(grads, 2)[None]
    else:  # three groups of rows, the shorter side filled up with positions that contribute nothing
        s = max(x.shape[1] for x in inputs)
        a, g = (torch.stack([F.pad(x, (0, 0, 0, s - x.shape[1])) for x in side]) for side in (inputs, grads))
    return dict(product(a, g, wanted, "in_proj_weight", "in_proj_bias"))


def _batch_first(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Return [n, s, d]; without a batch dimension the input is one sample."""
    if x.dim() == 2:
        return x[None]
    return x if module.batch_first else x.transpose(0, 1)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _projections(module: nn.MultiheadAttention) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return weights and biases of the projections of query, key and value."""
    packed, bias = module.in_proj_weight, module.in_proj_bias
    separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    weights = [w.detach() for w in (packed.chunk(3) if module._qkv_same_embed_dim else separate)]
    return weights, [None] * 3 if bias is None else [b.detach() for b in bias.chunk(3)]


def _attend(
    module: nn.MultiheadAttention, call: LayerCall, projected: list[Tensor], extra: list[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return what the heads give [n, s, d], and their weights [n, h, s, t] where those were asked for."""
    q, k, v = projected
    if extra:
        k, v = torch.cat([k, extra[0]], 1), torch.cat([v, extra[1]], 1)
    if module.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    heads = module.num_heads
    mask = _mask(call, len(q), heads, k.shape[1], q.dtype)
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    dropout = module.dropout if call.training else 0.0
    weights = None
    if call.argument(4, "need_weights", True):
        scores = (q * q.shape[3] ** -0.5) @ k.mT
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        context = weights @ v
    else:
        context = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    return context.transpose(1, 2).flatten(2), weights


def _mask(call: LayerCall, n: int, heads: int, keys: int, dtype: torch.dtype) -> Tensor | None:
    """Return both masks of a call as numbers that are added, [n or 1, h or 1, s or 1, t]."""
    padding, among = call.argument(3, "key_padding_mask"), call.argument(5, "attn_mask")
    masks = []
    if among is not None:
        masks.append(among[None, None] if among.dim() == 2 else among.unflatten(0, (n, heads)))
    if padding is not None:
        masks.append(padding.reshape(n, 1, 1, -1))
    total = None
    for mask in masks:
        barred = mask.dtype == torch.bool
        own = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf")) if barred else mask.to(dtype)
        own = F.pad(own, (0, keys - own.shape[3]))
        total = own if total is None else total + own
    return total
