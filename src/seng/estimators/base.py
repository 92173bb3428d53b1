"""What an estimator is: it knows what it costs, draws, holds and sends, and builds U.

Legend: n samples, s positions, c groups, d_in and d_out features of a group, p parameters, r rank, q sketch rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import torch

from ..checks import plain, require_count, require_number
from ..errors import choose
from ..per_sample import LayerGradients, PerSampleGradients, Shape
from ..sketch import SKETCHES
from ..solve import EigenState, SolveState

MEMORY_BOUND = 10.0  # what products that read an element for two flops take, in times their flops
ROWS = 256  # of a sketch, by default


@dataclass(frozen=True)
class Cost:
    """What U of one block takes.

    Args:
        elements: Numbers held.
        gram: Floating-point operations that build U and its Gram matrix.
        apply: Floating-point operations of two products with U; those bound by memory count MEMORY_BOUND times.
        columns: Columns of U.
    """

    elements: float
    gram: float
    apply: float
    columns: int


@dataclass(frozen=True)
class Choice:
    """How the planner treats one block.

    Args:
        form: How U is kept.
        solver: What a refresh makes of K.
        nbytes: Bytes the held curvature takes.
        refresh_flops: Floating-point operations of a refresh.
        apply_flops: Floating-point operations of one preconditioned gradient.
        reason: Why, in a few words.
    """

    form: Form
    solver: type[SolveState] = EigenState
    nbytes: int = 0
    refresh_flops: float = 0.0
    apply_flops: float = 0.0
    reason: str = ""

    def work(self, interval: int) -> float:
        """Return the operations of a step, refreshes spread over their interval."""
        return self.apply_flops + self.refresh_flops / interval


class Estimator(ABC):
    """How curvature is estimated from the samples of a batch: what the option ``estimator`` takes.

    A new estimator is one file with a frozen dataclass, which is passed as it is; a line in ``ESTIMATORS`` gives its
    defaults a name.

    Attributes:
        name: Its name in the table and in plans.
        exact: Whether no sample and no parameter is sketched or dropped.
        natural_only: Whether directions are those of power 1 alone.
        rows: How many positions ``positions="expand"`` keeps, at least one for each sample.
        tolerance: Relative error of a direction that is accepted where it saves work.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False
    natural_only: ClassVar[bool] = False
    rows: int = ROWS
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = plain(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            require_argument(f"{type(self).__name__}()", field.name, value)

    @abstractmethod
    def forms(self, shape: Shape) -> Sequence[Form]:
        """Return the forms that a block of this shape may be kept in; none where it is to be kept exactly."""

    def smaller(self, shape: Shape) -> Sequence[Form]:
        """Return the forms to choose from where a memory budget has to be met."""
        return self.forms(shape)

    @abstractmethod
    def choose(self, shape: Shape, price: Callable[[Form], Choice], interval: int) -> Choice:
        """Return the form that is used.

        Args:
            shape: Of the block, which has forms.
            price: Returns what a form costs.
            interval: Steps between refreshes.
        """

    def passthrough_scale(self, damping: float, power: float) -> float:
        """Return what scales gradients that no curvature reaches, at the mean damping of those that it does."""
        return damping**-power


class Form(Estimator):
    """One way to keep U of a block. An estimator that knows no other is a form itself.

    Attributes:
        kinds: Kinds of layers that can be kept so.
        draws: Whether U depends on random numbers.
        frozen_damping: Whether coefficients keep the damping of the refresh.
    """

    kinds: ClassVar[tuple[str, ...]] = ("product", "lookup", "rows")
    draws: ClassVar[bool] = False
    frozen_damping: ClassVar[bool] = False

    @property
    def truncation(self) -> float | None:
        """Multiple of the damping below which eigenvalues are dropped; None: all samples are kept."""
        return None

    @property
    def wire_rank(self) -> int | None:
        """Rank of each sample's gradient as it is sent to other ranks; None: it may not be reduced."""
        return None

    @abstractmethod
    def cost(self, shape: Shape) -> Cost:
        """Return what U of a block takes."""

    @abstractmethod
    def build(
        self, io: LayerGradients, scale: float, dtype: torch.dtype, generator: torch.Generator
    ) -> PerSampleGradients:
        """Return U of what a layer captured; ``scale`` multiplies every column."""

    def columns(self, n: int, p: int) -> int:
        """Return how many columns U has of n samples and p parameters."""
        return n

    def forms(self, shape: Shape) -> Sequence[Form]:
        return (self,) if shape.kind in self.kinds else ()

    def choose(self, shape: Shape, price: Callable[[Form], Choice], interval: int) -> Choice:
        return replace(price(self), reason="asked for")


def _require_sketch(call: str, name: str, value: Any) -> None:
    choose(SKETCHES, value, call=call, option=name)


_CHECKS: dict[str, Callable[[str, str, Any], None]] = {
    "rank": require_count,
    "rows": require_count,
    "explicit_limit": partial(require_count, optional=True),
    "tolerance": partial(require_number, within="in [0, 1)"),
    "sketch": _require_sketch,
}


def require_argument(call: str, argument: str, value: Any, name: str | None = None) -> None:
    """Raise OptionError where the argument of an estimator is out of range; ``name``: what the call names it."""
    if argument in _CHECKS:
        _CHECKS[argument](call, name or argument, value)
