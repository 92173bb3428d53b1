"""Chooses how the curvature of each block is kept, from shapes, operation counts and a memory budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from ..config import Options
from ..errors import MemoryBudgetError
from ..estimators import Choice, Estimator, Exact, Form, Operator, Truncated
from ..per_sample import Shape
from ..solve import CholeskyState, DirectState, EigenState, SolveState

CAPTURED = Operator()


def choose_block(shape: Shape, options: Options, step: int) -> Choice:
    """Return the form that the estimator chooses, with its costs; what it does not take is kept exactly."""
    price = partial(priced, shape=shape, options=options, step=step)
    if shape.members:
        return replace(price(CAPTURED), reason="modules share a parameter")
    choice = _estimator(shape, options).choose(shape, price, options.interval_at(step))
    if options.ema > 0:  # merged curvature is kept as columns, whatever each batch gives
        held = price(Truncated())
        return replace(choice, nbytes=held.nbytes, apply_flops=held.apply_flops, reason="columns of a moving average")
    return choice


def priced(form: Form, shape: Shape, options: Options, step: int) -> Choice:
    """Return what it costs to keep a block in a form."""
    cost, solver = form.cost(shape), solver_for(form, options, step)
    squares = cost.columns**2
    return Choice(
        form, solver,
        nbytes=int((cost.elements + squares) * shape.itemsize),
        refresh_flops=cost.gram + solver.flops * cost.columns**3,
        apply_flops=cost.apply + 4.0 * squares,
    )  # fmt: skip


def solver_for(form: Form, options: Options, step: int) -> type[SolveState]:
    """Return what a refresh makes of K.

    K itself where curvature serves one step alone; a Cholesky factor where power and damping stay; else eigenvalues.
    """
    if form.truncation is not None or options.ema > 0:
        return EigenState
    if options.serves_once(step):
        return DirectState
    steady = not callable(options.damping) or form.frozen_damping or options.interval_at(step) == 1
    return CholeskyState if options.power == 1.0 and steady else EigenState


def _estimator(shape: Shape, options: Options) -> Estimator:
    return options.estimator if options.estimator.forms(shape) else Exact()


def _reweighted(shape: Shape, options: Options, step: int) -> Choice:
    """Return the cost of a layer whose direction takes the place of the weight gradient, which backward leaves out."""
    kept = priced(CAPTURED, shape, options, step)
    return replace(kept, apply_flops=4.0 * shape.n**2, reason="takes the place of the weight gradient")


def choose_all(
    shapes: Mapping[str, Shape], options: Options, step: int, call: str, reweighted: Collection[str] = ()
) -> dict[str, Choice]:
    """Return a choice for every block, within the memory budget where there is one.

    Blocks are moved, largest first, to the form that holds least until the budget is met; those named in
    ``reweighted`` stay, since the columns of their U have to be the samples.

    Raises:
        MemoryBudgetError: Even the smallest forms need more.
    """
    choices = {
        name: _reweighted(shape, options, step) if name in reweighted else choose_block(shape, options, step)
        for name, shape in shapes.items()
    }
    budget = options.memory_budget
    if budget is None:
        return choices
    movable = [name for name in choices if name not in reweighted]
    for name in sorted(movable, key=lambda name: -choices[name].nbytes):
        if total_bytes(choices) <= budget:
            break
        smaller = _smallest(shapes[name], options, step, choices[name])
        choices[name] = smaller if smaller.nbytes < choices[name].nbytes else choices[name]
    if total_bytes(choices) > budget:
        largest = max(choices, key=lambda name: choices[name].nbytes)
        raise MemoryBudgetError(
            call, "no plan fits memory_budget", expected=f"at least {total_bytes(choices)} bytes", got=budget,
            layer=largest, fix="Raise memory_budget, lower rank, use a smaller batch or exclude the largest layers",
        )  # fmt: skip
    return choices


def total_bytes(choices: Mapping[str, Choice]) -> int:
    """Bytes held by all blocks."""
    return sum(choice.nbytes for choice in choices.values())


def _smallest(shape: Shape, options: Options, step: int, current: Choice) -> Choice:
    if shape.members or options.ema > 0:
        return current
    forms = [priced(form, shape, options, step) for form in _estimator(shape, options).smaller(shape)]
    return replace(min(forms, key=lambda form: form.nbytes), reason="to fit the memory budget")
