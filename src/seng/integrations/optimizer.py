"""``seng.func.NaturalGradient`` as a torch optimizer whose step takes a closure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import OptionError, OrderError
from ..func.fishers import FISHERS
from ..func.optimizer import NaturalGradient, StepResult
from ..func.problem import Linearisation, NotFiniteError, Path, Problem, SingularError
from ..func.ranks import Ranks
from ..func.rows import Piece, Rows
from ..func.terms import Term
from ..func.trees import Leaves, Params, params_of
from .capture import CALL, Captured, Closure, Recording, capture, residuals


class NaturalGradientOptimizer(Optimizer):
    """Natural gradients over all parameters, for loops that give their optimizer a closure.

    The step length, damping and state are those of ``seng.func.NaturalGradient``; ``lr`` of the parameter groups is the
    first step length that is tried, which schedulers may change. Loss and gradient of the closure are not used but for
    the weights of the residuals.

    Args:
        params: Parameters or groups of them, as other torch optimizers take: those of the network and, beside them, as
            many single numbers as an inverse problem has.
        net: The network.
        recording: Makes the loop use a recorder in place of its loss function. See ``seng.integrations.capture``.
        lr: First step length that is tried, > 0.
        **options: See ``seng.func.NaturalGradient`` and ``seng.func.Settings``.

    Attributes:
        result: What the last step did, or None.

    Raises:
        OptionError: An option is unknown or out of range.
    """

    def __init__(self, params: Iterable[Any], net: nn.Module, recording: Recording, *, lr: float = 1.0, **options: Any):
        self._engine: NaturalGradient | None = None
        self.net, self.recording, self._options = net, recording, options
        self.result: StepResult | None = None
        super().__init__(params, {"lr": lr})
        _engine_of({"a parameter": torch.zeros(1, dtype=torch.float64)}, lr, options)  # refuses what it would refuse

    @property
    def engine(self) -> NaturalGradient:
        """The optimizer that takes the steps; made at its first use."""
        if self._engine is None:
            names = {id(p): name for name, p in self.net.named_parameters()}
            given = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            own = {names[id(p)]: p for p in given if id(p) in names}
            missing = [name for name, p in self.net.named_parameters() if p.requires_grad and name not in own]
            if missing:
                raise OptionError(
                    CALL, "parameters of the network are left out", expected="all that are trainable", got=missing,
                    fix="Pass them, or set requires_grad=False",
                )  # fmt: skip
            ordered = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
            beside = {f"beside {k}": p for k, p in enumerate(p for p in given if id(p) not in names)}
            self._engine = _engine_of({**ordered, **beside}, self.param_groups[0]["lr"] or 1.0, self._options)
        return self._engine

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters before the first step.

        Raises:
            OrderError: Steps have been taken.
        """
        if self._engine is not None:
            raise OrderError(
                "add_param_group()", "steps have been taken", expected="all groups before the first step",
                got=self._engine.steps, fix="Make a new optimizer",
            )  # fmt: skip
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step.

        Args:
            closure: Computes the loss and its gradient, as for ``torch.optim.LBFGS``.

        Returns:
            The loss before the step.

        Raises:
            OrderError: There is no closure.
            BatchError: The loss is no weighted sum of squared residuals of single points.
        """
        if closure is None:
            raise OrderError(
                CALL, "no closure", expected="a function that computes the loss and its gradient", got=None,
                fix="Call step(closure)",
            )  # fmt: skip
        engine, lr = self.engine, self.param_groups[0]["lr"]
        if lr == 0:  # a schedule may end there
            return closure()
        engine.lr = lr
        problem = self._problem(closure)
        self.result = engine.step_on(problem)
        return problem.captured.r.new_tensor(self.result.loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the engine beside that of torch's optimizers."""
        return {**super().state_dict(), "natural_gradient": self.engine.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            StateError: The state is truncated, foreign, or of other parameters. Nothing changes.
        """
        rest = dict(state_dict)
        self.engine.load_state_dict(rest.pop("natural_gradient", None))  # pyright: ignore[reportArgumentType]
        super().load_state_dict(rest)

    def _problem(self, closure: Closure) -> ClosureProblem:
        engine, layout = self.engine, params_of(self.engine.params, CALL)
        others = layout.leaves[len([p for p in self.net.parameters() if p.requires_grad]) :]
        captured = capture(closure, self.recording, self.net, others, check=self.result is None)
        terms = [
            Term(f"residual {k}", lambda *_: torch.zeros(()), None, count, 1.0, True)
            for k, count in enumerate(captured.counts)
        ]
        fisher = FISHERS["gauss_newton"]()
        return ClosureProblem(
            terms, layout, fisher, engine.settings, Ranks(), engine.steps, CALL, captured,
            lambda: residuals(closure, self.recording),
        )  # fmt: skip


@dataclass(frozen=True)
class ClosureProblem(Problem):
    """The loss of a closure as a function of the parameters.

    Args:
        captured: Residuals and rows at the present parameters.
        evaluate: Returns the residuals at the parameters as they are, without their weights.
    """

    captured: Captured
    evaluate: Callable[[], Float[Tensor, " n"]]

    @cached_property
    def present_losses(self) -> Float[Tensor, " t"]:
        """The loss of each term at the present parameters, at no cost."""
        return self.losses(self.params.values())

    def losses(self, leaves: Leaves) -> Float[Tensor, " t"]:
        """Return the loss of each term at the present parameters, at no cost."""
        return torch.stack([part.square().sum() / 2 for part in self.captured.r.split(self.captured.counts)])

    def losses_along(self, path: Path, lengths: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return the loss at each length of a path. Cost: k calls of the closure."""
        at = [self.residuals(path.at(float(length), self.params)) for length in lengths]
        return torch.stack([r.square().sum() / 2 for r in at])

    def residuals(self, leaves: Leaves) -> Float[Tensor, " n"]:
        """Return r at other parameters, with the weights of the present ones. Cost: one call of the closure."""
        before = [leaf.clone() for leaf in self.params.values()]
        self.params.write(leaves)
        try:
            return (self.captured.factors * self.evaluate()).to(self.settings.solve_dtype)
        finally:
            self.params.write(before)

    def linearise(self) -> Linearisation:
        """Return rows and residuals, at no further cost.

        Raises:
            NotFiniteError: A residual or a derivative is not finite.
            SingularError: All derivatives are 0.
        """
        r, rows = self.captured.r, self.captured.rows
        if not (r.isfinite().all() and rows.isfinite().all()):
            raise NotFiniteError(
                self.call, "residuals or derivatives are not finite", expected="finite numbers", got="inf or nan",
                fix="Look at the points, or at the parameters",
            )  # fmt: skip
        if not rows.any():
            raise SingularError(
                self.call, "no residual depends on a parameter", expected="a row that is not 0", got="rows of 0",
                fix="Use the network in the residuals",
            )  # fmt: skip
        return Linearisation(_held(self.terms, rows, self.params), r.to(self.settings.solve_dtype), None)


def _held(terms: list[Term], matrix: Float[Tensor, "n p"], params: Params) -> Rows:
    """Return rows that are known already."""
    n, leaves = len(matrix), params.values()
    rows = Rows(terms[:1], [1.0], [1], params, leaves, [Piece(0, (0, n), 0, n)], [n], Ranks(), True)
    rows.__dict__["held"] = matrix
    return rows


def _engine_of(params: dict[str, Tensor], lr: float, options: dict[str, Any]) -> NaturalGradient:
    engine = NaturalGradient(params, lambda *_: torch.zeros(()), lr=lr, **options)
    if engine.settings.fisher != "gauss_newton" or engine.settings.weights:
        raise OptionError(
            "NaturalGradientOptimizer()", "option cannot be used", expected="fisher='gauss_newton', weights=None",
            got=options, fix="Set weights of the loss where the loop has them",
        )  # fmt: skip
    return engine
