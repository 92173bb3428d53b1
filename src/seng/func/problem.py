"""The loss at given parameters, and its linearisation there: what every step starts from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from ..errors import BatchError, SengError
from ..sketch import generator_for
from .config import Settings
from .fishers import FISHERS, Fisher
from .ranks import RANKS, Ranks, ranks_for
from .rows import COPIES, Rows, rows_of
from .solvers import SOLVERS
from .terms import Term, loss_gradient, losses_of, shared, terms_of, values_of
from .trees import Leaves, Params

KINKS = "Second derivatives of ReLU, and of all that is piecewise linear, are 0"


@dataclass(frozen=True)
class Linearisation:
    """Rows and gradient of the loss at the present parameters.

    Args:
        rows: J as an operator.
        r: Coefficients with gradient = J^T r + rest, [n].
        rest: Part of the gradient that rows do not give, flat [p], or None.
    """

    rows: Rows
    r: Float[Tensor, " n"]
    rest: Float[Tensor, " p"] | None


@dataclass(frozen=True)
class Path:
    """Parameters as a function of a step length: parameters - length * d - length^2 * bend.

    Args:
        d: Direction, flat [p].
        bend: Second order term, flat [p], or None.
    """

    d: Float[Tensor, " p"]
    bend: Float[Tensor, " p"] | None = None

    def step(self, length: float | Tensor) -> Float[Tensor, " p"]:
        """Return what a length takes off the parameters."""
        step = length * self.d
        return step if self.bend is None else step + length**2 * self.bend

    def at(self, length: float | Tensor, params: Params) -> Leaves:
        """Return the parameters there, projected onto their bounds."""
        moved = tuple(p - q for p, q in zip(params.values(), params.split(self.step(length)), strict=True))
        return moved if params.bounds is None else params.bounds.project(moved)


@dataclass(frozen=True)
class Problem:
    """A loss on one batch, as a function of the parameters.

    Args:
        terms: Terms with this rank's samples.
        params: The parameters.
        fisher: What the rows are.
        settings: All settings.
        ranks: How ranks work together.
        step: Counts random draws.
        call: For messages.
    """

    terms: list[Term]
    params: Params
    fisher: Fisher
    settings: Settings
    ranks: Ranks
    step: int
    call: str

    @property
    def most(self) -> int:
        """Samples a forward pass takes at a time: those whose rows would fill the memory."""
        return max(1, self.settings.memory // (COPIES * self.params.size * self.params.leaves[0].dtype.itemsize))

    @cached_property
    def values(self) -> list[Float[Tensor, " m"]]:
        """Outputs of each term at the parameters, on this rank. Cost: one forward pass."""
        return values_of([term.mapped(self.fisher.outputs) for term in self.terms], self.params.values(), self.most)

    @cached_property
    def present_losses(self) -> Float[Tensor, " t"]:
        """Weight * mean loss of each term at the parameters. Cost: none beside ``values`` where these tell losses."""
        known = [self.fisher.losses_of(value) for value in self.values]
        sums = [loss.sum() for loss in known if loss is not None]
        if len(sums) < len(known):
            return self.losses(self.params.values())
        counts = sums[0].new_tensor([len(value) for value in self.values])
        weights = counts.new_tensor([term.weight for term in self.terms])
        return self.ranks.sum(torch.stack(sums)) / self.ranks.sum(counts) * weights

    def losses(self, leaves: Leaves) -> Float[Tensor, " t"]:
        """Return weight * mean loss of each term. Cost: one forward pass."""
        sums, counts = self._sums(leaves, self.most)
        return self.ranks.sum(sums) / self.ranks.sum(counts) * sums.new_tensor([term.weight for term in self.terms])

    def losses_along(self, path: Path, lengths: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return the loss at each length of a path. Cost: k forward passes, vectorised."""

        def at(length: Tensor) -> tuple[Tensor, Tensor]:
            moved = path.at(length, self.params)
            return self._sums(moved, max(1, self.most // len(lengths)))

        sums, counts = vmap(at)(lengths)
        return self.ranks.sum(sums) / self.ranks.sum(counts) @ sums.new_tensor([term.weight for term in self.terms])

    def residuals(self, leaves: Leaves) -> Float[Tensor, " n"]:
        """Return r at other parameters, for a Fisher that knows coefficients. Cost: a forward pass."""
        values = values_of([term.mapped(self.fisher.outputs) for term in self.terms], leaves, self.most)
        counts = [len(value) for value in values]
        totals = self.ranks.sum(leaves[0].new_tensor(counts, dtype=torch.float64)).tolist()
        parts = [
            (term.weight / total) ** 0.5 * self.fisher.coefficients(value)
            for term, total, value in zip(self.terms, totals, values, strict=True)
        ]
        r = torch.cat(parts).to(self.settings.solve_dtype)
        return self.ranks.join(r, self.ranks.gather(len(r)))

    def linearise(self) -> Linearisation:
        """Return rows and gradient.

        Raises:
            NotFiniteError: An output or a derivative is not finite.
            SingularError: All derivatives are 0.
            MemoryBudgetError: One sample's rows do not fit the memory.
        """
        params, settings = self.params, self.settings
        leaves = params.values()
        terms = [term.mapped(self.fisher.outputs) for term in self.terms]
        values = self.values
        counts = [len(value) for value in values]
        totals = self.ranks.sum(leaves[0].new_tensor(counts, dtype=torch.float64)).tolist()
        scales = [(term.weight / total) ** 0.5 for term, total in zip(terms, totals, strict=True)]
        self._require_finite(values)
        dtype = settings.row_dtype or leaves[0].dtype
        itemsize = max(dtype.itemsize, settings.solve_dtype.itemsize)
        rows = rows_of(terms, counts, scales, params, dtype, itemsize, settings.memory, self.ranks, self.call)
        self._require_derivatives(rows)
        coefficients = [self.fisher.coefficients(value) for value in values]
        known = [c * scale for c, scale in zip(coefficients, scales, strict=True) if c is not None]
        r = torch.cat(known or [torch.zeros_like(value) for value in values]).to(settings.solve_dtype)
        return Linearisation(rows, self.ranks.join(r, rows.lengths), None if known else self._gradient())

    def generator(self, name: str) -> torch.Generator:
        """Return the source of one kind of random draws at this step, the same on all ranks."""
        return generator_for(self.settings.seed, self.step, name)

    def _sums(self, leaves: Leaves, most: int) -> tuple[Tensor, Tensor]:
        return losses_of(self.terms, self.fisher, leaves, most)

    def _gradient(self) -> Tensor:
        _, counts = self._sums(self.params.values(), self.most)
        totals = self.ranks.sum(counts).tolist()
        factors = [term.weight / total for term, total in zip(self.terms, totals, strict=True)]
        return self.ranks.sum(loss_gradient(self.terms, self.fisher, self.params, factors, self.most))

    def _require_finite(self, values: list[Tensor]) -> None:
        bad = torch.stack([(~value.isfinite()).sum().double() for value in values])
        counts = [int(count) for count in self.ranks.sum(bad).tolist()]
        if any(counts):
            raise NotFiniteError(
                self.call, "outputs are not finite", expected="finite numbers",
                got={term.name: count for term, count in zip(self.terms, counts, strict=True) if count},
                fix="Look at those samples, or at the parameters",
            )  # fmt: skip

    def _require_derivatives(self, rows: Rows) -> None:
        """Raise NotFiniteError or SingularError at rows that give no direction; warn of a term whose rows are all 0."""
        sums = dict(zip((term.name for term in self.terms), rows.squares.sum(1).tolist(), strict=True))
        bad = [name for name, total in sums.items() if not isfinite(total)]
        if bad:
            raise NotFiniteError(
                self.call, f"derivatives of {', '.join(map(repr, bad))} are not finite",
                expected="finite derivatives of each residual in each parameter", got=bad,
                fix="Look for sqrt, norm or division at 0 in them, or at the parameters",
            )  # fmt: skip
        flat = [name for name, total in sums.items() if total == 0]
        if len(flat) == len(sums):
            raise SingularError(
                self.call, "no output depends on a parameter", expected="a row that is not 0", got=f"rows of 0: {flat}",
                fix=f"Use the parameters in the residuals. {KINKS}",
            )  # fmt: skip
        for name in flat:
            warnings.warn(f"no output of {name!r} depends on a parameter: all its rows are 0. {KINKS}.", stacklevel=2)


class NotFiniteError(BatchError):
    """Residuals, losses or derivatives of a batch are not finite; ``got`` says of which terms."""


class SingularError(SengError):
    """The system has no solution: all rows are 0, or K + lambda I could not be factorised."""


def settings_of(call: str, given: dict[str, Any]) -> Settings:
    """Return validated settings.

    Raises:
        OptionError: One is unknown, of the wrong type or out of range.
    """
    return Settings.build(call, given, {"fisher": FISHERS, "solver": SOLVERS, "distributed": {"auto": None, **RANKS}})


def problem_of(residual_fn: Any, params: Params, batch: Any, settings: Settings, step: int, call: str) -> Problem:
    """Pair functions, batch and parameters on this rank.

    Raises:
        BatchError: The batch does not fit the functions or the Fisher.
        OptionError: Functions or weights cannot be used.
    """
    fisher, ranks = FISHERS[settings.fisher](), ranks_for(settings.distributed, call)
    terms = terms_of(residual_fn, params, batch, settings.weights, settings.per_sample, call)
    problem = Problem([shared(term, ranks, call) for term in terms], params, fisher, settings, ranks, step, call)
    if not fisher.classifies:
        return problem
    return replace(problem, terms=[_with_chances(term, problem) for term in problem.terms])


def _with_chances(term: Term, problem: Problem) -> Term:
    """Attach to each sample the uniform number its label is drawn by, the same whatever the number of ranks."""
    if not isinstance(term.samples, tuple | list) or len(term.samples) != 2:
        raise BatchError(
            problem.call, f"batch of {term.name!r} cannot be used", expected="a pair (inputs, targets)",
            got=type(term.samples).__name__, fix="Pass a pair, or another fisher",
        )  # fmt: skip
    lengths = problem.ranks.gather(term.count)
    generator = problem.generator(f"labels of {term.name}")
    chances = torch.rand(sum(lengths), generator=generator, dtype=torch.float64).split(lengths)[problem.ranks.rank]
    return replace(term, samples=(*term.samples, chances.to(problem.params.leaves[0].device)))
