"""Muon on hidden matrices, AdamW on all other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import OptionError
from ..wrappers import sharded
from .fused import FusedAdamW, follow_dtype
from .settings import BaseSettings, held_by_bases

AUXILIARY_LR = 0.1  # learning rate of AdamW beside Muon, as a share of Muon's


def muon(model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    """Muon on hidden weights, kernels viewed as matrices; AdamW on embeddings, the head, norms and biases.

    AdamW runs at ``aux_lr`` (in ``extra``; AUXILIARY_LR times lr by default).
    """
    if not hasattr(torch.optim, "Muon"):
        raise OptionError(
            "SENG()", "base 'muon' needs torch.optim.Muon", expected="torch >= 2.9", got=torch.__version__,
            fix="Upgrade torch, or choose another base",
        )  # fmt: skip
    if any(map(sharded, held_by_bases(model))):
        raise OptionError(
            "SENG()", "base 'muon' needs whole matrices", expected="a model that is not sharded", got="fully_shard",
            fix="Choose base 'sgd' or 'adamw', or DistributedDataParallel",
        )  # fmt: skip
    extra = dict(settings.extra)
    aux_lr = extra.pop("aux_lr", AUXILIARY_LR * settings.lr)
    hidden = hidden_matrices(model)
    rest = [p for p in held_by_bases(model) if not any(p is q for q in hidden)]
    built: list[Optimizer] = []
    if hidden:
        built.append(_matrix_muon()(hidden, lr=settings.lr, weight_decay=settings.weight_decay, **extra))
    if rest:
        built.append(FusedAdamW(rest, lr=aux_lr, weight_decay=settings.weight_decay))
    return built


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return weights of hidden linear and convolutional layers: at least two axes, no embedding, not the head.

    The head is the last linear layer of the model.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    barred = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    barred |= {id(p) for p in linears[-1].parameters()} if linears else set()
    owned = [p for module in model.modules() if isinstance(module, kinds) for p in module.parameters(recurse=False)]
    matrices = [p for p in owned if p.is_floating_point() and p.dim() >= 2 and p.numel() and id(p) not in barred]
    return list(dict.fromkeys(matrices))


def _matrix_muon() -> Callable[..., Optimizer]:
    class MatrixMuon(torch.optim.Muon):
        """Muon that sees a kernel [d_out, d_in, ...] as the matrix [d_out, d_in * ...]."""

        def __init__(self, params: Sequence[nn.Parameter], **settings: Any):
            with _as_matrices(params):
                super().__init__(params, **settings)

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                follow_dtype(self, group)
            moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            with _as_matrices(moved):
                return super().step(closure)

    return MatrixMuon


@contextmanager
def _as_matrices(params: Sequence[nn.Parameter]) -> Iterator[None]:
    kernels = [p for p in params if p.dim() > 2]
    whole: list[tuple[Tensor, Tensor | None]] = [(p.data, p.grad) for p in kernels]
    for p, (data, grad) in zip(kernels, whole, strict=True):
        p.grad = None
        p.data = data.flatten(1)
        p.grad = None if grad is None else grad.flatten(1)
    try:
        yield
    finally:
        for p, (data, grad) in zip(kernels, whole, strict=True):
            matrix, p.grad = p.data, None
            if matrix.data_ptr() != data.data_ptr():  # a layout that cannot be viewed as a matrix was copied
                data.copy_(matrix.view_as(data))
            p.data = data
            p.grad = grad
