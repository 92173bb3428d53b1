"""Base optimizers that move along the preconditioned gradient. Adding one is a line in the table."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from .checks import is_number
from .errors import OptionError, choose
from .state import FORMS, anywhere, refusal
from .wrappers import own_part, sharded

LEARNING_RATES = {"sgd": 0.1, "adamw": 0.003, "muon": 0.02}  # where none is given; factories set their own
AUXILIARY_LR = 0.1  # learning rate of AdamW beside Muon, as a share of Muon's
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes
FULL_PRECISION = (torch.float32, torch.float64)


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

    lr: float | Tensor
    momentum: float
    nesterov: bool
    weight_decay: float
    extra: dict[str, Any] = field(default_factory=dict)


def sgd(model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    """SGD with momentum on all parameters: the paper's choice. Fused, a third of the time, where that is right."""
    parameters = _held(model)
    s, extra = settings, _fused(parameters, settings.extra)
    rates = {"lr": s.lr, "momentum": s.momentum, "nesterov": s.nesterov, "weight_decay": s.weight_decay}
    return [FusedSGD(parameters, **rates, **extra)]


def adamw(model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    """AdamW on all parameters, fused where that is right."""
    parameters = _held(model)
    extra = _fused(parameters, settings.extra)
    base: Optimizer = FusedAdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, **extra)
    return [base]


def _follow_dtype(base: Optimizer, group: dict[str, Any]) -> None:
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
                _follow_dtype(self, group)
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


def muon(model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    """Muon on hidden weights, kernels viewed as matrices; AdamW on embeddings, the head, norms and biases.

    AdamW runs at ``aux_lr`` (in ``extra``; AUXILIARY_LR times lr by default).
    """
    if not hasattr(torch.optim, "Muon"):
        raise OptionError(
            "SENG()", "base 'muon' needs torch.optim.Muon", expected="torch >= 2.9", got=torch.__version__,
            fix="Upgrade torch, or choose another base",
        )  # fmt: skip
    if any(map(sharded, _held(model))):
        raise OptionError(
            "SENG()", "base 'muon' needs whole matrices", expected="a model that is not sharded", got="fully_shard",
            fix="Choose base 'sgd' or 'adamw', or DistributedDataParallel",
        )  # fmt: skip
    extra = dict(settings.extra)
    aux_lr = extra.pop("aux_lr", AUXILIARY_LR * settings.lr)
    hidden = hidden_matrices(model)
    rest = [p for p in _held(model) if not any(p is q for q in hidden)]
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


BASES: dict[str, Callable[[nn.Module, BaseSettings], list[Optimizer]]] = {"sgd": sgd, "adamw": adamw, "muon": muon}


def build_bases(
    base: str | Callable[[list[nn.Parameter]], Optimizer], model: nn.Module, settings: BaseSettings
) -> list[Optimizer]:
    """Return the optimizers behind a name of the table or a factory ``params -> Optimizer``.

    Raises:
        OptionError: The base cannot be made with these options, or cannot take a step once it is.
    """
    made = [_made_by(base, model, settings)] if callable(base) else _named(base, model, settings)
    for each in made:
        _require_no_closure(each)
        if rehearsable(each) and not each.state:
            _require_steps(each)
    return made


def rehearsable(base: Optimizer) -> bool:
    """Return whether a base's steps depend on groups and state alone, as those of torch's own do."""
    return type(base).__module__.startswith(("torch.optim", __name__))


def rehearse(base: Optimizer, group: dict[str, Any], p: nn.Parameter, held: dict[str, Any]) -> None:
    """Take two steps, as the base would, with one parameter in place of a group's and with its state.

    Raises:
        Exception: Whatever a step raises; ArithmeticError where it leaves a parameter that is not finite.
    """
    double = object.__new__(type(base))
    state, groups = defaultdict(dict, {p: held} if held else {}), [{**group, "params": [p]}]
    double.__setstate__({"defaults": base.defaults, "state": state, "param_groups": groups})
    for _ in range(2):  # the first may be another: momentum begins with it
        double.step()
    if not bool(p.isfinite().all()):
        raise ArithmeticError("its step gives parameters that are not finite")


@contextmanager
def taken_back(bases: Sequence[Optimizer], go_back: Callable[[], None]) -> Iterator[None]:
    """Take back what was done within where it raises: parameters, gradients, states of bases, and what is told.

    Cost: a copy of each, while the step lasts.
    """
    parameters = [p for base in bases for group in base.param_groups for p in group["params"]]
    values = [p.detach().clone() for p in parameters]
    grads = [None if p.grad is None else (p.grad, p.grad.clone()) for p in parameters]
    states = [{key: copy.deepcopy(held) for key, held in base.state.items()} for base in bases]
    groups = [[dict(group) for group in base.param_groups] for base in bases]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for p, value, kept in zip(parameters, values, grads, strict=True):
                p.copy_(value)
                p.grad = None if kept is None else kept[0]
                if kept is not None:
                    kept[0].copy_(kept[1])
        for base, state, own in zip(bases, states, groups, strict=True):
            base.state.clear()
            base.state.update(state)
            for group, before in zip(base.param_groups, own, strict=True):
                group.update(before)
        go_back()
        raise


def add_group(bases: Sequence[Optimizer], group: dict[str, Any], model: nn.Module, spare: Collection[Tensor]) -> None:
    """Give the bases another group. Of Muon and AdamW, each takes the parameters it would have been built with.

    Args:
        bases: The bases.
        group: As ``Optimizer.add_param_group`` takes it.
        model: Which says what a hidden matrix is.
        spare: Parameters that were frozen when the bases were made. They leave the group they are in, unless they have
            been stepped with.

    Raises:
        OptionError: Muon alone cannot take a parameter.
        ValueError: Other parameters are in a group already.
    """
    given = group.get("params") if isinstance(group, dict) else None
    if given is None or isinstance(given, set):
        return bases[-1].add_param_group(group)  # which says what is wrong
    entries = [given] if isinstance(given, Tensor) else list(given)
    hidden = {id(p) for p in hidden_matrices(model)}
    parts: dict[int, list[Any]] = {}
    moved = {id(p) for p in map(_tensor_of, entries) if any(p is q for q in spare)}
    moved -= {id(p) for base in bases for p in base.state}
    for entry in entries:
        parts.setdefault(_home(bases, _tensor_of(entry), hidden), []).append(entry)
    before = [(own, own["params"], base, len(base.param_groups)) for base in bases for own in base.param_groups]
    try:
        for own, params, _, _ in before:
            own["params"] = [p for p in params if id(p) not in moved]
        for k, own in sorted(parts.items()):
            bases[k].add_param_group({**group, "params": own})
    except Exception:
        for own, params, base, count in before:
            own["params"] = params
            del base.param_groups[count:]
        raise


def _tensor_of(entry: Any) -> Any:
    """Return the parameter of an entry of a group, which may be a pair with its name."""
    return entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry


def _home(bases: Sequence[Optimizer], p: Any, hidden: Collection[int]) -> int:
    """Return the number of the base that a parameter belongs to."""
    for k, base in enumerate(bases):
        if any(p is q for group in base.param_groups for q in group["params"]):
            return k
    takes = [id(p) in hidden or not isinstance(base, getattr(torch.optim, "Muon", ())) for base in bases]
    if not any(takes):
        raise OptionError(
            "add_param_group()", "Muon takes hidden matrices only", expected="a weight of a hidden layer",
            got=list(p.shape) if isinstance(p, Tensor) else type(p).__name__, fix="Create the optimizer anew",
        )  # fmt: skip
    return takes.index(True)


def load_base(base: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict into a base, which goes on computing in the form it has.

    Raises:
        StateError: With this state the base could not take a step; it may have been loaded in part.
    """
    if not sound(base, state):
        raise refusal("the base's state is not finite", "finite numbers", "NaN or inf")
    if {"state", "param_groups"} <= state.keys():
        _load_groups(base, state)
    else:  # a form of the base's own
        base.load_state_dict(dict(state))


def sound(base: Optimizer, state: Any) -> bool:
    """Return whether a base can go on from these numbers; only those of strangers may hold what is infinite."""
    return not anywhere(state, (lambda x: ~x.isfinite()) if rehearsable(base) else torch.isnan)


def _load_groups(base: Optimizer, state: Mapping[str, Any]) -> None:
    groups, own = state["param_groups"], base.param_groups
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own]:
        raise refusal("other groups of parameters", f"{len(own)} of their sizes", len(groups))
    known = {key for group in groups for key in group["params"]}
    if unknown := [key for key in state["state"] if isinstance(key, int) and key not in known]:
        raise refusal("state of unknown parameters", f"{len(known)} parameters", unknown)
    if not all(isinstance(key, str) for group in groups for key in group):
        raise refusal("settings of the base cannot be read", "names", [sorted(map(str, group)) for group in groups])
    forms = [{key: group[key] for key in FORMS & group.keys()} for group in own]
    base.load_state_dict({**state, "param_groups": [g | form for g, form in zip(groups, forms, strict=True)]})
    for group, mine in zip(base.param_groups, own, strict=True):
        for key, value in mine.items():
            kinds = (value, base.defaults.get(key, value))
            if key in base.defaults and not any(_of_a_kind(group.get(key), like) for like in kinds):
                raise refusal(f"{key} of the base cannot be used", f"something like {value!r}", group.get(key))
        if not _of_a_kind(group.get("lr", 0.0), 0.0) or group.get("lr", 0.0) < 0:
            raise refusal("lr of the base cannot be used", "a number >= 0", group["lr"])
        if rehearsable(base):
            _require_settings(base, group)
        for p in group["params"] if rehearsable(base) else ():
            if p.requires_grad or base.state.get(p):
                _require_usable(base, group, p)


def value_of(x: Any) -> Any:
    """Return the number in a real tensor of one that has a value, and anything else as it is."""
    one = isinstance(x, Tensor) and x.numel() == 1 and x.is_floating_point() and not x.is_meta
    return x.item() if one else x


def _of_a_kind(x: Any, like: Any) -> bool:
    """Return whether a setting may take the place of another."""
    if isinstance(like, tuple | list):
        return isinstance(x, tuple | list) and len(x) == len(like) and all(map(_of_a_kind, x, like))
    if isinstance(like, bool) or like is None or not isinstance(like, int | float | Tensor):
        return like is None or isinstance(x, type(like))
    return is_number(x) or (isinstance(x, Tensor) and x.numel() == 1 and bool(x.isfinite()))


def _require_settings(base: Optimizer, group: dict[str, Any]) -> None:
    """Raise StateError where no base could have been made with a group's settings."""
    known = signature(type(base)).parameters
    every = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values())
    names = [key for key in base.defaults if key not in FORMS and (every or key in known)]
    settings = {key: group[key] for key in names}
    try:
        type(base)([nn.Parameter(torch.zeros(2, 2))], **settings)  # pyright: ignore[reportCallIssue]
    except Exception as error:
        expected = f"settings of {type(base).__name__}"
        raise refusal(f"settings of the base cannot be used: {error}", expected, settings) from error


def _require_usable(base: Optimizer, group: dict[str, Any], p: Tensor) -> None:
    """Raise StateError where the base cannot go on from what it holds of a parameter."""
    step = value_of(base.state.get(p, {}).get("step", 0))
    if not is_number(step) or not 0 <= step < 2**53:
        raise refusal("the base's count of steps cannot be used", "a number >= 0, below 2^53", step)
    held = {key: copy.deepcopy(own_part(x) if isinstance(x, Tensor) else x) for key, x in base.state.get(p, {}).items()}
    probe = nn.Parameter(torch.zeros_like(own_part(p)))
    probe.grad = torch.zeros_like(probe)
    try:  # in the plain form, which compares shapes
        rehearse(base, {**group, **{form: None for form in ("fused", "foreach") if form in group}}, probe, held)
    except Exception as error:
        shapes = {key: list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for key, x in held.items()}
        raise refusal(f"the base could not take a step: {error}", f"state of {list(p.shape)}", shapes) from error


def _made_by(factory: Callable[[list[nn.Parameter]], Optimizer], model: nn.Module, settings: BaseSettings) -> Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.extra:
        raise OptionError(
            "SENG()", "base_options do not go with a factory", expected="None", got=sorted(map(str, settings.extra)),
            fix="Give them to the optimizer that the factory makes",
        )  # fmt: skip
    try:
        made = factory(list(parameters))
    except Exception as error:
        raise OptionError(
            "SENG()", "the base factory failed", expected="a torch.optim.Optimizer from a list of parameters",
            got=type(error).__name__, fix=f"Correct it: {error}",
        ) from error  # fmt: skip
    own = {id(p) for p in parameters}
    if not isinstance(made, Optimizer) or not any(id(p) in own for group in made.param_groups for p in group["params"]):
        raise OptionError(
            "SENG()", "base factory out of range", expected="a torch.optim.Optimizer", got=type(made).__name__,
            fix="Return an optimizer on the parameters it was given",
        )  # fmt: skip
    return made


def _named(name: str, model: nn.Module, settings: BaseSettings) -> list[Optimizer]:
    build = choose(BASES, name, call="SENG()", option="base")
    try:
        return build(model, settings)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            "SENG()", f"base {name!r} does not take base_options", expected="its keyword arguments",
            got=settings.extra, fix=f"Correct them: {error}",
        ) from error  # fmt: skip


def _require_no_closure(base: Optimizer) -> None:
    needed = [
        name
        for name, parameter in signature(base.step).parameters.items()
        if parameter.default is Parameter.empty
        and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    ]
    if needed:
        raise OptionError(
            "SENG()", f"base {type(base).__name__} cannot step alone", expected="a step() without arguments",
            got=f"step({', '.join(needed)})", fix="Choose a base that takes one gradient a step",
        )  # fmt: skip


def _require_steps(base: Optimizer) -> None:
    """Raise OptionError where the base cannot take steps with one parameter of each kind it has."""
    for group in base.param_groups:
        kinds = {(p.dtype, p.device, p.dim()) for p in group["params"] if p.requires_grad and not p.is_meta}
        for dtype, device, axes in kinds:
            p = nn.Parameter(torch.ones([1] * axes, dtype=dtype, device=device))
            p.grad = torch.ones_like(p)
            try:
                rehearse(base, group, p, {})
            except Exception as error:
                raise OptionError(
                    "SENG()", f"base {type(base).__name__} cannot take a step",
                    expected=f"options that serve {dtype} on {device}", got=type(error).__name__,
                    fix=f"Correct base_options: {error}",
                ) from error  # fmt: skip


def _held(model: nn.Module) -> list[nn.Parameter]:
    """Return what a base holds: all parameters that are trained, or may be later, as with torch's own optimizers."""
    return [p for p in model.parameters() if p.requires_grad or p.is_floating_point()]


def _fused(parameters: list[nn.Parameter], extra: dict[str, Any]) -> dict[str, Any]:
    """Return a base's options with its fused form chosen, unless they choose a form themselves."""
    able = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() and not sharded(p) for p in parameters)
    return {"fused": able and not {"foreach", "differentiable", "capturable"} & extra.keys(), **extra}


def _matrix_muon() -> Callable[..., Optimizer]:
    class MatrixMuon(torch.optim.Muon):
        """Muon that sees a kernel [d_out, d_in, ...] as the matrix [d_out, d_in * ...]."""

        def __init__(self, params: Sequence[nn.Parameter], **settings: Any):
            with _as_matrices(params):
                super().__init__(params, **settings)

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                _follow_dtype(self, group)
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
