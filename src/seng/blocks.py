"""Blocks: which parameters are preconditioned together, under which names, and which pass through and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import torch
from torch import nn

from .capture import Watched
from .errors import OrderError
from .layers import Layer, Names
from .wrappers import Cut, cut_of, sharded

Fingerprint = list[tuple[nn.Module, str, "nn.Parameter | None", bool]]


@dataclass(frozen=True)
class Member:
    """Parameters of one module whose gradients come together.

    Args:
        watched: The module.
        wanted: Names of the parameters within it.
    """

    watched: Watched
    wanted: Names

    @cached_property
    def name(self) -> str:
        """Name of what the capture gives of them."""
        return self.watched.key(self.wanted)

    @property
    def module(self) -> nn.Module:
        """The module."""
        return self.watched.module

    @property
    def layer(self) -> Layer:
        """How the module gives the gradients."""
        return self.watched.layer

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters."""
        return tuple(attrgetter(name)(self.module) for name in self.wanted)


@dataclass(frozen=True)
class Block:
    """Parameters preconditioned together: those of one layer, or of all layers that share one.

    Args:
        name: Qualified name of the first member.
        parameters: Trainable parameters, each once.
        parameter_names: Their qualified names.
        members: Parts of modules, each with the positions of its parameters in ``parameters``.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    parameter_names: tuple[str, ...]
    members: tuple[tuple[Member, tuple[int, ...]], ...]

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the curvature: at least float32."""
        return torch.promote_types(self.parameters[0].dtype, torch.float32)

    def same_as(self, other: Block | None) -> bool:
        """Return whether another block has the same parameters in the same modules."""
        return (
            other is not None
            and [id(p) for p in self.parameters] == [id(p) for p in other.parameters]
            and [(entry.module, entry.wanted) for entry, _ in self.members]
            == [(entry.module, entry.wanted) for entry, _ in other.members]
        )

    @property
    def tied(self) -> bool:
        """Whether members share a parameter."""
        return sum(len(slots) for _, slots in self.members) > len(self.parameters)

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """How each parameter is cut among the ranks; empty where every rank has all of them."""
        return tuple(cut for p in self.parameters if (cut := cut_of(p)) is not None)


@dataclass(frozen=True)
class Layout:
    """The model as the preconditioner sees it.

    Args:
        blocks: By name.
        passed: Reason by qualified name of each trainable parameter that no block holds.
        passing: Those parameters.
        watched: Every module that can be captured, also those whose parameters are frozen now.
        fingerprint: Which modules and parameters the model had, and which of them were trained.
    """

    blocks: dict[str, Block]
    passed: dict[str, str]
    passing: dict[str, nn.Parameter]
    watched: tuple[Watched, ...]
    fingerprint: Fingerprint

    @property
    def cut_among(self) -> int:
        """Number of ranks that the parameters are cut among; 1 where every rank has all of them."""
        return next((cut.world for block in self.blocks.values() for cut in block.cuts), 1)

    @property
    def sharded(self) -> bool:
        """Whether ``fully_shard`` made the parameters, be it for one rank alone."""
        return any(sharded(p) for block in self.blocks.values() for p in block.parameters)

    def named(self) -> dict[str, nn.Parameter]:
        """Return all trainable parameters, by name."""
        held = {name: p for b in self.blocks.values() for name, p in zip(b.parameter_names, b.parameters, strict=True)}
        return held | self.passing

    def describes(self, model: nn.Module) -> bool:
        """Return whether the model still has these modules and parameters, and trains the same ones."""
        current = fingerprint(model)
        return len(current) == len(self.fingerprint) and all(
            a[0] is b[0] and a[1] == b[1] and a[2] is b[2] and a[3] == b[3]
            for a, b in zip(current, self.fingerprint, strict=True)
        )

    def require_current(self, call: str) -> None:
        """Raise OrderError where ``fully_shard`` has replaced parameters since they were laid out."""
        for name, block in self.blocks.items():
            for member, slots in block.members:
                held = [block.parameters[k] for k in slots]
                pairs = zip(member.parameters, held, strict=True)
                if any(new is not old and sharded(new) and not sharded(old) for new, old in pairs):
                    raise OrderError(
                        call, "a module has other parameters than it had", expected="those the optimizer was made with",
                        got=", ".join(member.wanted), layer=name, fix="Create the optimizer after fully_shard",
                    )  # fmt: skip

    def signature(self) -> dict[str, dict[str, list[int]]]:
        """Return the shape of every trainable parameter, by block and name."""
        names = {
            name: dict(zip(block.parameter_names, block.parameters, strict=True)) for name, block in self.blocks.items()
        }
        names["passing through"] = self.passing
        return {name: {key: list(p.shape) for key, p in own.items()} for name, own in names.items()}


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return the model's modules and parameters as they are now. Cost: one pass over the modules."""
    return [
        (module, key, p, p is not None and p.requires_grad)
        for module in model.modules()
        for key, p in (module._parameters.items() or [("", None)])
    ]


def reweightable(layout: Layout) -> frozenset[str]:
    """Return the names of blocks that are one linear layer whose weight is trained.

    The smallest is left out where no other block keeps its gradient: one must tell whether gradients were cleared.
    """
    linear = [
        name
        for name, block in layout.blocks.items()
        if len(block.members) == 1
        and type(block.members[0][0].module) is nn.Linear
        and "weight" in block.members[0][0].wanted
    ]
    if len(linear) == len(layout.blocks):
        linear.remove(min(linear, key=lambda name: sum(p.numel() for p in layout.blocks[name].parameters)))
    return frozenset(linear)
