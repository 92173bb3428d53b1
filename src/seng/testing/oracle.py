"""The dense oracle: F + lambda I from per-sample gradients obtained one sample at a time, in float64.

Slow and plain on purpose. Everything the library computes fast is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ..layers import layer_of, parameter_of
from ..linalg import damped_power
from ..planning.shapes import untouched_buffers


def loop_gradients(
    loss_of: Callable[[int], Tensor], parameters: Sequence[nn.Parameter], n: int
) -> Float[Tensor, "n p"]:
    """Return the gradient of each sample's own loss, from a loop over single samples.

    For models whose samples do not see each other (no batch statistics). Cost: n backward passes.

    Args:
        loss_of: Loss of sample i alone, without the division by n.
        parameters: Parameters of one block, flattened and concatenated in this order.
        n: Number of samples.
    """
    rows = []
    for i in range(n):
        grads = torch.autograd.grad(loss_of(i), list(parameters), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


def copy_gradients(
    model: nn.Module, loss_closure: Callable[[], Tensor], parameters: Sequence[nn.Parameter], n: int
) -> Float[Tensor, "n p"]:
    """Return each sample's contribution to ``.grad``, by giving every sample its own copy of the parameters.

    Every module that owns one of the parameters runs on one sample at a time, each with its own copies; row i is the
    gradient of the loss with respect to copy i. Batch norm normalises the whole batch first: statistics
    are held fixed. Exact for any model whose modules keep samples in dimension 0, batch statistics included.
    For a mean loss row i is u_i / n. Cost: one forward and backward pass, module by module in a loop.

    Args:
        model: The model, float64 for an oracle.
        loss_closure: Computes the loss by calling the model.
        parameters: Parameters of one block.
        n: Number of samples.
    """
    copies = {p: [p.detach().clone().requires_grad_() for _ in range(n)] for p in parameters}
    leaves = [copy for p in parameters for copy in copies[p]]
    with untouched_buffers(model):
        with _split_modules(model, copies, n):
            loss = loss_closure()
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    columns = [torch.stack([g.reshape(-1) for g in grads[k * n : (k + 1) * n]]) for k in range(len(parameters))]
    return torch.cat(columns, 1)


def dense_direction(
    rows: Float[Tensor, "n p"],
    grad: Float[Tensor, " p"],
    *,
    damping: float,
    power: float = 1.0,
    relative: bool = True,
    natural: bool = False,
    trust: float | None = None,
) -> Float[Tensor, " p"]:
    """Return (F + lambda I)^-power g by dense algebra, F = (1/n) sum u_i u_i^T.

    Args:
        rows: Per-sample gradients u_i.
        grad: g, whatever its samples.
        damping: lambda, or its multiple of trace(F) / n where ``relative``.
        power: Exponent.
        relative: See ``damping``.
        natural: False multiplies by lambda^power.
        trust: Cap on sqrt(g^T (F + lambda I)^-1 g), or None.

    Cost: p^3.
    """
    n = len(rows)
    fisher = rows.T @ rows / n
    lam = damping * float(fisher.trace()) / n if relative else damping
    direction = damped_power(fisher, lam, power, grad)
    if trust is not None:
        q = float(grad @ damped_power(fisher, lam, 1.0, grad)) ** 0.5
        direction = direction * min(1.0, trust / q)
    return direction if natural else direction * lam**power


def samples_dimension(module: nn.Module) -> int:
    """Return the dimension of a module's inputs that holds the samples, and of its outputs but for states."""
    return 0 if getattr(module, "batch_first", True) else 1


@contextmanager
def _split_modules(model: nn.Module, copies: dict[Any, list[Tensor]], n: int) -> Iterator[None]:
    changed: list[nn.Module] = []
    for module in model.modules():
        layer = layer_of(module)
        names = [name for part in (layer.parts(module) if layer else ()) for name in part]
        own = {name: copies[p] for name in names if (p := parameter_of(module, name)) in copies}
        if own:
            module.forward = _split(module, module.forward, own, n)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _split(
    module: nn.Module, forward: Callable[..., Tensor], own: dict[str, list[Tensor]], n: int
) -> Callable[..., Tensor]:
    dim = samples_dimension(module)

    def sample(x: Any, i: int) -> Any:
        return x.narrow(dim, i, 1) if isinstance(x, Tensor) and x.dim() > dim and x.shape[dim] == n else x

    def by_sample(*args: Any, **kwargs: Any) -> Any:
        x = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        if x.shape[dim] != n:
            raise ValueError(f"oracle: expected {n} samples in dimension {dim}, got {x.shape[dim]}")
        pieces = []
        whole = _without_affine(module, x) if isinstance(module, nn.modules.batchnorm._BatchNorm) else None
        for i in range(n):
            values = {name: leaves[i] for name, leaves in own.items()}
            if whole is not None:
                shape = (1, -1) + (1,) * (x.dim() - 2)
                scale, shift = (values.get(key, module.get_parameter(key)).view(shape) for key in ("weight", "bias"))
                pieces.append(whole[i : i + 1] * scale + shift)
                continue
            module.forward = forward  # type: ignore[method-assign]
            inputs, named = tree_map(lambda x, i=i: sample(x, i), (args, kwargs))
            pieces.append(functional_call(module, values, inputs, named))
            module.forward = by_sample  # type: ignore[method-assign]
        flat = [tree_flatten(piece) for piece in pieces]
        dims = [dim, *[1] * len(flat[0][0])] if isinstance(module, nn.RNNBase) else [dim] * len(flat[0][0])
        leaves = zip(*(leaves for leaves, _ in flat), strict=True)
        joined = [own[0] if own[0] is None else torch.cat(own, k) for own, k in zip(leaves, dims, strict=False)]
        return tree_unflatten(joined, flat[0][1])

    return by_sample


def _without_affine(module: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    batch = module.training or module.running_mean is None
    mean, var = (None, None) if batch else (module.running_mean, module.running_var)
    return F.batch_norm(x, mean, var, training=batch, eps=module.eps)
