"""Base optimizers that move along the preconditioned gradient. Adding one is a line in the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from .errors import OptionError, choose
from .wrappers import sharded

AUXILIARY_LR = 0.1  # learning rate of AdamW beside Muon, as a share of Muon's


@dataclass(frozen=True)
class BaseSettings:
    """Settings a base is built from.

    Args:
        lr: Learning rate, >= 0.
        momentum: Of SGD, in [0, 1).
        nesterov: Of SGD.
        weight_decay: >= 0.
        extra: Further keyword arguments of the base optimizer.
    """

    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    extra: dict[str, Any] = field(default_factory=dict)


def sgd(model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    """SGD with momentum on all parameters: the paper's choice. Fused, a third of the time, where torch can."""
    parameters = _trainable(model)
    s, extra = settings, _fused(parameters, settings.extra)
    base = SGD(parameters, lr=s.lr, momentum=s.momentum, nesterov=s.nesterov, weight_decay=s.weight_decay, **extra)
    return [base]


def adamw(model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    """AdamW on all parameters, fused where torch can."""
    parameters = _trainable(model)
    extra = _fused(parameters, settings.extra)
    return [AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, **extra)]


def muon(model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    """Muon on hidden weights, kernels viewed as matrices; AdamW on embeddings, the head, norms and biases.

    AdamW runs at ``aux_lr`` (in ``extra``; AUXILIARY_LR times lr by default).
    """
    if not hasattr(torch.optim, "Muon"):
        raise OptionError(
            "SENG()", "base 'muon' needs torch.optim.Muon", expected="torch >= 2.9", got=torch.__version__,
            fix="Upgrade torch, or choose another base",
        )  # fmt: skip
    if any(map(sharded, _trainable(model))):
        raise OptionError(
            "SENG()", "base 'muon' needs whole matrices", expected="a model that is not sharded", got="fully_shard",
            fix="Choose base 'sgd' or 'adamw', or DistributedDataParallel",
        )  # fmt: skip
    extra = dict(settings.extra)
    aux_lr = extra.pop("aux_lr", AUXILIARY_LR * settings.lr)
    hidden = hidden_matrices(model)
    rest = [p for p in _trainable(model) if not any(p is q for q in hidden)]
    built: list[Optimizer] = []
    if hidden:
        built.append(_matrix_muon()(hidden, lr=settings.lr, weight_decay=settings.weight_decay, **extra))
    if rest:
        built.append(AdamW(rest, lr=aux_lr, weight_decay=settings.weight_decay))
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
    matrices = [p for p in owned if p.requires_grad and p.dim() >= 2 and id(p) not in barred]
    return list(dict.fromkeys(matrices))


BASES: dict[str, Callable[[nn.Module, BaseSettings], list[Optimizer]]] = {"sgd": sgd, "adamw": adamw, "muon": muon}


def build_bases(
    base: str | Callable[[list[nn.Parameter]], Optimizer], model: nn.Module, settings: BaseSettings
) -> list[Optimizer]:
    """Return the optimizers behind a name of the table or a factory ``params -> Optimizer``."""
    if not callable(base):
        build = choose(BASES, base, call="SENG()", option="base")
        try:
            return build(model, settings)
        except (TypeError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(
                "SENG()", f"base {base!r} does not take base_options", expected="its keyword arguments",
                got=settings.extra, fix=f"Correct them: {error}",
            ) from error  # fmt: skip
    made = base(_trainable(model))
    if not isinstance(made, Optimizer):
        raise OptionError(
            "SENG()", "base factory out of range", expected="a torch.optim.Optimizer", got=type(made).__name__,
            fix="Return an optimizer on the parameters it was given",
        )  # fmt: skip
    return [made]


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _fused(parameters: list[nn.Parameter], extra: dict[str, Any]) -> dict[str, Any]:
    """Return a base's options with its fused form chosen, unless they choose a form themselves."""
    able = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() and not sharded(p) for p in parameters)
    return {"fused": able and not {"foreach", "differentiable"} & extra.keys(), **extra}


def _matrix_muon() -> Callable[..., Optimizer]:
    class MatrixMuon(torch.optim.Muon):
        """Muon that sees a kernel [d_out, d_in, ...] as the matrix [d_out, d_in * ...]."""

        def __init__(self, params: Sequence[nn.Parameter], **settings: Any):
            with _as_matrices(params):
                super().__init__(params, **settings)

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            with _as_matrices([p for group in self.param_groups for p in group["params"]]):
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
