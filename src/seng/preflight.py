"""Two questions to ask before training: what will it cost (``plan``), and is the capture right (``verify``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import lay_out, unwrap
from .capture import Capture
from .config import Options
from .curvature import as_captured, block_io
from .errors import OrderError
from .planner import Size, choose_all, require_known
from .types import Choice, LayerIO, join_uses

ROUNDINGS = 1e3  # of the captured dtype that sums over samples and positions may add up to
HALF_ROUNDINGS = 16  # the same in half precision, whose products are accumulated in float32 and rounded a few times
NEGLIGIBLE = 1e-3  # share of the whole gradient below which a block's own size stops being the unit of its error


@dataclass(frozen=True)
class PlanRow:
    """One block of a plan: its shape on the given inputs and how its curvature will be kept."""

    name: str
    size: Size
    choice: Choice


@dataclass(frozen=True)
class Plan:
    """What the curvature of a model will hold and cost.

    Args:
        rows: One a block.
        interval: Steps between refreshes.
        passed_through: Reason by name of each parameter that is not preconditioned.
    """

    rows: tuple[PlanRow, ...]
    interval: int
    passed_through: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of held curvature."""
        return sum(row.choice.nbytes for row in self.rows)

    def share(self, interval: int | None = None) -> float:
        """Return the flops of refreshes and applications a step, as a share of the backward pass."""
        steps = interval or self.interval
        work = sum(row.choice.apply_flops + row.choice.refresh_flops / steps for row in self.rows)
        return work / sum(row.size.backward_flops for row in self.rows)

    def __str__(self) -> str:
        head = ("block", "kind", "parameters", "estimator", "MiB", "refresh", "apply", "why")
        table: list[tuple[str, ...]] = [head]
        for row in self.rows:
            backward, choice = row.size.backward_flops, row.choice
            cost = (f"{choice.refresh_flops / backward:.2f}x", f"{choice.apply_flops / backward:.2f}x")
            mib = f"{choice.nbytes / 2**20:.2f}"
            table.append((row.name, row.size.kind, f"{row.size.p:,}", choice.estimator, mib, *cost, choice.reason))
        widths = [max(len(line[k]) for line in table) for k in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        lines += [f"{name}  passes through: {why}" for name, why in self.passed_through.items()]
        totals = ", ".join(f"every {k}: {self.share(k):.2f}x" for k in sorted({1, 10, 100, self.interval}))
        return "\n".join([*lines, f"{self.nbytes / 2**20:.2f} MiB held; of the backward pass, refreshed {totals}"])


def plan(model: nn.Module, inputs: Tensor | Sequence[Any] | Mapping[str, Any], **options: Any) -> Plan:
    """Return how the curvature of each block would be kept on a batch like ``inputs``, and what it costs.

    Flops and bytes follow from shapes; the unit is the backward pass of the block itself.

    Args:
        model: The model.
        inputs: A batch: a tensor, a sequence of positional or a mapping of keyword arguments.
        **options: As for ``seng.SENG``.

    Raises:
        OptionError, ModelError, MemoryBudgetError: As for ``seng.SENG``.

    Cost: one forward pass.
    """
    chosen = Options.build("plan()", options)
    require_known(chosen, "plan()")
    layout = lay_out(unwrap(model, "plan()"), chosen, "plan()")
    captured: dict[str, list[LayerIO]] = {}

    def hook_for(entry: Any) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            io = entry.function(module, x, torch.zeros_like(output), entry.wanted, module.training)
            captured.setdefault(entry.name, []).append(io)

        return hook

    members = [entry for block in layout.blocks.values() for entry, _ in block.members]
    handles = [entry.module.register_forward_hook(hook_for(entry), with_kwargs=True) for entry in members]
    try:
        with torch.no_grad(), untouched_buffers(model), torch.random.fork_rng():
            _call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    layers = {name: join_uses(uses) for name, uses in captured.items()}
    sizes = {
        name: Size.of_block([io for io, _ in block_io(block, layers)], chosen, block.compute_dtype.itemsize)
        for name, block in layout.blocks.items()
        if any(entry.name in layers for entry, _ in block.members)
    }
    interval = chosen.interval_at(0, "plan()")
    choices = choose_all(sizes, chosen, interval, "plan()")
    rows = tuple(PlanRow(name, size, choices[name]) for name, size in sizes.items())
    return Plan(rows, interval, layout.passed)


@dataclass(frozen=True)
class Report:
    """How well captured gradients reconstruct ``.grad``.

    Args:
        errors: |sum of captured - grad| by block name, relative to the largest of |grad|, the root of the samples'
            summed squares, and NEGLIGIBLE times the whole gradient: where gradients cancel only rounding is left.
        unused: Blocks the closure did not reach.
        passed_through: Reason by name of each parameter that is not preconditioned.
        tolerance: Largest error that rounding explains.
    """

    errors: dict[str, float]
    unused: tuple[str, ...]
    passed_through: dict[str, str]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every block that was reached is reconstructed to rounding."""
        return bool(self.errors) and all(error <= self.tolerance for error in self.errors.values())

    def __str__(self) -> str:
        lines = [
            f"{name}: {error:.1e} {'ok' if error <= self.tolerance else 'WRONG'}" for name, error in self.errors.items()
        ]
        lines += [f"{name}: not reached" for name in self.unused]
        lines += [f"{name}: passes through, {why}" for name, why in self.passed_through.items()]
        return "\n".join([*lines, "capture is right" if self.ok else "capture is WRONG: exclude the layers marked"])


def verify(model: nn.Module, loss_closure: Callable[[], Tensor], **options: Any) -> Report:
    """Check on your own model and loss that the captured samples add up to ``.grad``, layer by layer.

    Runs the closure once, and backward on what it returns. Gradients, buffers (batch norm's running statistics) and
    random state are put back.

    Args:
        model: The model.
        loss_closure: Computes the loss by calling the model; must not call backward.
        **options: ``include`` and ``exclude``, as for ``seng.SENG``.

    Raises:
        OrderError: The closure did not return a loss that depends on the model.

    Cost: one training step and one weight-gradient product a layer.
    """
    chosen = Options.build("verify()", options)
    layout = lay_out(unwrap(model, "verify()"), chosen, "verify()")
    members = [entry for block in layout.blocks.values() for entry, _ in block.members]
    capture = Capture(members, lambda: False)
    held = {p: p.grad for p in model.parameters()}
    try:
        for p in held:
            p.grad = None
        with torch.enable_grad(), untouched_buffers(model), torch.random.fork_rng():
            loss = loss_closure()
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise OrderError(
                    "verify()", "the closure gave no loss", expected="a tensor that depends on the model",
                    got=loss, fix="Return the loss, without calling backward",
                )  # fmt: skip
            loss.backward()
        return _report(capture, layout)
    finally:
        capture.close()
        for p, grad in held.items():
            p.grad = grad


@torch.no_grad()
def _report(capture: Capture, layout: Any) -> Report:
    layers = capture.collect().layers
    errors, unused, eps = {}, [], 0.0
    grads = [p.grad.double() for block in layout.blocks.values() for p in block.parameters if p.grad is not None]
    floor = NEGLIGIBLE * sum(float(g.square().sum()) for g in grads) ** 0.5
    for name, block in layout.blocks.items():
        if not any(entry.name in layers for entry, _ in block.members):
            unused.append(name)
            continue
        parts = block_io(block, layers)
        factor = as_captured(block, parts, 1.0, torch.float64)
        ones = torch.ones(factor.n, dtype=torch.float64, device=block.parameters[0].device)
        total = torch.cat([x.reshape(-1) for x in factor.rmv(ones)])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in block.parameters]
        grad = torch.cat([g.reshape(-1).to(total) for g in grads])
        scale = max(float(grad.norm()), float(factor.gram().diagonal().sum()) ** 0.5, floor)
        errors[name] = float((total - grad).norm()) / scale if scale > 0 else 0.0
        eps = max(eps, *(torch.finfo(io.dtype).eps for io, _ in parts))
    tolerance = eps * (HALF_ROUNDINGS if eps > torch.finfo(torch.float32).eps else ROUNDINGS)
    return Report(errors, tuple(unused), layout.passed, tolerance)


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, Tensor):
        model(inputs)
    else:
        model(*inputs)


class untouched_buffers:
    """Put a model's buffers back on exit."""

    def __init__(self, model: nn.Module):
        self._buffers = list(model.buffers())

    def __enter__(self) -> None:
        self._saved = [buffer.clone() for buffer in self._buffers]

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for buffer, saved in zip(self._buffers, self._saved, strict=True):
                buffer.copy_(saved)
