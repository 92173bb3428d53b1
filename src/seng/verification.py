"""Is the capture right (``verify``)? Captured samples are compared with ``.grad``, and with samples run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .blocks import Block, Layout
from .capture import Capture, Captured
from .curvature import as_captured, block_io
from .errors import ModelError, OrderError
from .grouping import lay_out
from .hooks import paused
from .planning.report import checked_options
from .planning.shapes import untouched_buffers
from .wrappers import unwrap

ROUNDINGS = 1e3  # of the captured dtype that sums over samples and positions may add up to
HALF_ROUNDINGS = 16  # the same in half precision, whose products are accumulated in float32 and rounded a few times
NEGLIGIBLE = 1e-3  # share of the whole gradient below which a block's own size stops being the unit of its error
FEW = 3  # samples that are run alone unless all are asked for


@dataclass(frozen=True)
class Report:
    """How well captured gradients reconstruct ``.grad``.

    Args:
        errors: |sum of captured - grad| by block name, relative to the largest of |grad|, the root of the samples'
            summed squares, and NEGLIGIBLE times the whole gradient: where gradients cancel only rounding is left.
            Penalties on the weights themselves do no harm and are taken out.
        unused: Blocks the closure did not reach.
        passed_through: Reason by name of each parameter that is not preconditioned.
        tolerance: Largest error that rounding explains.
        apart: By block name, how far captured gradients of a sample are from those of the sample run alone, at most.
        apart_tolerance: Largest such error that rounding explains.
        remarks: What was found beside that, and what could not be looked at.
    """

    errors: dict[str, float]
    unused: tuple[str, ...]
    passed_through: dict[str, str]
    tolerance: float
    apart: dict[str, float] = field(default_factory=dict)
    apart_tolerance: float = 0.0
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every block that was reached is reconstructed, sample by sample, to rounding."""
        return bool(self.errors) and not any(map(self._wrong, self.errors))

    def _wrong(self, name: str) -> bool:
        return not (self.errors[name] <= self.tolerance and self.apart.get(name, 0.0) <= self.apart_tolerance)

    def __str__(self) -> str:
        lines = []
        for name, error in self.errors.items():
            alone = f", samples alone {self.apart[name]:.1e}" if name in self.apart else ""
            lines.append(f"{name}: {error:.1e}{alone} {'WRONG' if self._wrong(name) else 'ok'}")
        lines += [f"{name}: not reached" for name in self.unused]
        lines += [f"{name}: passes through, {why}" for name, why in self.passed_through.items()]
        lines += self.remarks
        return "\n".join([*lines, "capture is right" if self.ok else "capture is WRONG: exclude the layers marked"])


def verify(model: nn.Module, loss_closure: Callable[[], Tensor], *, per_sample: bool = False, **options: Any) -> Report:
    """Check on your own model and loss that captured gradients are the true ones, layer by layer.

    Runs the closure once, and backward on what it returns: the captured samples must add up to ``.grad``. Then it
    runs the closure in evaluation mode, and samples alone: what was captured of a sample must be the gradient that
    the sample has by itself, which finds dimensions 0 that are not samples. Gradients, buffers (batch norm's running
    statistics), modes and random state are put back.

    Args:
        model: The model.
        loss_closure: Computes the loss by calling the model; must not call backward.
        per_sample: Whether all samples are run alone, not the first, a middle and the last one only.
        **options: ``include`` and ``exclude``, as for ``seng.SENG``.

    Raises:
        OrderError: The closure did not return a loss that depends on the model.
        ModelError: ``fully_shard`` has cut the model's parameters.

    Cost: two training steps, one weight-gradient product a layer, and a training step a sample run alone.
    """
    chosen = checked_options("verify()", options)
    inner = unwrap(model, "verify()")
    layout = lay_out(inner, chosen, "verify()")
    if layout.sharded:
        raise ModelError(
            "verify()", "the model is sharded", expected="whole parameters", got="fully_shard",
            fix="Verify it before fully_shard",
        )  # fmt: skip
    with paused(inner), _unchanged(inner), untouched_buffers(inner), torch.random.fork_rng(), torch.enable_grad():
        with _capturing(layout, inner) as capture:
            _loss(loss_closure).backward()
            errors, unused, tolerance, remarks = _compare(capture.collect(), layout)
        for p in inner.parameters():
            p.grad = None
        apart, more = _run_alone(inner, loss_closure, layout, per_sample)
    return Report(errors, unused, layout.passed, tolerance, apart, _apart_tolerance(tolerance), (*remarks, *more))


def _loss(closure: Callable[[], Tensor]) -> Tensor:
    loss = closure()
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise OrderError(
            "verify()", "the closure gave no loss", expected="a tensor that depends on the model",
            got=loss, fix="Return the loss, without calling backward",
        )  # fmt: skip
    return loss


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put gradients and modes back on exit."""
    grads = {p: p.grad for p in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        for p in grads:
            p.grad = None
        yield
    finally:
        for p, grad in grads.items():
            p.grad = grad
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _capturing(layout: Layout, model: nn.Module) -> Iterator[Capture]:
    capture = Capture(layout.watched, model=model)
    try:
        yield capture
    finally:
        capture.close()


# -- sums -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _compare(captured: Captured, layout: Layout) -> tuple[dict[str, float], tuple[str, ...], float, list[str]]:
    """Return the error of each block, blocks that were not reached, the tolerance, and remarks."""
    layers = captured.layers
    errors: dict[str, float] = {}
    unused, remarks, eps = [], [], 0.0
    grads = [p.grad.double() for block in layout.blocks.values() for p in block.parameters if p.grad is not None]
    floor = NEGLIGIBLE * sum(float(g.square().sum()) for g in grads) ** 0.5
    for name, block in layout.blocks.items():
        refused = next((captured.refused[m.name] for m, _ in block.members if m.name in captured.refused), None)
        if refused is not None:
            remarks.append(f"{name}: passes through, {refused}")
        elif not any(entry.name in layers for entry, _ in block.members):
            unused.append(name)
        else:
            parts = block_io(block, layers)
            factor = as_captured(block, parts, 1.0, torch.float64)
            eps = max(eps, *(torch.finfo(io.dtype).eps for io, _ in parts))
            miss, penalties = _miss(block, factor.rmv(torch.ones(factor.n, dtype=torch.float64)))
            whole = torch.cat([_flat(p.grad, p) for p in block.parameters]).norm()
            scale = max(float(whole), float(factor.gram().diagonal().sum()) ** 0.5, floor)
            errors[name] = miss / scale if scale > 0 else 0.0
            remarks += [f"{name}: a penalty on {key} is part of the loss, which does no harm" for key in penalties]
    tolerance = eps * (HALF_ROUNDINGS if eps > torch.finfo(torch.float32).eps else ROUNDINGS)
    return errors, tuple(unused), tolerance, remarks


def _miss(block: Block, total: Sequence[Tensor]) -> tuple[float, list[str]]:
    """Return how much of the gradient neither samples nor penalties on the weights explain, and what is penalised."""
    square, penalised = 0.0, []
    for p, own, key in zip(block.parameters, total, block.parameter_names, strict=True):
        rest = _flat(p.grad, p) - own.reshape(-1)
        basis = torch.stack([_flat(p, p), _flat(p, p).sign()], 1)
        if len(rest) > 2 and bool((rest.norm() > 1e-9 * own.norm()) & (basis.norm() > 0)):
            left = rest - basis @ torch.linalg.lstsq(basis, rest[:, None], driver="gelsd").solution[:, 0]
            if left.norm() < 1e-3 * rest.norm():
                rest, penalised = left, [*penalised, key]
        square += float(rest.square().sum())
    return square**0.5, penalised


def _flat(x: Tensor | None, like: Tensor) -> Float[Tensor, " k"]:
    x = torch.zeros_like(like) if x is None else x.detach()
    return (x.to_dense() if x.is_sparse else x).reshape(-1).double().cpu()


# -- samples run alone ----------------------------------------------------------------------------------------------


def _apart_tolerance(tolerance: float) -> float:
    """Return the error that batches of other sizes may make of one sample's gradient."""
    return max(1e-6, min(1e-1, 30 * tolerance))


@dataclass
class _Calls:
    """The calls of the model during a closure: inputs, and outputs with the gradients that reached them."""

    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    grads: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        self.inputs.append((args, kwargs))
        leaves, structure = tree_flatten(output)
        found = [k for k, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
        self.outputs.append([leaves[k] for k in found])
        grads = self.grads  # a hook that held the outputs would keep their graph alive for good
        for k, place in enumerate(found):  # an alias has the loss's gradient alone, not that of outputs made from it
            leaves[place] = leaves[place].view_as(leaves[place])
            leaves[place].register_hook(lambda grad, k=k: grads.update({k: grad.detach()}))
        return tree_unflatten(leaves, structure)


def _run_alone(
    model: nn.Module, closure: Callable[[], Tensor], layout: Layout, all_samples: bool
) -> tuple[dict[str, float], list[str]]:
    """Return how far captured rows are from gradients of samples run alone, by block."""
    model.eval()
    calls = _Calls()
    handle = model.register_forward_hook(calls, with_kwargs=True)
    try:
        with _capturing(layout, model) as capture:
            _loss(closure).backward()
            captured = capture.collect()
            rows = _rows(captured, layout)
    finally:
        handle.remove()
    if len(calls.inputs) != 1:
        return {}, [f"samples were not run alone: the closure calls the model {len(calls.inputs)} times"]
    n = captured.samples
    odd = next((len(g) for g in calls.grads.values() if g.dim() and len(g) != n), None)
    if odd is not None:
        return {}, [f"samples were not run alone: an output has {odd} entries in dimension 0, the batch {n} samples"]
    chosen = range(n) if all_samples or n <= FEW else (0, n // 2, n - 1)
    apart = dict.fromkeys(rows, 0.0)
    for i in chosen:
        try:
            alone = _gradients_alone(model, layout, calls, i, n)
        except Exception as error:  # whatever the model has against one sample
            return {}, [f"samples were not run alone: {type(error).__name__}: {str(error)[:100]}"]
        for name, own in rows.items():
            apart[name] = max(apart[name], float("inf") if alone is None else _distance(own, alone[name], i))
    return apart, []


@torch.no_grad()
def _rows(captured: Captured, layout: Layout) -> dict[str, Float[Tensor, "n p"]]:
    layers = captured.layers
    blocks = {name: block for name, block in layout.blocks.items() if any(m.name in layers for m, _ in block.members)}
    return {
        name: as_captured(block, block_io(block, layers), 1.0, torch.float64).to_dense().T.cpu()
        for name, block in blocks.items()
    }


def _gradients_alone(model: nn.Module, layout: Layout, calls: _Calls, i: int, n: int) -> dict[str, Tensor] | None:
    """Return what a sample run alone adds to each block's gradient; None where outputs are not one a sample."""
    args, kwargs = _sliced(calls.inputs[0], i, n)
    outputs = [x for x in tree_leaves(model(*args, **kwargs)) if isinstance(x, Tensor) and x.requires_grad]
    reached = [k for k in calls.grads if k < len(outputs)]
    pairs = []
    for k in reached:
        grad = calls.grads[k]
        own = grad / n if grad.dim() == 0 else grad[i : i + 1]
        if own.shape != outputs[k].shape:
            return None
        pairs.append((outputs[k], own))
    parameters = [p for block in layout.blocks.values() for p in block.parameters]
    found = torch.autograd.grad([x for x, _ in pairs], parameters, [g for _, g in pairs], allow_unused=True)
    of = {id(p): _flat(g, p) for p, g in zip(parameters, found, strict=True)}
    return {name: torch.cat([of[id(p)] for p in block.parameters]) for name, block in layout.blocks.items()}


def _distance(rows: Float[Tensor, "n p"], alone: Float[Tensor, " p"], i: int) -> float:
    scale = max(float(alone.norm()), float(rows.norm()) * NEGLIGIBLE)
    return float((rows[i] - alone).norm()) / scale if scale > 0 else 0.0


def _sliced(value: Any, i: int, n: int) -> Any:
    """Return inputs with sample i of n in dimension 0."""
    if isinstance(value, Tensor):
        return value[i : i + 1] if value.dim() and value.shape[0] == n else value
    if isinstance(value, dict):
        return {key: _sliced(item, i, n) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_sliced(item, i, n) for item in value)
    return value
