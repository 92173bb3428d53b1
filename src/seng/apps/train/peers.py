"""Optimizers that SENG is compared with, each a function from a model and settings.

A new one is a function and a line in ``PEERS``, its name in ``config.OptimizerName`` and its defaults in
``recipes.peers``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from ...bases import BaseSettings
from ...bases import muon as muon_parts
from .config import KfacConfig, OptimizerConfig
from .errors import ConfigError
from .kfac import KFAC
from .several import Several

AUXILIARY_LR = 0.003  # of AdamW beside Muon and K-FAC, where none is set
REFRESH_EVERY = 10  # steps between new eigenbases or roots, as SENG's refreshes
RMSPROP = 3  # pytorch_optimizer's number of the graft whose step lengths are Adam's


def muon(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build Muon for the weights of hidden layers, and AdamW for all other parameters.

    Source: Jordan et al., "Muon" (2024); torch.optim.Muon.
    """
    extra = {"aux_lr": _auxiliary(config)}
    momentum = {"momentum": config.momentum, "nesterov": config.nesterov}
    settings = BaseSettings(config.lr, config.momentum, config.nesterov, config.weight_decay, extra | momentum)
    return Several(muon_parts(model, settings))


def kfac(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build K-FAC for linear and convolutional layers, and AdamW for all other parameters. See ``kfac.KFAC``."""
    chosen = config.kfac or KfacConfig()
    curved = KFAC(
        model, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, damping=chosen.damping,
        ema=chosen.ema, refresh_every=chosen.refresh_every, decrease=chosen.decrease,
    )  # fmt: skip
    taken = {id(p) for group in curved.param_groups for p in group["params"]}
    rest = [p for p in _trained(model) if id(p) not in taken]
    beside = [AdamW(rest, lr=_auxiliary(config), weight_decay=config.weight_decay)] if rest else []
    return Several([curved, *beside])


def soap(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build SOAP: Adam in the eigenbases of Shampoo. Source: Vyas et al. (2024)."""
    betas = (config.momentum, 0.95)
    rates = {"lr": config.lr, "betas": betas, "weight_decay": config.weight_decay}
    return _library("soap").SOAP(_trained(model), precondition_frequency=REFRESH_EVERY, **rates)


def shampoo(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build Shampoo with step lengths of RMSProp. Source: Gupta et al. (2018); Anil et al. (2020).

    The averages are not corrected for their start, hence the short ones, and momentum that is an average, too.
    """
    return _library("shampoo").ScalableShampoo(
        _trained(model), lr=config.lr, betas=(config.momentum, 0.95), weight_decay=config.weight_decay,
        moving_average_for_momentum=True, decoupled_weight_decay=True, start_preconditioning_step=REFRESH_EVERY,
        preconditioning_compute_steps=REFRESH_EVERY, graft_type=RMSPROP,
    )  # fmt: skip


def kron(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build PSGD with Kronecker factors. Source: Li, "Preconditioned stochastic gradient descent" (2018).

    Without opt_einsum torch takes its products in an order that needs the memory of a square of Kronecker products.
    """
    rates = {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay}
    return _library("kron", "opt_einsum").Kron(_trained(model), **rates)


def schedule_free(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build AdamW whose average of steps stands in for a schedule. Source: Defazio et al. (2024)."""
    betas = (config.momentum, 0.999)
    rates = {"lr": config.lr, "betas": betas, "weight_decay": config.weight_decay}
    return _library("schedule-free").ScheduleFreeAdamW(_trained(model), **rates)


Builder = Callable[[nn.Module, OptimizerConfig], Optimizer]

PEERS: dict[str, Builder] = {
    "muon": muon,
    "soap": soap,
    "shampoo": shampoo,
    "kron": kron,
    "schedule-free": schedule_free,
    "kfac": kfac,
}


def _auxiliary(config: OptimizerConfig) -> float:
    return AUXILIARY_LR if config.aux_lr is None else config.aux_lr


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _library(optimizer: str, beside: str | None = None) -> Any:
    """Return the package pytorch_optimizer; another one that it needs is imported, too.

    Raises:
        ConfigError: One of them is not installed.
    """
    needed = [name for name in (beside, "pytorch_optimizer") if name is not None]
    try:
        return [import_module(name) for name in needed][-1]
    except ImportError as error:
        raise ConfigError(
            "build_optimizer", f"{optimizer} needs a package that is not installed", expected=" and ".join(needed),
            got=str(error), fix="Run: pip install 'seng[bench]'",
        ) from error  # fmt: skip
