"""NaturalGradient: directions, step lengths and damping from step to step."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError, choose
from ..schedules import Schedule, value_at
from .config import Settings, require_number
from .damping import DAMPING_RULES
from .direction import Info, SingularError, direction
from .linesearch import LINE_SEARCHES
from .problem import NotFiniteError, Problem, problem_of
from .state import Held, read, write
from .trees import params_of

EVENTS = ("accepted", "rejected", "skipped", "unsolved", "jittered")


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Args:
        step: Its number, from 0.
        accepted: Whether the parameters moved.
        reason: Why they did not; empty where they did.
        loss: Loss of the batch before.
        loss_after: Loss of the same batch after.
        damping: Damping asked for, as in the options.
        length: Step length, 0 where the parameters did not move.
        gain_ratio: Fall of the loss over the fall the quadratic model promised, or None without a step.
        info: What is known about the direction, or None where there was none.
    """

    step: int
    accepted: bool
    reason: str
    loss: float
    loss_after: float
    damping: float
    length: float
    gain_ratio: float | None
    info: Info | None


class NaturalGradient:
    """Natural gradient over all parameters, with momentum, step lengths and damping found on the way.

        d = argmin |J d - r|^2 + lambda |d - momentum * d_before|^2,    parameters <- parameters - length * d.

    A step whose losses are not finite, whose system cannot be solved, or along which no length lowers the loss, leaves
    the parameters as they are and is counted; the latter two raise a damping that follows the gain ratio, and forget
    the last direction.

    Args:
        params: As in ``natural_gradient``. Accepted steps write into these tensors in place.
        residual_fn: As in ``natural_gradient``.
        lr: First step length that is tried, > 0; with line_search="none" the only one.
        damping: Number > 0, or a callable of the step; relative unless ``damping_mode="absolute"``.
        damping_rule: Name in ``seng.func.DAMPING_RULES``; a callable damping needs "constant".
        momentum: Number >= 0 and < 1: how much of the last direction is kept where the rows say nothing.
        line_search: Name in ``seng.func.LINE_SEARCHES``.
        **settings: See ``seng.func.Settings``.

    Attributes:
        params: What was given.
        damping: Damping of the next step.
        steps: Number of steps taken or tried.
        counters: Events by name: "accepted", "rejected", "skipped" (not finite), "unsolved", "jittered".

    Raises:
        OptionError: An argument is unknown or out of range.

    Cost: a step takes a direction (see ``natural_gradient``), and 16 forward passes with the grid.
    Source: PAPER section 1; Goldshlager, Abrahamsen, Lin, "A Kaczmarz-inspired approach" (2024) for the momentum;
    Moré (1978) for the damping.

    Example:
        >>> x = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> w = torch.zeros(2, dtype=torch.float64)
        >>> optimizer = NaturalGradient(w, lambda w, xi: torch.exp(w[0] * xi) + w[1] - torch.exp(-xi))
        >>> results = [optimizer.step(x) for _ in range(40)]
        >>> torch.allclose(w, torch.tensor([-1.0, 0.0], dtype=torch.float64), atol=1e-4)
        True
    """

    def __init__(
        self, params: Any, residual_fn: Any, *, lr: float = 1.0, damping: Schedule[float] = 0.1,
        damping_rule: str = "levenberg_marquardt", momentum: float = 0.9, line_search: str = "grid", **settings: Any,
    ):  # fmt: skip
        call = "NaturalGradient()"
        require_number(call, "lr", lr, low=0.0, open_low=True)
        require_number(call, "momentum", momentum, low=0.0, below=1.0)
        self._rule = choose(DAMPING_RULES, damping_rule, call=call, option="damping_rule")
        self._search = choose(LINE_SEARCHES, line_search, call=call, option="line_search")
        if callable(damping) and damping_rule != "constant":
            raise OptionError(
                call, "damping has two masters", expected="damping_rule='constant' with a schedule", got=damping_rule,
                fix="Pass a number, or damping_rule='constant'",
            )  # fmt: skip
        require_number(call, "damping", value_at(damping, 0), low=0.0, open_low=True)
        self.params, self.residual_fn, self.lr, self.momentum = params, residual_fn, lr, momentum
        self.settings = Settings.build(call, settings)
        self._layout, self._given = params_of(params, call), damping
        self._always = damping_rule == "constant" and line_search == "none"
        self.steps, self.damping = 0, value_at(damping, 0)
        self.counters: dict[str, int] = dict.fromkeys(EVENTS, 0)
        self._previous: Tensor | None = None

    @torch.no_grad()
    def step(self, batch: Any) -> StepResult:
        """Take one step on a batch.

        Args:
            batch: As in ``natural_gradient``.

        Returns:
            What was done.

        Raises:
            BatchError: The batch does not fit the functions.
            MemoryBudgetError: ``memory`` does not hold one sample's rows.
        """
        problem = problem_of(self.residual_fn, self._layout, batch, self.settings, self.steps, "step()")
        losses = problem.losses(self._layout.values())
        loss, damping = losses.sum().item(), self._damping_now()
        start = None if self._previous is None or not self.momentum else self.momentum * self._previous
        try:
            d, info = direction(problem, losses, damping, start)
        except NotFiniteError as error:
            return self._stay("skipped", str(error), loss, damping, None)
        except SingularError as error:
            return self._stay("unsolved", str(error), loss, damping, None)
        self.counters["jittered"] += info.rungs > 0
        length, after = self._length(problem, d, info)
        if not length:
            return self._stay("rejected", "no step length lowers the loss", loss, damping, info)
        ratio = self._move(d, length, after, info)
        return StepResult(self._count("accepted"), True, "", loss, after, damping, length, ratio, info)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values: with the parameters, all that a run needs to go on bit for bit."""
        held = Held(self.steps, float(self.damping), self.settings.seed, dict(self.counters), self._previous)
        return write(held, self._layout)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. Parameters are the caller's to restore.

        Raises:
            StateError: The state is truncated, foreign, of another version or of other parameters. Nothing changes.
        """
        held = read(state, self._layout, set(self.counters))
        self.steps, self.damping, self._previous = held.step, held.damping, held.previous
        self.counters = held.counters
        self.settings = self.settings.with_(seed=held.seed)

    def _damping_now(self) -> float:
        if callable(self._given):
            self.damping = self._given(self.steps)
            require_number("step()", "damping", self.damping, low=0.0, open_low=True)
        return float(self.damping)

    def _length(self, problem: Problem, d: Tensor, info: Info) -> tuple[float, float]:
        """Return the step length, 0 where there is none, and the loss there."""
        along = self._layout.split(d)
        length, after = self._search(
            lambda lengths: problem.losses_along(along, lengths.to(d)), self.lr, info.loss, info.slope
        )
        return (length, after) if after < info.loss or (self._always and length) else (0.0, info.loss)

    def _move(self, d: Tensor, length: float, after: float, info: Info) -> float:
        values = self._layout.values()
        self._layout.write([p - length * q for p, q in zip(values, self._layout.split(d), strict=True)])
        self._previous = d
        promised = info.predicted(length)
        ratio = (info.loss - after) / promised if promised else 0.0
        self.damping = self._rule(self.damping, ratio)
        return ratio

    def _stay(self, event: str, reason: str, loss: float, damping: float, info: Info | None) -> StepResult:
        if not self.counters[event] and event != "rejected":
            warnings.warn(f"step {event}, parameters kept: {reason}", stacklevel=4)
        if event != "skipped":  # the batch says nothing about the damping where it is not finite
            self.damping, self._previous = self._rule(self.damping, None), None
        return StepResult(self._count(event), False, reason, loss, loss, damping, 0.0, None, info)

    def _count(self, event: str) -> int:
        self.counters[event] += 1
        self.steps += 1
        return self.steps - 1
