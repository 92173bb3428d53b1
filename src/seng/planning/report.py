"""``seng.plan``: what the curvature of a model will hold and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..blocks import Block, Layout, reweightable
from ..config import OptionKeywords, Options, shows_options
from ..curvature import block_io
from ..distributed import require_strategy
from ..errors import OrderError
from ..estimators import Choice
from ..grouping import lay_out
from ..per_sample import LayerGradients, Shape
from ..subsets import cut_shape
from ..wrappers import unwrap
from .choice import choose_all
from .shapes import captured_shapes

if TYPE_CHECKING:
    from typing_extensions import Unpack

INTERVALS = (1, 10, 100, 200, 1000)  # steps between refreshes at which costs are told
COLUMNS = ("name", "layer", "shape", "parameters", "estimator", "MiB", "refresh", "apply", "why")


@dataclass(frozen=True)
class PlanRow:
    """One block of a plan: its shape on the given inputs and how its curvature will be kept.

    Args:
        name: Qualified name of the block's first module.
        layer: Type of its modules, as ``Conv2d``; with " + " between those that share a parameter.
        size: Its shape.
        choice: The form of its curvature, with bytes and flops.
    """

    name: str
    layer: str
    size: Shape
    choice: Choice

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain values: flops and bytes, not shares."""
        size, choice = self.size, self.choice
        dimensions = {key: getattr(size, key) for key in ("n", "s", "c", "d_in", "d_out")}
        costs = {key: getattr(choice, key) for key in ("nbytes", "refresh_flops", "apply_flops")}
        return {
            "name": self.name,
            "layer": self.layer,
            "kind": size.kind,
            "shape": str(size),
            "dimensions": dimensions,
            "parameters": size.p,
            "estimator": choice.form.name,
            "reason": choice.reason,
            "solver": choice.solver.name,
            "backward_flops": size.backward_flops,
            **costs,
        }


@dataclass(frozen=True)
class Plan:
    """What the curvature of a model will hold and cost.

    Flops are multiplications and additions; products that are bound by memory count with the flops that would take as
    long. Shares are of the backward pass of all layers in ``rows``: attention products, activations and the like come
    on top of it and are not counted.

    Args:
        rows: One a block.
        interval: Steps between refreshes.
        unused: Blocks the inputs did not reach.
        passed_through: Reason by name of each parameter that is not preconditioned.
        parameter_bytes: Bytes of the model's parameters.
        batch: Number of samples of the batch.
        samples: How many of them make curvature.
    """

    rows: tuple[PlanRow, ...]
    interval: int
    unused: tuple[str, ...]
    passed_through: dict[str, str]
    parameter_bytes: int
    batch: int
    samples: int

    @property
    def nbytes(self) -> int:
        """Bytes of held curvature."""
        return sum(row.choice.nbytes for row in self.rows)

    @property
    def backward_flops(self) -> float:
        """Flops of the backward pass of all blocks."""
        return sum(row.size.backward_flops for row in self.rows)

    def share(self, interval: int | None = None) -> float:
        """Return the flops of refreshes and applications a step, as a share of the backward pass."""
        steps = interval or self.interval
        return sum(row.choice.apply_flops + row.choice.refresh_flops / steps for row in self.rows) / self.backward_flops

    def shares(self, intervals: Sequence[int] = INTERVALS) -> dict[int, float]:
        """Return the share at several intervals and at the plan's own, by interval, ascending."""
        return {interval: self.share(interval) for interval in sorted({*intervals, self.interval})}

    def cells(self) -> list[tuple[str, ...]]:
        """Return the table as text: a row of ``COLUMNS`` for every block."""
        return [
            (
                row.name,
                row.layer,
                str(row.size),
                f"{row.size.p:,}",
                row.choice.form.name,
                f"{row.choice.nbytes / 2**20:,.2f}",
                f"{row.choice.refresh_flops / self.backward_flops:.2%}",
                f"{row.choice.apply_flops / self.backward_flops:.2%}",
                row.choice.reason,
            )
            for row in self.rows
        ]

    def remarks(self) -> list[str]:
        """Return what is not in the table, and why, a line each."""
        lines = [f"{name}  is not reached by these inputs" for name in self.unused]
        return lines + [f"{name}  passes through: {why}" for name, why in self.passed_through.items()]

    def totals(self, intervals: Sequence[int] = INTERVALS) -> list[str]:
        """Return what the whole table adds up to, in sentences."""
        ratio = self.nbytes / self.parameter_bytes
        lines = [f"{self.nbytes / 2**20:,.2f} MiB of curvature, {ratio:.2f} times the parameters"]
        if self.samples < self.batch:
            lines.append(f"{self.samples} of {self.batch} samples make curvature")
        shares = ", ".join(f"every {interval}: {share:.1%}" for interval, share in self.shares(intervals).items())
        return [*lines, f"flops as a share of the backward pass, refreshed {shares}"]

    def to_dict(self, intervals: Sequence[int] = INTERVALS) -> dict[str, Any]:
        """Return the plan as plain values, ready for JSON."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "unused": list(self.unused),
            "passed_through": self.passed_through,
            "interval": self.interval,
            "batch": self.batch,
            "samples": self.samples,
            "nbytes": self.nbytes,
            "parameter_bytes": self.parameter_bytes,
            "backward_flops": self.backward_flops,
            "shares": {str(interval): share for interval, share in self.shares(intervals).items()},
        }

    def __str__(self) -> str:
        table = [COLUMNS, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        return "\n".join([line.rstrip() for line in lines] + self.remarks() + self.totals())


@shows_options
def plan(
    model: nn.Module, inputs: Tensor | Sequence[Any] | Mapping[str, Any], **options: Unpack[OptionKeywords]
) -> Plan:
    """Return how the curvature of each block would be kept on a batch like ``inputs``, and what it costs.

    Shapes are all that counts: with model and inputs on ``torch.device("meta")`` nothing is computed or held.

    Args:
        model: The model.
        inputs: A batch: a tensor, a sequence of positional or a mapping of keyword arguments.
        **options: As for ``seng.SENG``.

    Raises:
        OptionError, ModelError, MemoryBudgetError: As for ``seng.SENG``.
        OrderError: The inputs reach none of the layers.

    Cost: one forward pass.
    """
    chosen = checked_options("plan()", dict(options))
    layout = lay_out(unwrap(model, "plan()"), chosen, "plan()")
    layers = captured_shapes(model, inputs, layout)
    sizes = _sizes(layout, layers, chosen)
    if not sizes:
        raise OrderError(
            "plan()", "no layer was reached", expected="inputs that the supported layers read", got=list(layout.blocks),
            fix="Pass a batch as training does",
        )  # fmt: skip
    interval = chosen.interval_at(0, "plan()")
    drawn = {name: cut_shape(io, chosen.curvature_samples) for name, io in layers.items()}
    kept = _sizes(layout, drawn, chosen)
    choices = choose_all(kept, chosen, 0, "plan()", reweightable(layout) if chosen.reweight else ())
    rows = tuple(PlanRow(name, _types(layout.blocks[name]), size, choices[name]) for name, size in sizes.items())
    unused = tuple(name for name in layout.blocks if name not in sizes)
    counts = next((layers[name].n, drawn[name].n) for name in layers)
    return Plan(rows, interval, unused, layout.passed, sum(p.nbytes for p in model.parameters()), *counts)


def checked_options(call: str, given: dict[str, Any]) -> Options:
    """Return options that ``seng.SENG`` would take."""
    options = Options.build(call, given)
    require_strategy(options.distributed, call)
    return options


def _sizes(layout: Layout, layers: Mapping[str, LayerGradients], options: Options) -> dict[str, Shape]:
    return {
        name: Shape.of_block(
            [io.shape for io, _ in block_io(block, layers)], block.compute_dtype.itemsize, options.expanded, block.tied
        )
        for name, block in layout.blocks.items()
        if any(entry.name in layers for entry, _ in block.members)
    }


def _types(block: Block) -> str:
    return " + ".join(dict.fromkeys(type(entry.module).__name__ for entry, _ in block.members))
