"""The optimizers that are compared. One line enrols an optimizer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..recipes.paper import PAPER
from ..recipes.peers import PEERS
from ..science.methods import Natural
from ..train.config import OptimizerConfig, SengConfig
from .protocol import Range


@dataclass(frozen=True)
class Entry:
    """An optimizer and what is tuned of it.

    Args:
        config: Its settings; the tuned ones are its defaults.
        ranges: What is tuned, four settings at most, the learning rate first.
        first_order: Whether the target may be its result.
        decays: Whether its learning rate falls to zero.
        captures: Whether it needs per-sample gradients of layers, so that it cannot serve losses that are functions.
    """

    config: OptimizerConfig | Natural
    ranges: dict[str, Range]
    first_order: bool = False
    decays: bool = True
    captures: bool = False


RATE, MUON_RATE, SMALL_RATE = Range(0.003, 1.0), Range(0.003, 0.3), Range(1e-4, 0.03)
SUMMED_RATE = Range(1e-5, 0.03)  # of SGD, where a sample's loss is a sum of many squares
COUPLED, DECOUPLED = Range(1e-6, 1e-2), Range(1e-3, 0.3)  # weight decay: in the gradient, and beside it
MOMENTUM = Range(0.8, 0.99, log=False)
DAMPING = Range(0.01, 10.0)

SGD = OptimizerConfig("sgd", lr=0.1, nesterov=True, weight_decay=1e-4)
ADAMW = OptimizerConfig("adamw", lr=0.003, weight_decay=0.01)
SENG = OptimizerConfig("seng", lr=0.1, nesterov=True, weight_decay=0.0, seng=SengConfig())
BEFORE_ADAMW = OptimizerConfig("seng", lr=0.003, weight_decay=0.01, seng=SengConfig(base="adamw"))
BEFORE_MUON = OptimizerConfig(
    "seng", lr=0.02, momentum=0.95, nesterov=True, weight_decay=0.0, aux_lr=0.003, seng=SengConfig(base="muon")
)
AS_PUBLISHED = OptimizerConfig("seng", lr=0.05, weight_decay=1e-4, seng=replace(PAPER, damping=1.0))
AS_RELEASED = replace(AS_PUBLISHED, seng=replace(PAPER, damping=1.0, estimator="paper-code"))
MUON, KFAC = replace(PEERS["muon"], aux_lr=0.003), replace(PEERS["kfac"], aux_lr=0.003)

OF_ADAM = {"lr": SMALL_RATE, "weight_decay": DECOUPLED, "momentum": MOMENTUM}
OF_MUON = {"lr": MUON_RATE, "aux_lr": SMALL_RATE, "weight_decay": DECOUPLED, "momentum": MOMENTUM}
OF_KFAC = {"lr": RATE, "aux_lr": SMALL_RATE, "damping": Range(1e-3, 10.0), "weight_decay": DECOUPLED}
OF_PAPER = {"lr": RATE, "damping": DAMPING, "weight_decay": COUPLED}

# SENG is tuned as its users are told to: the learning rate alone. The others have all that they may.
OPTIMIZERS: dict[str, Entry] = {
    "sgd": Entry(SGD, {"lr": RATE, "weight_decay": COUPLED, "momentum": MOMENTUM}, first_order=True),
    "adamw": Entry(ADAMW, OF_ADAM, first_order=True),
    "schedule-free": Entry(PEERS["schedule-free"], OF_ADAM, first_order=True, decays=False),
    "muon": Entry(MUON, OF_MUON),
    "soap": Entry(PEERS["soap"], OF_ADAM),
    "shampoo": Entry(PEERS["shampoo"], OF_ADAM),
    "kron": Entry(PEERS["kron"], OF_ADAM),
    "kfac": Entry(KFAC, OF_KFAC, captures=True),
    "seng": Entry(SENG, {"lr": RATE}, captures=True),
    "seng-adamw": Entry(BEFORE_ADAMW, {"lr": SMALL_RATE}, captures=True),
    "seng-muon": Entry(BEFORE_MUON, {"lr": MUON_RATE}, captures=True),
    "seng-paper": Entry(AS_PUBLISHED, OF_PAPER, captures=True),
    "paper-code": Entry(AS_RELEASED, OF_PAPER, captures=True),
}

# SGD where a sample's loss is a sum of many squares: its steps have the loss's unit, those of the others do not
SUMMED_SGD = Entry(replace(SGD, lr=0.001), OPTIMIZERS["sgd"].ranges | {"lr": SUMMED_RATE}, first_order=True)

# what "seng" stands for where the loss is a function of all parameters; it finds its own step lengths
NATURAL = Entry(Natural(), {"damping": DAMPING})
