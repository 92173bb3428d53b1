"""fit: natural gradient steps until a stop rule holds, with points that are drawn and whose number is found."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import inf, isfinite, sqrt
from pathlib import Path
from typing import Any

import torch

from ..optimizer import NaturalGradient, StepResult
from ..problem import Problem, problem_of
from ..trees import Params, params_of
from . import saved
from .plan import CALL, Plan, require_squares_in_one_process
from .points import CANDIDATES, Source, count_points
from .progress import ProgressLine
from .records import Fit, Record
from .stages import GROWTH, LAST, Stage

EVERY = 5  # steps between two looks at the held-out points
FAILURES = 10  # steps in a row that fail, before new points are drawn; after twice as many a run ends
OVERFITTED = 3.0  # held-out residual over that of the points that is warned of at the end

Callback = Callable[[Record], object]


def fit(
    params: Any, residual_fn: Any, points: Any, *, steps: int | None = None, seconds: float | None = None,
    target: float | None = None, size: int | str = "auto", most: int = 4000, held_out: Any = None,
    resample: int | str = "auto", adaptive: bool = False, callbacks: Sequence[Callback] = (), progress: bool = False,
    checkpoint: str | Path | None = None, checkpoint_every: int = 100, resume: bool = False,
    clock: Callable[[], float] = time.perf_counter, **options: Any,
) -> Fit:  # fmt: skip
    """Minimise mean squared residuals by natural gradients until a stop rule holds.

    Where ``points`` is a function, points are drawn in stages, and their number is found: it begins with one for
    eight parameters, and grows by half after a stage that did not lower the residual at the held-out points, or left it
    more than ten times that at the points. Each stage begins at the parameters with the least held-out residual so far,
    and these are what is kept.

    Args:
        params: As in ``natural_gradient``; changed in place.
        residual_fn: As in ``natural_gradient``.
        points: A batch as in ``natural_gradient``, or a function (n, torch.Generator) -> batch with about n samples in
            all terms together. It must draw from the generator alone.
        steps: Most steps (>= 1), those before a resume included.
        seconds: Most seconds (> 0), those before a resume included. The step that overdraws them is the last.
        target: Residual (> 0) that is good enough, sqrt(sum_t weight_t * mean(f_t^2)): at the held-out points where
            there are some, otherwise at the points.
        size: Number of points (>= 1) of each draw, or "auto": found.
        most: Largest number of points (>= 1) that is found.
        held_out: A batch that is never trained on, or the number (>= 1) of samples to draw for it. None: 1000 where
            ``points`` is a function, otherwise no batch.
        resample: When new points are drawn: a number of steps (>= 1), or a name in ``seng.func.RESAMPLING``: "auto",
            where the held-out residual parts from that of the points or stalls; "stall", where it stalls; "never",
            only where their number has to grow.
        adaptive: Whether points are chosen by their residuals among four times as many.
        callbacks: Functions of a ``Record``, called after each step. One that returns True ends the run.
        progress: Whether a line on standard error shows how the run is going.
        checkpoint: File that the run is saved to, or None.
        checkpoint_every: Steps (>= 1) between two saves; the end is saved in any case.
        resume: Whether to go on from ``checkpoint`` where that file exists.
        clock: Seconds since any moment.
        **options: See ``NaturalGradient`` and ``seng.func.Settings``.

    Returns:
        The reason why it ended, residuals and history.

    Raises:
        OptionError: An argument is unknown or out of range, or no stop rule can hold.
        BatchError: Points do not fit the functions.
        StateError: The checkpoint is damaged, or of other parameters.

    Cost: the steps, and a forward pass over the held-out points every 5 steps.

    Example:
        >>> w = torch.zeros(2, dtype=torch.float64)
        >>> curve = lambda w, x: torch.exp(w[0] * x) + w[1] - torch.exp(-x)
        >>> draw = lambda n, generator: torch.rand(n, generator=generator, dtype=torch.float64)
        >>> result = fit(w, curve, draw, steps=100, target=1e-8)
        >>> result.reason, result.held_out <= 1e-8
        ('target', True)
    """
    optimizer = NaturalGradient(params, residual_fn, **options)
    source = Source(points, optimizer.settings.seed)
    path = None if checkpoint is None else Path(checkpoint)
    plan = Plan(steps, seconds, target, size, most, resample, adaptive, source.draws, path, checkpoint_every, clock)
    plan.validate()
    require_squares_in_one_process(optimizer.settings, adaptive)
    held, layout = source.held_out(held_out), params_of(params, CALL)
    with ExitStack() as stack:
        shown = [stack.enter_context(ProgressLine(seconds, steps))] if progress else []
        run = Run(optimizer, layout, source, held, plan, [*shown, *callbacks])
        if resume and path is not None and path.exists():
            run.resume(path)
        return run.until_stopped()


class Run:
    """A fit on its way.

    Args:
        optimizer: Takes the steps.
        layout: The parameters.
        source: The points.
        held: Held-out points, or None.
        plan: What was asked for.
        callbacks: Called after each step.

    Attributes:
        state: What changes.
    """

    def __init__(
        self, optimizer: NaturalGradient, layout: Params, source: Source, held: Any, plan: Plan,
        callbacks: Sequence[Callback],
    ):  # fmt: skip
        self.optimizer, self.layout, self.source = optimizer, layout, source
        self.held, self.plan, self.callbacks = held, plan, callbacks
        self.state = saved.State(plan.first_size(layout.size))

    def resume(self, path: Path) -> None:
        """Go on from a file.

        Raises:
            StateError: It is damaged, or of other parameters. Nothing changes.
        """
        state, leaves, optimizer = saved.read(path, self.layout.values())
        self.optimizer.load_state_dict(optimizer)
        self.layout.write(leaves)
        self.state = state

    def until_stopped(self) -> Fit:
        """Take steps until a stop rule holds, and keep the best parameters."""
        state, plan = self.state, self.plan
        begun = plan.clock() - state.seconds
        if state.points is None:
            self._draw()
        reason = self._reason()
        while not reason:
            result = self.optimizer.step(state.points)
            record = self._record(result, begun)
            asked = [callback(record) is True for callback in self.callbacks]
            reason = "callback" if any(asked) else self._reason()
            if plan.checkpoint is not None and (reason or record.step % plan.checkpoint_every == 0):
                saved.write(plan.checkpoint, state, self.layout.values(), self.optimizer.state_dict())
        return self._finish(reason)

    def _record(self, result: StepResult, begun: float) -> Record:
        """Judge a step, and draw points where its stage is over."""
        state, plan, step = self.state, self.plan, len(self.state.history) + 1
        residual, held_out = sqrt(2 * result.loss_after), None
        if self.held is not None and (step % EVERY == 0 or result.converged):
            held_out = self._judge()
        state.failed = 0 if result.accepted or result.converged else state.failed + 1
        state.stage = state.stage.after(residual, held_out, result.converged)
        points, draws = count_points(state.points, self.optimizer.residual_fn), state.draws
        if self.source.draws and (plan.ends(state.stage) or state.failed == FAILURES):
            self._next_stage()
        state.seconds = plan.clock() - begun
        record = Record(step, state.seconds, residual, held_out, points, draws, float(result.damping), result.length)
        state.history.append(record)
        return record

    def _next_stage(self) -> None:
        """Draw points, more of them where the last ones were too few, and go on from the best parameters."""
        state, plan = self.state, self.plan
        grow = plan.grows and state.size < plan.most and state.stage.starved
        state.idle = 0 if grow or state.stage.gained else state.idle + 1
        if grow:
            state.size = min(int(GROWTH * state.size), plan.most)
        if grow or plan.resamples:
            if state.best is not None:
                self.layout.write(state.best)
            self._draw()

    def _draw(self) -> None:
        state = self.state
        if self.plan.adaptive and state.draws:
            candidates = self.source.draw(CANDIDATES * state.size, state.draws)
            state.points = self.source.choose(state.draws, self._problem(candidates))
            if not isinstance(self.optimizer.residual_fn, Mapping):
                state.points = state.points["residual"]
        else:
            state.points = self.source.draw(state.size, state.draws)
        state.draws += 1
        if self.held is not None and state.best is None:
            self._judge()
        state.stage = Stage(begun=state.least)

    def _judge(self) -> float:
        """Return the residual at the held-out points; remember the parameters where it is the least so far."""
        leaves, state = self.layout.values(), self.state
        with torch.no_grad():
            loss = self._problem(self.held).losses(leaves).sum().item()
        held_out = sqrt(2 * loss) if isfinite(loss) else inf
        if held_out < state.least:
            state.least, state.best = held_out, [leaf.clone() for leaf in leaves]
        return held_out

    def _problem(self, points: Any) -> Problem:
        optimizer = self.optimizer
        return problem_of(optimizer.residual_fn, self.layout, points, optimizer.settings, optimizer.steps, CALL)

    def _reason(self) -> str:
        """Return why the run is over, or nothing."""
        state, plan = self.state, self.plan
        residual = state.least if self.held is not None else state.history[-1].residual if state.history else None
        if plan.target is not None and residual is not None and residual <= plan.target:
            return "target"
        if plan.steps is not None and len(state.history) >= plan.steps:
            return "steps"
        if plan.seconds is not None and state.seconds >= plan.seconds:
            return "seconds"
        if state.failed >= 2 * FAILURES:
            return "failed"
        settled = state.stage.converged and not (plan.resamples or plan.grows)
        return "converged" if settled or state.idle >= LAST else ""

    def _finish(self, reason: str) -> Fit:
        state = self.state
        last = state.history[-1] if state.history else None
        if self.held is not None and last is not None and last.held_out is None:
            self._judge()
        if state.best is not None:
            self.layout.write(state.best)
        points = count_points(state.points, self.optimizer.residual_fn)
        held_out = None if self.held is None else state.least
        result = Fit(reason, last.residual if last else held_out or 0.0, held_out, points, list(state.history))
        if not self.plan.grows and state.least < inf and result.gap is not None and result.gap > OVERFITTED:
            warnings.warn(
                f"fit(): the residual at the held-out points is {result.gap:.1f} times that at the points: they are"
                " over-fitted. Pass more points, or a function that draws them and size='auto'.",
                stacklevel=4,
            )
        return result
