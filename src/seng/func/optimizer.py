"""NaturalGradient: directions, step lengths and damping from step to step."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from math import isclose, isfinite
from typing import Any

import torch
from torch import Tensor

from ..checks import plain, require
from ..errors import OptionError, choose
from ..schedules import Schedule, scheduled, value_at
from .bounds import bounds_of
from .config import require_number
from .damping import DAMPING_RULES
from .direction import Directions, Info
from .linesearch import LINE_SEARCHES
from .problem import NotFiniteError, Path, Problem, SingularError, problem_of, settings_of
from .state import Held, read, write
from .trees import params_of

ATTEMPTS = 8  # dampings tried at a step: each is four times the last, so thousands of times the first
BENT = 0.75  # most that 2 |b| may be of |d| along a path. Source: Transtrum, Sethna (2012), section 4
EVENTS = ("accepted", "rejected", "skipped", "unsolved", "jittered", "converged")
NEW = 1e-3  # relative change of the loss at the same parameters by which a new batch is known
WITHIN_ROUNDING = "the fall of the loss that is promised is within its rounding"

AT_BOUNDS = "bounds let no parameter move"


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Args:
        step: Its number, from 0.
        accepted: Whether the parameters moved.
        reason: Why they did not; empty where they did.
        loss: Loss of the batch before.
        loss_after: Loss of the same batch after.
        damping: Damping of the last direction, as in the options.
        attempts: Dampings tried.
        length: Step length, 0 where the parameters did not move.
        gain_ratio: Fall of the loss over the fall the quadratic model promised, or None without a step.
        info: What is known about the direction, or None where there was none.
        converged: Whether no direction promises that the loss falls by more than its rounding.
    """

    step: int
    accepted: bool
    reason: str
    loss: float
    loss_after: float
    damping: float
    attempts: int
    length: float
    gain_ratio: float | None
    info: Info | None
    converged: bool = False


class NaturalGradient:
    """Natural gradient over all parameters, with momentum, step lengths and damping found on the way.

        d = argmin |J d - r|^2 + lambda |d - momentum * before|^2
        parameters <- parameters - length * d - length^2 * b

    with ``before`` what the last step took off, and b what makes residuals follow the linear model along the path.
    Where no length lowers the loss, or the path bends too much, a damping that follows the gain ratio is raised and the
    step tried again without momentum: rows and K are made once. A step whose losses are not finite, whose system cannot
    be solved, or that fails with every damping leaves the parameters as they are and is counted.

    Args:
        params: As in ``natural_gradient``. Accepted steps write into these tensors in place.
        residual_fn: As in ``natural_gradient``.
        lr: First step length that is tried, > 0; with line_search="none" the only one.
        damping: Number > 0, or a callable of the step; relative unless ``damping_mode="absolute"``.
        damping_rule: Name in ``seng.func.DAMPING_RULES``; a callable damping needs "constant".
        momentum: Number >= 0 and < 1: how much of the last step is kept where the rows say nothing.
        acceleration: Whether paths bend; only those of fisher="gauss_newton" do.
        line_search: Name in ``seng.func.LINE_SEARCHES``.
        scaling: Whether steps are to be the same in whatever units parameters are given: up to 32 parameters, or single
            numbers (tensors without dimensions) beside more of them. With relative damping only.
        bounds: None, or least and greatest values of the parameters: a pair of numbers, or of trees as ``params`` is
            (for a module, dicts by name; parameters left out have none). Steps are projected onto them.
        **settings: See ``seng.func.Settings``.

    Attributes:
        params: What was given.
        damping: Damping of the next step.
        acceleration: Whether paths bend.
        steps: Number of steps taken or tried.
        counters: Events by name: "accepted", "rejected", "skipped" (not finite), "unsolved", "jittered".

    Raises:
        OptionError: An argument is unknown or out of range.

    Cost: a step takes a direction (see ``natural_gradient``) and two forward passes; ten with the grid.
    Source: PAPER section 1; Goldshlager, Abrahamsen, Lin, "A Kaczmarz-inspired approach" (2024) for the momentum;
    Nielsen (1999) for the damping; Transtrum, Sethna (2012) for b.

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
        damping_rule: str = "nielsen", momentum: float = 0.0, acceleration: bool = True, line_search: str = "none",
        scaling: bool = True, bounds: tuple[Any, Any] | None = None, **settings: Any,
    ):  # fmt: skip
        call, lr, momentum = "NaturalGradient()", plain(lr), plain(momentum)
        require_number(call, "lr", lr, low=0.0, open_low=True)
        require_number(call, "momentum", momentum, low=0.0, below=1.0)
        require(call, "acceleration", acceleration, isinstance(acceleration, bool), "True or False")
        require(call, "scaling", scaling, isinstance(scaling, bool), "True or False")
        self._rule = choose(DAMPING_RULES, damping_rule, call=call, option="damping_rule")
        self._search = choose(LINE_SEARCHES, line_search, call=call, option="line_search")
        if callable(damping) and damping_rule != "constant":
            raise OptionError(
                call, "damping has two masters", expected="damping_rule='constant' with a schedule", got=damping_rule,
                fix="Pass a number, or damping_rule='constant'",
            )  # fmt: skip
        first = scheduled(call, "damping", damping, 0)
        require_number(call, "damping", first, low=0.0, open_low=True)
        self.params, self.residual_fn, self.lr, self.momentum = params, residual_fn, float(lr), momentum
        self.settings = settings_of(call, settings)
        self.acceleration = acceleration and self.settings.fisher == "gauss_newton"
        layout = params_of(params, call)
        self._layout = replace(layout, bounds=bounds_of(bounds, layout.names, layout.values(), call))
        self._given = damping
        self._always = damping_rule == "constant" and line_search == "none"
        self.steps, self.damping = 0, first
        self.counters: dict[str, int] = dict.fromkeys(EVENTS, 0)
        self._previous: Tensor | None = None
        leaf = self._layout.leaves[0]
        zeros = torch.zeros(self._layout.size, dtype=torch.float64, device=leaf.device)
        self._largest = zeros if scaling and self.settings.damping_mode == "relative" else None
        self._stuck: tuple[float, float] | None = None  # loss of the batch that no step lowers, damping for a new one

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
        return self.step_on(problem_of(self.residual_fn, self._layout, batch, self.settings, self.steps, "step()"))

    @torch.no_grad()
    def step_on(self, problem: Problem) -> StepResult:
        """Take one step on a loss, given as a function of these parameters."""
        losses = problem.present_losses
        loss = losses.sum().item()
        if self._stuck is not None and isfinite(loss) and not isclose(loss, self._stuck[0], rel_tol=NEW):
            self.damping, self._stuck = self._stuck[1], None
        self._follow_schedule()
        self.steps += 1
        if loss == 0 and self.settings.fisher == "gauss_newton":
            self._count(converged=True)
            return self._stay("rejected", "the loss is 0", loss, self.damping, converged=True)
        try:
            directions = Directions(problem, losses, self._largest)
        except (NotFiniteError, SingularError) as error:
            event = "skipped" if isinstance(error, NotFiniteError) else "unsolved"
            return self._stay(event, str(error), loss, self.damping)
        self._largest = directions.largest
        if directions.stuck:
            self._count(converged=True)
            return self._stay("rejected", AT_BOUNDS, loss, self.damping, converged=True)
        return self._try(problem, directions, loss)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values: with the parameters, all that a run needs to go on bit for bit."""
        return write(
            Held(
                self.steps, float(self.damping), self.settings.seed, dict(self.counters), self._previous, self._largest,
                self._stuck,
            ),
            self._layout,
        )  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. Parameters are the caller's to restore.

        Raises:
            StateError: The state is truncated, foreign, of another version or of other parameters. Nothing changes.
        """
        held = read(state, self._layout, set(self.counters))
        self.steps, self.damping, self._previous = held.step, held.damping, held.previous
        self.counters, self._largest, self._stuck = held.counters, held.largest, held.stuck
        self.settings = self.settings.with_(seed=held.seed)

    def _follow_schedule(self) -> None:
        if callable(self._given):
            self.damping = scheduled("step()", "damping", self._given, self.steps)
            require_number("step()", "damping", self.damping, low=0.0, open_low=True)

    def _try(self, problem: Problem, directions: Directions, loss: float) -> StepResult:
        """Try one damping after another, until a step lowers the loss or none can."""
        damping, jittered, converged, attempt, info = float(self.damping), False, False, 0, None
        for attempt in range(1, ATTEMPTS + 1):
            start = None if self._previous is None or not self.momentum else self.momentum * self._previous
            try:
                d, info = directions.at(damping, start)
            except SingularError as error:
                self.damping = self._rule(damping, None)
                return self._stay("unsolved", str(error), loss, damping, attempt, info)
            jittered |= info.rungs > 0
            converged = not info.promised(self.lr) > directions.rounding
            path = Path(d, directions.bend(d, self.lr) if self.acceleration else None)
            length, after = self._length(problem, directions, path, info)
            if length:
                self._count(jittered=jittered, converged=converged)
                return self._move(path, length, after, damping, attempt, info, converged)
            raised = self._rule(damping, None)
            if converged or attempt == ATTEMPTS or raised == damping:
                break
            damping, self._previous = raised, None
        initial = value_at(self._given, 0)
        anew = (loss, initial if converged else max(initial, self._rule(self.damping, None)))
        self._stuck = anew if converged else self._stuck or anew
        self.damping = self.damping if converged else self._rule(damping, None)
        reason = WITHIN_ROUNDING if converged else "no step length lowers the loss"
        if converged and not self.counters["rejected"] and self._layout.leaves[0].dtype != torch.float64:
            warnings.warn(f"step rejected, parameters kept: {reason}. float64 goes further.", stacklevel=3)
        self._count(jittered=jittered, converged=converged)
        return self._stay("rejected", reason, loss, damping, attempt, info, converged)

    def _length(self, problem: Problem, directions: Directions, path: Path, info: Info) -> tuple[float, float]:
        """Return the step length, 0 where there is none, and the loss there."""
        if path.bend is not None and not 2 * directions.norm(path.bend) <= BENT * directions.norm(path.d):
            if not self._always:
                return 0.0, info.loss
            path = Path(path.d)
        length, after = self._search(
            lambda lengths: problem.losses_along(path, lengths.to(path.d)), self.lr, info.loss, info.slope
        )
        return (length, after) if after < info.loss or (self._always and length) else (0.0, info.loss)

    def _move(
        self, path: Path, length: float, after: float, damping: float, attempts: int, info: Info, converged: bool
    ) -> StepResult:  # fmt: skip
        promised = info.predicted(length)
        self._layout.write(path.at(length, self._layout))
        self._previous = path.step(length)
        self._stuck = (after, value_at(self._given, 0)) if converged else None
        ratio = (info.loss - after) / promised if promised else 0.0
        self.damping = damping if converged else self._rule(damping, ratio)
        self._count(accepted=True)
        return StepResult(
            self.steps - 1, True, "", info.loss, after, damping, attempts, length, ratio, info, converged
        )  # fmt: skip

    def _stay(
        self, event: str, reason: str, loss: float, damping: float, attempts: int = 1, info: Info | None = None,
        converged: bool = False,
    ) -> StepResult:  # fmt: skip
        if not self.counters[event] and event != "rejected":
            warnings.warn(f"step {event}, parameters kept: {reason}", stacklevel=4)
        if event != "skipped":  # the batch says nothing where it is not finite
            self._previous = None
        self._count(**{event: True})
        return StepResult(
            self.steps - 1, False, reason, loss, loss, damping, attempts, 0.0, None, info, converged
        )  # fmt: skip

    def _count(self, **events: bool) -> None:
        for event, happened in events.items():
            self.counters[event] += happened
