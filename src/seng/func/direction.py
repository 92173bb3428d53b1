"""The direction: d = argmin |J d - r|^2 + lambda |d - momentum * previous|^2, by an n x n system."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import OptionError
from ..solve import FactorisationError
from .config import require_number
from .problem import Linearisation, Path, Problem, SingularError, problem_of, settings_of
from .solvers import SOLVERS, Damping, LeastSquares, Solution, Solver
from .trees import Params, params_of

FEW = 32  # parameters, of which each is taken to have a unit of its own
CORRECTIONS = 2  # of a path
FADING = 0.75  # a step, of what is known of a column's largest norm


@dataclass(frozen=True)
class Info:
    """What is known about a direction.

    Args:
        loss: Loss of the batch.
        losses: The same by term, weights included.
        rows: Number n of rows.
        trace: trace(K), the sum of the squared rows.
        damping: lambda.
        slope: g . d, by which the loss falls per unit of step length.
        curvature: |J d|^2.
        direction_norm: |d|.
        solve_error: |(K + lambda I) c - rhs| / |rhs|: rounding where the solver is exact, an error estimate where it
            is a sketch.
        rungs: Jitters that failed before a factorisation held.
    """

    loss: float
    losses: dict[str, float]
    rows: int
    trace: float
    damping: float
    slope: float
    curvature: float
    direction_norm: float
    solve_error: float
    rungs: int

    def predicted(self, length: float) -> float:
        """Return by how much the quadratic model falls over a step: length * g.d - length^2 |J d|^2 / 2."""
        return length * self.slope - length**2 * self.curvature / 2

    def promised(self, longest: float) -> float:
        """Return by how much it falls at best over a step of at most that length."""
        best = self.slope / self.curvature if self.curvature > 0 else longest
        return self.predicted(min(longest, best))


def natural_gradient(
    residual_fn: Any, params: Any, batch: Any, *, damping: float = 0.1, momentum: float = 0.0, previous: Any = None,
    **settings: Any,
) -> tuple[Any, Info]:  # fmt: skip
    """Return the natural gradient of a loss over all parameters, and what is known about it.

        d = s + J^T (K + lambda I)^-1 (r - J s),   K = J J^T,   s = momentum * previous,

    which for s = 0 is (J^T J + lambda I)^-1 g. See the package for rows, terms and scales. Nothing is changed: a step
    is ``params - length * d``.

    Args:
        residual_fn: ``(params, sample) -> tensor``, or a dict of such functions, one a term of the loss. A module comes
            as a function of its inputs.
        params: A module, a tensor, or nested dicts, lists and tuples of tensors, floating, of one dtype.
        batch: Samples: a tree of tensors [n, ...]; a dict of such trees where ``residual_fn`` is a dict.
        damping: Number >= 0, relative to the mean eigenvalue of K unless ``damping_mode="absolute"``. 0 gives the
            shortest of the directions that minimise |J d - r|, by J itself: n p numbers.
        momentum: Number >= 0 and < 1: how much of ``previous`` is kept where the rows say nothing.
        previous: A direction as returned, or None.
        **settings: See ``seng.func.Settings``.

    Returns:
        The direction, in the structure of ``params`` (a dict by name for a module), and its Info.

    Raises:
        OptionError: An argument is unknown or out of range.
        BatchError: The batch does not fit, or outputs are not finite.
        MemoryBudgetError: ``memory`` does not hold one sample's rows.
        SingularError: K + lambda I could not be factorised.

    Cost: with the exact solver n^2 p / 2 + n^3 / 3 multiply-adds, and n rows.
    Source: Sherman, Morrison, Woodbury; Goldshlager, Abrahamsen, Lin (2024) for the momentum.

    Example:
        >>> x = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> line = lambda w, xi: w[0] + w[1] * xi - (2 + 3 * xi)
        >>> d, info = natural_gradient(line, torch.zeros(2, dtype=torch.float64), x, damping=1e-12)
        >>> (-d).round(decimals=6)
        tensor([2., 3.], dtype=torch.float64)
    """
    call = "natural_gradient()"
    chosen = settings_of(call, settings)
    require_number(call, "damping", damping, low=0.0)
    require_number(call, "momentum", momentum, low=0.0, below=1.0)
    layout = params_of(params, call)
    start = None
    if previous is not None and momentum:
        start = momentum * _flat(previous, layout.restore(layout.values()), call)
    problem = problem_of(residual_fn, layout, batch, chosen, 0, call)
    d, info = Directions(problem, problem.present_losses).at(damping, start)
    return layout.restore(layout.split(d)), info


class Directions:
    """Directions at the present parameters, for one damping after another: rows and K are made once.

    Args:
        problem: The loss and its parameters.
        losses: Its losses by term at the parameters.
        largest: Largest norm of each column of J so far, fading from step to step, [p], by which parameters are scaled;
            None: not at all.

    Attributes:
        largest: The same with the present norms, or None.
        stuck: Whether bounds let no parameter move.
        rounding: By how much the loss changes where each parameter changes by its last digit.

    Raises:
        NotFiniteError: Outputs or derivatives are not finite.
        SingularError: All derivatives are 0.
    """

    def __init__(self, problem: Problem, losses: Float[Tensor, " t"], largest: Float[Tensor, " p"] | None = None):
        self._problem, self._losses, self._lin = problem, losses, problem.linearise()
        rows, leaves = self._lin.rows, problem.params.values()
        norms = rows.squares.sum(0).sqrt()
        eps = torch.finfo(leaves[0].dtype).eps
        last = eps * float((norms * torch.cat([leaf.reshape(-1) for leaf in leaves])).norm())
        self.rounding = eps * abs(float(losses.sum())) + last * float(self._lin.r.norm()) + last**2 / 2
        self.largest = None if largest is None else torch.maximum(FADING * largest, norms)
        self._columns = torch.ones_like(norms) if self.largest is None else _scales(problem.params, self.largest)
        bounds, rest = problem.params.bounds, self._lin.rest
        if bounds is not None:  # columns of 0 keep parameters where they are
            gradient = rows.rmv(self._lin.r) + (0 if rest is None else rest)
            self._columns = self._columns * bounds.free(leaves, gradient)
        self.stuck = not bool(self._columns.any())
        if not bool((self._columns == 1).all()):
            rows = rows.scaled(self._columns)
        self._lin = replace(self._lin, rows=rows, rest=None if rest is None else rest * self._columns)
        self._columns = self._columns.to(leaves[0])
        self._name = "exact" if problem.settings.rank >= rows.n else problem.settings.solver
        self._solver: Solver | None = None

    def at(self, damping: float, start: Float[Tensor, " p"] | None) -> tuple[Float[Tensor, " p"], Info]:
        """Return the direction for a damping, flat, in the parameters' dtype.

        Args:
            damping: As in the settings.
            start: s, or None for zero.

        Raises:
            SingularError: K + lambda I could not be factorised.
        """
        lin = self._lin
        solver = self._damped(damping)
        s = None if start is None else self._in_units(start)
        r = lin.r if s is None else lin.r - lin.rows.mv(s).to(lin.r)
        solution = solver.direction(r, lin.rest)
        scaled = solution.d if s is None else solution.d + s
        d = (scaled * self._columns).to(self._columns.dtype)
        return d, _info(self._problem, self._losses, lin, solver, solution, scaled, float(d.norm()))

    def bend(self, d: Float[Tensor, " p"], length: float) -> Float[Tensor, " p"]:
        """Return b of the path parameters - t d - t^2 b, whose residuals at a length t are what the linear model says.

            b <- b + J^T (K + lambda I)^-1 (r(parameters - t d - t^2 b) - (r - t J d)) / t^2,   from b = 0

        These are steps of Newton's method with J held, as far as the damping lets them.

        Args:
            d: The direction.
            length: t.

        Cost: a forward pass and a solution for each of CORRECTIONS.
        Source: Transtrum, Sethna, "Improvements to the Levenberg-Marquardt algorithm" (2012), section 4, for the first
        of them; Kelley, "Iterative Methods for Linear and Nonlinear Equations" (1995), section 5.4, for the others.
        """
        assert self._solver is not None
        lin, params, b = self._lin, self._problem.params, torch.zeros_like(d)
        promised = lin.r - length * lin.rows.mv(self._in_units(d)).to(lin.r)
        for _ in range(CORRECTIONS):
            missed = self._problem.residuals(Path(d, b).at(length, params)) - promised
            b = b + self._solver.direction(missed, rough=True).d.to(d) * self._columns / length**2
            if not bool(b.isfinite().all()):
                break
        return b

    def norm(self, d: Float[Tensor, " p"]) -> float:
        """Return the norm that the damping takes of a direction."""
        return float(self._in_units(d).norm())

    def _in_units(self, d: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Return a direction in the units of the parameters, 0 for those that stay."""
        return torch.where(self._columns > 0, d / self._columns, 0.0)

    def _damped(self, damping: float) -> Solver:
        """Return the solver with a damping."""
        problem, lin = self._problem, self._lin
        if damping == 0 and (self._name != "exact" or lin.rest is not None):
            raise OptionError(
                problem.call, "damping out of range", expected="a number > 0 with a sketch or a sampled Fisher",
                got=damping, fix="Pass a damping > 0",
            )  # fmt: skip
        asked = Damping(damping, problem.settings.damping_mode == "relative")
        try:
            if self._solver is None:
                direct = self._name == "exact" and (lin.rows.params.size < lin.rows.n or damping == 0)
                kind = LeastSquares if direct else SOLVERS[self._name]
                self._solver = kind(lin.rows, asked, problem.settings, problem.generator(self._name))
            else:
                self._solver.damp(asked)
        except FactorisationError as error:
            raise SingularError(
                problem.call, "the system has no solution", expected="K + lambda I positive definite", got=str(error),
                fix="Raise damping",
            ) from error  # fmt: skip
        return self._solver


def _scales(params: Params, largest: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Return the unit that each parameter is measured in: one over the norm of its column, where it has its own.

    Each of a few parameters has a unit of its own, and so has a number beside many others, as a coefficient is beside a
    network. Weights of a network share one: scaled one by one, those that hardly matter would move far.

    Source: Moré, "The Levenberg-Marquardt algorithm" (1978), section 6.
    """
    few = params.size <= FEW
    own = torch.cat(
        [largest.new_full((leaf.numel(),), few or leaf.dim() == 0, dtype=torch.bool) for leaf in params.leaves]
    )
    shared = 1.0 if few else largest[~own].square().mean().sqrt()
    return torch.where(own & (largest > 0), shared / largest, 1.0)


def _info(
    problem: Problem, losses: Tensor, lin: Linearisation, solver: Solver, solution: Solution, d: Tensor, norm: float
) -> Info:
    rows, rest = lin.rows, 0.0 if lin.rest is None else lin.rest
    image = rows.mv(d).to(lin.r)
    if solution.c is None:
        size = rows.rmv(solution.rhs) + rest
        left = rows.rmv(lin.r - image) + rest - solver.damping * solution.d
    else:
        size = solution.rhs
        left = image + solver.damping * solution.c - lin.r  # K c + lambda c - rhs, as J d = J (d - J^T c) + K c
    slope = torch.dot(lin.r, image)
    if lin.rest is not None:
        slope = slope + torch.dot(lin.rest, d.to(lin.rest)).to(slope)
    error = (left.norm() / size.norm().clamp(min=torch.finfo(size.dtype).tiny)).to(slope)
    loss, slope, curvature, error = torch.stack(
        [losses.sum().to(slope), slope, torch.dot(image, image), error]
    ).tolist()  # fmt: skip
    by_term = dict(zip((term.name for term in problem.terms), losses.tolist(), strict=True))
    return Info(loss, by_term, rows.n, rows.trace, solver.damping, slope, curvature, norm, error, solver.rungs)


def _flat(tree: Any, like: Any, call: str) -> Tensor:
    """Return a direction as one vector.

    Raises:
        OptionError: It does not have the structure and shapes of the parameters.
    """
    got, expected = params_of(tree, call), params_of(like, call)
    shapes = [[(name, *leaf.shape) for name, leaf in zip(x.names, x.leaves, strict=True)] for x in (got, expected)]
    if shapes[0] != shapes[1]:
        raise OptionError(
            call,
            "previous does not fit",
            expected=str(shapes[1]),
            got=shapes[0],
            fix="Pass a direction of these params",
        )
    return torch.cat([leaf.reshape(-1) for leaf in got.values()])
