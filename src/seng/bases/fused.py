"""torch's SGD and AdamW, fused where that is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ..wrappers import sharded
from .settings import BaseSettings, held_by_bases

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes
FULL_PRECISION = (torch.float32, torch.float64)


def sgd(model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    """SGD with momentum on all parameters: the paper's choice. Fused, a third of the time, where that is right."""
    parameters = held_by_bases(model)
    s, extra = settings, _fused(parameters, settings.extra)
    rates = {"lr": s.lr, "momentum": s.momentum, "nesterov": s.nesterov, "weight_decay": s.weight_decay}
    return [FusedSGD(parameters, **rates, **extra)]


def adamw(model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    """AdamW on all parameters, fused where that is right."""
    parameters = held_by_bases(model)
    extra = _fused(parameters, settings.extra)
    base: Optimizer = FusedAdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, **extra)
    return [base]


def follow_dtype(base: Optimizer, group: dict[str, Any]) -> None:
    """Convert momentum where parameters were moved to another dtype."""
    for p in group["params"]:
        for key, x in base.state.get(p, {}).items():
            if isinstance(x, Tensor) and x.is_floating_point() and key != "step" and x.dtype != p.dtype:
                base.state[p][key] = x.to(p.dtype)


class _FusedWhereRight(Optimizer):
    """Takes torch's fused step for the groups it is right for and the plain one for others, decided at every step.

    Fused kernels for CPUs read parameters, gradients and momentum in the order of memory, whatever their strides.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step, each group in the form that is right for it."""
        plain = []
        for group in self.param_groups:
            if not group["fused"] or not self._fusable(group):
                follow_dtype(self, group)
                plain += [group] if group["fused"] else []
        for group in plain:
            group["fused"] = None  # torch then chooses between its other two forms
        try:
            return super().step(closure)
        finally:
            for group in plain:
                group["fused"] = True

    def _fusable(self, group: dict[str, Any]) -> bool:
        for p in group["params"]:
            if p.grad is not None and not _alike(p, p.grad, self.state.get(p, {}).values()):
                return False
        return True


class FusedSGD(_FusedWhereRight, SGD):
    """torch's SGD, fused where that is right.

    The fused form leaves half precision on a CPU as it is, and stops where some parameters of a group have momentum
    and others have none yet.
    """

    def _fusable(self, group: dict[str, Any]) -> bool:
        begun = set()
        for p in group["params"]:
            if p.grad is not None:
                begun.add(self.state.get(p, {}).get("momentum_buffer") is not None)
                if not p.is_cuda and p.dtype not in FULL_PRECISION:
                    return False
        return len(begun) < 2 and super()._fusable(group)


class FusedAdamW(_FusedWhereRight, AdamW):
    """torch's AdamW, fused where that is right."""


def _alike(p: Tensor, grad: Tensor, held: Iterable[Any]) -> bool:
    """Return whether gradient and state lie in memory as the parameter does, and that fills its memory."""
    last = CHANNELS_LAST.get(p.dim())
    if not p.is_contiguous() and (last is None or not p.is_contiguous(memory_format=last)):
        return False
    for x in (grad, *held):
        if not isinstance(x, Tensor):
            continue
        if x is not grad and x.dim() == 0:  # such as the number of steps
            if x.device != p.device:
                return False
        elif x.layout is not torch.strided or x.shape != p.shape or x.dtype != p.dtype:
            return False
        elif x.stride() != p.stride():
            axes = zip(p.shape, p.stride(), x.stride(), strict=True)
            if any(a != b for size, a, b in axes if size > 1):
                return False
    return True


def _fused(parameters: list[nn.Parameter], extra: dict[str, Any]) -> dict[str, Any]:
    """Return a base's options with its fused form chosen, unless they choose a form themselves."""
    able = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() and not sharded(p) for p in parameters)
    return {"fused": able and not {"foreach", "differentiable", "capturable"} & extra.keys(), **extra}
