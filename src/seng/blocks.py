"""Blocks: which parameters are preconditioned together, under which names, and which pass through and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from operator import attrgetter

import torch
from torch import nn

from .capture import Watched
from .config import Options, Selector
from .errors import ModelError, OptionError, OrderError
from .layers import LAYERS, UNSUPPORTED_CONTAINERS, Bare, Layer, Names, bare, layer_of, parameter_of
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


def lay_out(model: nn.Module, options: Options, call: str) -> Layout:
    """Group the model's trainable parameters into blocks. Those without elements count as none.

    Raises:
        ModelError: No trainable parameter, or no supported layer among those selected.
        OptionError: A pattern of include or exclude matches no module.
    """
    names = {p: _clean(name) for name, p in model.named_parameters() if p.requires_grad and p.numel()}
    if not names:
        raise ModelError(
            call, "the model has no trainable parameters", expected="at least one", got=type(model).__name__,
            fix="Pass a model with parameters that require gradients",
        )  # fmt: skip
    modules = [(_clean(name), module) for name, module in model.named_modules()]
    _require_matches(modules, options, call)
    reasons: dict[nn.Parameter, str] = {}
    watched = _select(modules, options, reasons)
    trained = _without_foreign_uses([entry for entry in watched if entry.wanted], watched, modules, reasons)
    blocks = _group(trained, names)
    if not blocks:
        raise ModelError(
            call, "no supported layer", expected="one of " + ", ".join(kind.__name__ for kind in LAYERS),
            got=type(model).__name__, fix="Use a plain optimizer, or check include and exclude",
        )  # fmt: skip
    held = {parameter for block in blocks.values() for parameter in block.parameters}
    passing = {name: parameter for parameter, name in names.items() if parameter not in held}
    passed = {name: reasons.get(parameter, "no module owns it") for name, parameter in passing.items()}
    return Layout(blocks, passed, passing, tuple(watched), fingerprint(model))


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return the model's modules and parameters as they are now. Cost: one pass over the modules."""
    return [
        (module, key, p, p is not None and p.requires_grad)
        for module in model.modules()
        for key, p in (module._parameters.items() or [("", None)])
    ]


def _clean(name: str) -> str:
    """Return a qualified name without what compiled submodules add to it."""
    return name.removeprefix("_orig_mod.").replace("._orig_mod", "")


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


def _matches(name: str, module: nn.Module, selectors: Iterable[Selector]) -> bool:
    return any(fnmatchcase(name, s) if isinstance(s, str) else isinstance(module, s) for s in selectors)


def _require_matches(modules: list[tuple[str, nn.Module]], options: Options, call: str) -> None:
    for option in ("include", "exclude"):
        for selector in getattr(options, option) or ():
            if not any(_matches(name, module, [selector]) for name, module in modules):
                raise OptionError(
                    call, f"a selector of {option} matches no module", expected="a type or pattern of this model",
                    got=selector, fix="See model.named_modules() for the names",
                )  # fmt: skip
    own = [f"{name}.{key}" if name else key for name, module in modules for key in module._parameters]
    for pattern in options.bare_parameters:
        if not any(fnmatchcase(name, pattern) for name in own):
            raise OptionError(
                call, "a pattern of bare_parameters matches no parameter", expected="a pattern of this model",
                got=pattern, fix="See model.named_parameters() for the names",
            )  # fmt: skip


def _select(modules: list[tuple[str, nn.Module]], options: Options, reasons: dict[nn.Parameter, str]) -> list[Watched]:
    inside = {
        child: reason
        for _, module in modules
        for kind, reason in UNSUPPORTED_CONTAINERS.items()
        if isinstance(module, kind) and layer_of(module) is None
        for child in module.modules()
    }
    lists = {name for name, module in modules if isinstance(module, nn.ModuleList)}
    watched, claimed = [], set()
    for name, module in modules:
        if module in claimed:
            continue
        layer = layer_of(module)
        if options.bare_parameters:
            watched += _bare(name, module, layer, options.bare_parameters)
        children = claimed_by(module, layer)
        claimed.update(children)
        own = [p for m in (module, *children) for p in m._parameters.values() if p is not None]
        own = [p for p in own if p.requires_grad and p.numel()]
        held = [] if layer is None else _present(module, layer)
        if not own and not held:
            continue
        if module in inside:
            reason = inside[module]
        elif any(p.is_complex() for p in own):
            reason = "complex parameters are not supported"
        elif layer is None:
            reason = f"{type(module).__name__} is not supported"
        elif (why := layer.unsupported(module)) is not None:
            reason = why
        elif layer.reads and any(sharded(p) for p in own):
            reason = f"{type(module).__name__} is supported with whole parameters alone"
        elif options.include is not None and not _matches(name, module, options.include):
            reason = "not included"
        elif _matches(name, module, options.exclude):
            reason = "excluded"
        else:
            reason = f"{type(module).__name__} computes its own weight"
            trained = [tuple(key for key in part if attrgetter(key)(module).requires_grad) for part in held]
            parts = tuple(part for part in trained if part)
            if parts or not own:
                watched.append(Watched(name, module, layer, parts, _family(name, lists)))
        reasons.update(dict.fromkeys(own, reason))
    return watched


def _bare(name: str, module: nn.Module, layer: Layer | None, patterns: Sequence[str]) -> list[Watched]:
    """Return a module's own parameters that no layer has and a pattern names, each as a layer of its own."""
    known = {key for part in (layer.parts(module) if layer else ()) for key in part}
    found = []
    for key, p in module._parameters.items():
        path = f"{name}.{key}" if name else key
        if p is None or key in known or not p.numel() or p.is_complex() or sharded(p):
            continue
        if any(fnmatchcase(path, pattern) for pattern in patterns):
            found.append(Watched(path, module, bare(key), ((key,),) if p.requires_grad else ()))
    return found


def _present(module: nn.Module, layer: Layer) -> list[Names]:
    """Return the parts of a layer as far as the module has their parameters."""

    def there(name: str) -> bool:
        p = parameter_of(module, name)
        return p is not None and p.numel() > 0

    parts = [tuple(filter(there, part)) for part in layer.parts(module)]
    return [part for part in parts if part]


def claimed_by(module: nn.Module, layer: Layer | None) -> list[nn.Module]:
    """Return the submodules whose parameters the module reads itself: its layer names them with a path."""
    paths = {name.split(".")[0] for part in (layer.parts(module) if layer else ()) for name in part if "." in name}
    return [child for path in sorted(paths) for child in module.get_submodule(path).modules()]


def _family(name: str, lists: set[str]) -> str:
    """Return a name with * for its places in module lists, "" where it has none."""
    parts = name.split(".")
    starred = ["*" if ".".join(parts[:k]) in lists else part for k, part in enumerate(parts)]
    return ".".join(starred) if "*" in starred else ""


def _without_foreign_uses(
    trained: list[Watched],
    watched: list[Watched],
    modules: list[tuple[str, nn.Module]],
    reasons: dict[nn.Parameter, str],
) -> list[Watched]:
    """Leave out modules that share a parameter, directly or through others, with a module that is not captured."""
    alone = {
        (entry.module, name) for entry in watched if isinstance(entry.layer.function, Bare) for name in entry.wanted
    }
    layers = [entry for entry in watched if not isinstance(entry.layer.function, Bare)]
    captured = {child for entry in layers for child in (entry.module, *claimed_by(entry.module, entry.layer))}
    foreign = {
        p: name
        for name, module in modules
        if module not in captured
        for key, p in module._parameters.items()
        if p is not None and (module, key) not in alone
    }
    while True:
        shared = [entry for entry in trained if any(p in foreign for p in _parameters(entry))]
        if not shared:
            return trained
        for entry in shared:
            own = _parameters(entry)
            name = next(foreign[p] for p in own if p in foreign)
            reasons.update(dict.fromkeys(own, f"shared with {name or 'the model itself'}, which is not captured"))
            foreign |= {p: entry.name for p in own if p not in foreign}
        trained = [entry for entry in trained if entry not in shared]


def _parameters(entry: Watched) -> list[nn.Parameter]:
    return [attrgetter(name)(entry.module) for name in entry.wanted]


def _group(watched: list[Watched], names: dict[nn.Parameter, str]) -> dict[str, Block]:
    """Join parts that share a parameter, and those of one module that are preconditioned together."""
    groups: list[tuple[set[nn.Parameter], list[Member]]] = []
    for entry in watched:
        parts = [Member(entry, part) for part in entry.parts]
        for together in [parts] if entry.layer.joint else [[member] for member in parts]:
            own = {p for member in together for p in member.parameters}
            joined = [group for group in groups if group[0] & own]
            groups = [group for group in groups if not group[0] & own]
            members = [member for group in joined for member in group[1]] + together
            groups.append((own.union(*(group[0] for group in joined)), members))
    blocks = {}
    for _, members in groups:
        parameters = list(dict.fromkeys(p for member in members for p in member.parameters))
        index = {parameter: k for k, parameter in enumerate(parameters)}
        slots = tuple((m, tuple(index[p] for p in m.parameters)) for m in members)
        joint = all(m.watched is members[0].watched for m in members)
        block = Block(
            members[0].watched.name if joint and members[0].layer.joint else members[0].name,
            tuple(parameters), tuple(names[p] for p in parameters), slots,
        )  # fmt: skip
        blocks[block.name] = block
    return blocks
