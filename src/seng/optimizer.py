"""SENG: the preconditioner and a base optimizer as one torch optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import nullcontext
from inspect import signature
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .bases import BaseSettings, add_group, build_bases, load_base, rehearsable, taken_back
from .config import OptionKeywords, Options, shows_options
from .diagnostics import Coverage, LayerStats
from .errors import OrderError
from .events import few
from .optim_state import BaseStates, parts_of, whole_state
from .packed import readable
from .preconditioner import Preconditioner
from .state import relocated
from .wrappers import unwrap

if TYPE_CHECKING:
    from typing_extensions import Unpack

NO_GROUP = "no group of the optimizer holds it, so it does not move: call add_param_group()"


class SENG(Optimizer):
    """Sample-space natural gradient as a drop-in torch optimizer.

    A step preconditions ``.grad`` layer by layer and hands it to the base optimizer:

        d = (F + lambda I)^-power g,   theta <- base(theta, d).

    Args:
        model: The model itself (not its parameters): curvature comes from hooks on its layers. Create the optimizer
            before the first forward pass, and before ``torch.compile``.
        lr: Learning rate of the base, >= 0: a number, or a tensor of one. By default 0.1 for "sgd", 0.003 for "adamw"
            and 0.02 for "muon". None beside a factory.
        momentum: Of the SGD base, in [0, 1).
        nesterov: Of the SGD base.
        weight_decay: Of the base, >= 0.
        base: "sgd", "adamw", "muon", or a factory ``params -> Optimizer`` (which sets its own learning rate).
        base_options: Further keyword arguments of the base; "muon" also takes ``aux_lr``, AdamW's rate.
        **options: See ``seng.Options``.

    Raises:
        OptionError: An option is unknown or out of range.
        ModelError: Nothing can be preconditioned.

    Cost: a base step, and what ``seng.plan`` says.
    Source: PAPER sections 1 to 4.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = SENG(model, lr=0.1)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    @shows_options
    def __init__(
        self,
        /,
        model: nn.Module,
        lr: float | Tensor | None = None,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 5e-4,
        base: str | Callable[[list[nn.Parameter]], Optimizer] = "sgd",
        base_options: dict[str, Any] | None = None,
        **options: Unpack[OptionKeywords],
    ):
        unwrap(model, "SENG()")
        settings = BaseSettings.build(base, lr, momentum, nesterov, weight_decay, base_options)
        Options.build("SENG()", dict(options), signature(SENG).parameters)
        self.preconditioner = Preconditioner(model, call="SENG()", **options)
        try:
            bases = build_bases(base, model, settings)
        except Exception:
            self.preconditioner.close()
            raise
        self.bases: list[Optimizer] = []
        super().__init__(
            [p for b in bases for group in b.param_groups for p in group["params"]], dict(bases[0].defaults)
        )
        self.bases = bases
        self._share_groups()
        self._model, self._layout = model, self.preconditioner.layout
        self._foreign = [base for base in bases if not rehearsable(base)]
        self._frozen = [p for p in model.parameters() if not p.requires_grad]

    @property
    def state(self) -> MutableMapping[Any, Any]:
        """The bases' state by parameter; changes to it are changes of theirs."""
        return BaseStates(self.bases, self._firsts(), self.preconditioner.steps > 0)

    @state.setter
    def state(self, value: Mapping[Any, Any]) -> None:  # type: ignore[override]
        for base in self.bases:
            base.state.clear()
        self.state.update(value)

    def _firsts(self) -> list[Tensor]:
        """Return the first parameter of each block, with which its curvature is kept."""
        return [block.parameters[0] for block in self.preconditioner.blocks.values()]

    def _share_groups(self) -> None:
        """Show the bases' own groups, so that learning-rate schedulers and users act on them."""
        self.param_groups = [group for base in self.bases for group in base.param_groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Give the base another group; its parameters get plain gradients unless the model holds them.

        Parameters that were frozen at creation, and have not been stepped with, leave the group they are in. Beside
        "muon", matrices of hidden layers go to Muon and all others to AdamW; the group's settings are for both.
        """
        if not self.bases:
            return super().add_param_group(param_group)
        add_group(self.bases, param_group, self._model, self._frozen)
        return self._share_groups()

    def _warn_of_strays(self) -> None:
        """Name parameters that came to the model after creation and are in no group: nothing moves them."""
        layout = self.preconditioner.layout
        known = {p for group in self.param_groups for p in group["params"]} | set(self._layout.named().values())
        self._layout = layout
        if strays := [name for name, p in layout.named().items() if p not in known]:
            text = f"in no group of the optimizer, and not moved: {few(strays)}"
            warnings.warn(f"seng: {text}. Give new parameters to add_param_group()", stacklevel=4)

    @torch.no_grad()
    def step(self, closure: Callable[[], float | Tensor] | None = None) -> float | Tensor | None:  # type: ignore[override]
        """Call the closure if there is one, precondition the gradients, and take the base's step.

        A step with a loss or gradient that is not finite is skipped: nothing changes but ``counters``. Before the first
        batch, a step along gradients that are all zero is the base's alone: so tools have a base lay out its state.
        Where a base raises, parameters, gradients, momentum, curvature and counters are as before.

        Returns:
            The closure's loss.
        """
        loss = spoiled = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if loss is not None and not isfinite(float(loss.detach() if isinstance(loss, Tensor) else loss)):
                spoiled = "the loss is not finite"
        # bases of this library do not raise; only where there are others copies are made
        with taken_back(self._foreign, self.preconditioner.mark()) if self._foreign else nullcontext():
            if (spoiled is None and self.preconditioner.idle()) or self.preconditioner.step(spoiled):
                for base in self.bases:
                    base.step()
        if self.preconditioner.layout is not self._layout:
            self._warn_of_strays()
        return loss

    def _not_in_groups(self) -> list[str]:
        held = {id(p) for group in self.param_groups for p in group["params"]}
        return [name for name, p in self.preconditioner.layout.named().items() if id(p) not in held]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and what was captured along with them."""
        super().zero_grad(set_to_none)
        self.preconditioner.discard_captured()

    def stats(self) -> dict[str, LayerStats]:
        """Return the state of every block that has curvature, by name."""
        return self.preconditioner.stats()

    @property
    def counters(self) -> dict[str, int]:
        """Skipped steps, failed refreshes and other events so far, by name."""
        return self.preconditioner.counters

    def coverage(self) -> Coverage:
        """Return which parameters are preconditioned, how, and which pass through and why."""
        found = self.preconditioner.coverage()
        unheld = dict.fromkeys(self._not_in_groups(), NO_GROUP)
        return found.without(unheld, self.preconditioner.layout.named()) if unheld else found

    def close(self) -> None:
        """Remove the hooks from the model."""
        self.preconditioner.close()

    def state_dict(self, *, curvature: bool = True) -> dict[str, Any]:
        """Return bases, counters and curvature: tensors and plain values only.

        "bases" and "preconditioner" hold each part's own state; "state" and "param_groups" the same as ``torch.optim``
        lays it out, so that its tools can read it. Each pair alone can be loaded.

        Args:
            curvature: Whether to include curvature, the largest part. A run that resumes without it refreshes at its
                first step.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        preconditioner = self.preconditioner.state_dict()
        preconditioner = preconditioner if curvature else relocated(preconditioner, None, {})
        state = whole_state(self.bases, preconditioner, self._places())
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state)
            state = state if changed is None else changed
        return state

    def _places(self) -> dict[str, tuple[int, torch.device]]:
        """Return number and device of each block's first parameter, of those that a base has."""
        numbers = {p: k for k, p in enumerate(p for group in self.param_groups for p in group["params"])}
        firsts = zip(self.preconditioner.blocks, self._firsts(), strict=True)
        return {name: (numbers[p], p.device) for name, p in firsts if p in numbers}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse copies and pickles, which would leave the hooks and the curvature behind."""
        raise OrderError(
            "copy or pickle of SENG", "hooks belong to one model", expected="a state dict", got=type(self).__name__,
            fix="Create a SENG on the other model and give it this one's state_dict()",
        )  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, so that training continues bit for bit.

        Raises:
            StateError: The state is truncated, foreign, of another version or another model; nothing has changed then.
        """
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        layout = self.preconditioner.layout.signature()
        self.load_parts(lambda: parts_of(state_dict, self.bases, self._places(), layout))
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    @torch.no_grad()
    def load_parts(self, parts: Callable[[], tuple[list[Any], dict[str, Any]]]) -> None:
        """Restore the state of each base and of the preconditioner, or nothing where ``parts`` or one of them raises.

        Raises:
            StateError: A part is not one that can be gone on from.
        """
        before = [dict(vars(base)) for base in self.bases]
        try:
            with readable():
                bases, preconditioner = parts()
                for base, state in zip(self.bases, bases, strict=True):
                    load_base(base, state)
                self.preconditioner.load_state_dict(preconditioner)
        except Exception:
            for base, held in zip(self.bases, before, strict=True):
                vars(base).clear()
                vars(base).update(held)
            raise
        finally:
            self._share_groups()
