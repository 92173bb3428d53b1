"""SENG: the preconditioner and a base optimizer as one torch optimizer."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .bases import LEARNING_RATES, BaseSettings, build_bases
from .config import Options, is_number, plain
from .diagnostics import Coverage, LayerStats
from .errors import OptionError, OrderError, SengError
from .preconditioner import Preconditioner
from .state import refusal


class SENG(Optimizer):
    """Sample-space natural gradient as a drop-in torch optimizer.

    A step preconditions ``.grad`` layer by layer and hands it to the base optimizer:

        d = (F + lambda I)^-power g,   theta <- base(theta, d).

    Args:
        model: The model itself (not its parameters): curvature comes from hooks on its layers. Create the optimizer
            before the first forward pass, and before ``torch.compile``.
        lr: Learning rate of the base, >= 0: a number, or a tensor of one. By default 0.1 for "sgd", 0.003 for "adamw"
            and 0.02 for "muon".
        momentum: Of the SGD base, in [0, 1).
        nesterov: Of the SGD base.
        weight_decay: Of the base, >= 0.
        base: "sgd", "adamw", "muon", or a factory ``params -> Optimizer`` (which sets its own learning rate).
        base_options: Further keyword arguments of the base; "muon" also takes ``aux_lr``, AdamW's rate.
        **options: See ``seng.config.Options``.

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
        **options: Any,
    ):
        if not isinstance(model, nn.Module):
            raise OptionError(
                "SENG()", "model out of range", expected="a torch.nn.Module", got=type(model).__name__,
                fix="Pass the model, not its parameters",
            )  # fmt: skip
        lr, momentum, weight_decay = plain(lr), plain(momentum), plain(weight_decay)
        _require("lr", lr, lr is None or _in_range(_value(lr)), "a number >= 0, or None for the base's default")
        _require("momentum", momentum, _in_range(momentum, 1), "a number in [0, 1)")
        _require("weight_decay", weight_decay, _in_range(weight_decay), "a number >= 0")
        _require("nesterov", nesterov, isinstance(nesterov, bool), "True or False")
        _require("nesterov", nesterov, not nesterov or momentum > 0, "False where momentum is 0")
        _require("base_options", base_options, isinstance(base_options, dict | None), "a dict or None")
        if lr is None:
            lr = LEARNING_RATES.get(base, 0.0) if isinstance(base, str) else 0.0
        settings = BaseSettings(lr, momentum, nesterov, weight_decay, base_options or {})
        Options.build("SENG()", options, signature(SENG).parameters)
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

    def _share_groups(self) -> None:
        """Show the bases' own groups, so that learning-rate schedulers and users act on them."""
        self.param_groups = [group for base in self.bases for group in base.param_groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Give the last base another group; its parameters get plain gradients unless the model holds them."""
        if not self.bases:
            return super().add_param_group(param_group)
        self.bases[-1].add_param_group(param_group)
        return self._share_groups()

    @torch.no_grad()
    def step(self, closure: Callable[[], float | Tensor] | None = None) -> float | Tensor | None:  # type: ignore[override]
        """Call the closure if there is one, precondition the gradients, and take the base's step.

        A step with a loss or gradient that is not finite is skipped: nothing changes but ``counters``.

        Returns:
            The closure's loss.
        """
        loss = spoiled = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if loss is not None and not isfinite(float(loss.detach() if isinstance(loss, Tensor) else loss)):
                spoiled = "the loss is not finite"
        if self.preconditioner.step(spoiled):
            for base in self.bases:
                base.step()
        return loss

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
        return self.preconditioner.coverage()

    def close(self) -> None:
        """Remove the hooks from the model."""
        self.preconditioner.close()

    def state_dict(self) -> dict[str, Any]:
        """Return bases, counters and curvature: tensors and plain values only."""
        return {
            "bases": [base.state_dict() for base in self.bases],
            "preconditioner": self.preconditioner.state_dict(),
        }

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
        self._check(state_dict)
        before = [base.state_dict() for base in self.bases]
        try:
            for base, state in zip(self.bases, state_dict["bases"], strict=True):
                base.load_state_dict(state)
                _require_fitting(base)
            self.preconditioner.load_state_dict(state_dict["preconditioner"])
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            for base, state in zip(self.bases, before, strict=True):
                base.load_state_dict(state)
            if isinstance(error, SengError):
                raise
            raise refusal("the base optimizer cannot read it", "its own state", str(error)) from error
        finally:
            self._share_groups()

    def _check(self, state: Any) -> None:
        if not isinstance(state, dict) or not {"bases", "preconditioner"} <= set(state):
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise refusal("not a whole state of seng", "keys 'bases' and 'preconditioner'", got)
        if not isinstance(state["bases"], list) or len(state["bases"]) != len(self.bases):
            raise refusal("other base optimizers", f"{len(self.bases)} states", len(state["bases"]))


def _require_fitting(base: Optimizer) -> None:
    """Raise StateError where a loaded state holds a tensor that is no scalar and does not fit its parameter."""
    for parameter, state in base.state.items():
        for key, value in state.items():
            fits = isinstance(value, Tensor) and value.numel() in (1, parameter.numel())
            if not fits and not (value is None or isinstance(value, int | float)):
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise refusal(f"the base's {key} does not fit", f"{list(parameter.shape)}", got)


def _value(lr: Any) -> Any:
    """Return the number in a real tensor of one, and anything else as it is."""
    one = isinstance(lr, Tensor) and lr.numel() == 1 and lr.is_floating_point()
    return lr.item() if one else lr


def _in_range(value: Any, high: float = float("inf")) -> bool:
    return is_number(value) and 0 <= value < high


def _require(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise OptionError("SENG()", f"{name} out of range", expected=expected, got=value, fix=f"Pass {name} in range")
