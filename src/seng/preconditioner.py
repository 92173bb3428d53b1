"""The one place where the stages meet: captured layers -> factors -> solve states -> directions in ``.grad``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Block, lay_out, unwrap
from .capture import Capture, Captured
from .config import Options
from .curvature import Curvature, block_io, damping_at, refresh
from .diagnostics import Coverage, LayerStats, Use, coverage, layer_stats
from .distributed import STRATEGIES, automatic
from .errors import BatchError, OrderError, choose
from .factors import Factor
from .linalg import inverse_quadratic
from .planner import Size, choose_all, require_known
from .sketch import generator_for
from .solve import FactorisationError, coefficients
from .state import Held, Signature, read, write
from .types import Choice, Grads


@dataclass(frozen=True)
class Direction:
    """d = multiplier * (g + U z) of one block, not yet written."""

    block: Block
    factor: Factor
    z: Tensor
    multiplier: Tensor
    use: Use


class Preconditioner:
    """Turns ``.grad`` into the sample-space natural gradient, layer by layer.

    For a block with per-sample gradients in the columns of U [p, n], F = U U^T and g = ``.grad``:

        d = (F + lambda I)^-power g,   from n x n matrices alone.

    Call ``step()`` between ``backward()`` and the step of any optimizer.

    Args:
        model: Any module; DistributedDataParallel and torch.compile wrappers are looked through. Place it before
            compiling.
        call: What errors name as the call at fault.
        **options: See ``seng.config.Options``.

    Raises:
        OptionError: An option is unknown or out of range.
        ModelError: Nothing can be preconditioned.

    Cost: see ``seng.plan``. A refresh makes a Gram matrix a block and factorises it; a step between refreshes two
    products with U.
    Source: PAPER sections 1 to 3.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> pre = Preconditioner(model, damping=0.1)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> pre.step()
        True
    """

    def __init__(self, model: nn.Module, *, call: str = "Preconditioner()", **options: Any):
        self.options = Options.build(call, options)
        require_known(self.options, call)
        strategy = automatic() if self.options.distributed == "auto" else self.options.distributed
        self._strategy = choose(STRATEGIES, strategy, call=call, option="distributed")()
        self._layout = lay_out(unwrap(model, call), self.options, call)
        watched = [entry for block in self._layout.blocks.values() for entry, _ in block.members]
        self._capture = Capture(watched, self._grads_are_cleared)
        self._curvature: dict[str, Curvature] = {}
        self._choices: dict[str, Choice] = {}
        self._uses: dict[str, Use] = {}
        self._counters: Counter[str] = Counter()
        self._step = 0
        self._last_refresh = -1

    # -- the algorithm ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> bool:
        """Replace ``.grad`` by its preconditioned direction; refresh the curvature where that is due.

        Returns:
            False if the step was skipped because a gradient is not finite; nothing has changed then.

        Raises:
            OrderError: No backward pass has run since the gradients were cleared.
            OptionError: A schedule gave a value out of range.
            BatchError: The first batch has one sample, or layers disagree about the number of samples.
            CaptureError: A layer's input was overwritten in place before it could be used.
        """
        grads = self._gradients()
        self.options.require_schedules(self._step)
        captured = self._capture.collect()
        if not self._strategy.agree(_all_finite(self._all_grads())):
            return self.skip("a gradient is not finite")
        due = self._refresh_due() and self._can_refresh(captured)
        fresh = due and (self.options.curvature_batch == "current" or not self._curvature)
        if fresh:
            self._refresh(captured)
        directions = self._directions(grads, fresh)
        if not self._strategy.agree(_all_finite([d.z for d in directions])):
            return self.skip("a gradient is not finite")
        self._write(directions, grads)
        if due and not fresh:
            self._refresh(captured)
        self._step += 1
        self._capture.armed = self._refresh_due()
        return True

    def _directions(self, grads: dict[str, Grads], fresh: bool) -> list[Direction]:
        directions = []
        for name, curvature in self._curvature.items():
            if name not in grads or not bool(curvature.mean > 0):
                continue
            block, factor, power = self._layout.blocks[name], curvature.factor, self.options.power
            damping = damping_at(self.options, self._step, curvature.mean)
            inner = curvature.damping if factor.frozen_damping else damping
            y = self._projection(name, curvature, grads[name], fresh)
            z = coefficients(curvature.state, y, inner, power)
            square = sum((torch.dot(x.view(-1), x.view(-1)) for x in grads[name]), y.new_zeros(()))
            multiplier = damping**-power if self.options.natural else torch.ones_like(damping)
            if self.options.trust is not None:
                multiplier = multiplier * self._trust(curvature, square, y, z, damping)
            directions.append(Direction(block, factor, z, multiplier, Use(square, y, z, curvature.state)))
        return directions

    def _projection(self, name: str, curvature: Curvature, grads: Grads, fresh: bool) -> Tensor:
        """Return U^T g; from K alone where g is the mean of the very samples in U."""
        factor = curvature.factor
        if fresh:
            alpha = factor.mean_multiple(grads, generator_for(self.options.seed, self._step, name))
            if alpha is not None:
                return curvature.state.matvec(grads[0].new_ones(factor.n)) * (alpha / factor.n**0.5)
        return factor.mv(grads)

    def _trust(self, curvature: Curvature, square: Tensor, y: Tensor, z: Tensor, damping: Tensor) -> Tensor:
        z_one = z if self.options.power == 1.0 else coefficients(curvature.state, y, damping, 1.0)
        q = inverse_quadratic(square, y, z_one, damping).sqrt()
        if self.options.loss_reduction == "sum":
            q = q / curvature.samples
        assert self.options.trust is not None
        return (self.options.trust / q.clamp(min=torch.finfo(q.dtype).tiny)).clamp(max=1.0)

    def _write(self, directions: list[Direction], grads: dict[str, Grads]) -> None:
        multipliers = torch.stack([d.multiplier.double().cpu() for d in directions]).tolist() if directions else []
        done = set()
        for direction, k in zip(directions, multipliers, strict=True):
            block = direction.block
            working = grads[block.name]
            direction.factor.add_rmv_(working, direction.z * k, beta=k)
            for parameter, x in zip(block.parameters, working, strict=True):
                if parameter.grad is not None and parameter.grad.data_ptr() != x.data_ptr():
                    parameter.grad.copy_(x.view_as(parameter.grad))
            self._uses[block.name] = direction.use
            done.add(block.name)
        self._pass_through(done)
        self._strategy.share_updates(self._all_grads())

    def _pass_through(self, done: set[str]) -> None:
        """Scale what no curvature reaches, so that it moves at the pace of the rest."""
        if not done or not self.options.natural:
            return
        dampings = [damping_at(self.options, self._step, self._curvature[name].mean) for name in sorted(done)]
        mean = torch.stack([d.double().cpu() for d in dampings]).mean().item()
        pace = 1 / (1 + mean) if self.options.estimator == "paper-code" else mean**-self.options.power
        rest = list(self._layout.passing.values())
        rest += [p for name, block in self._layout.blocks.items() if name not in done for p in block.parameters]
        for parameter in rest:
            if parameter.grad is not None:
                parameter.grad.mul_(pace)

    # -- refreshes ----------------------------------------------------------------------------------------------

    def _refresh_due(self) -> bool:
        return self._last_refresh < 0 or self._step - self._last_refresh >= self.options.interval_at(self._step)

    def _can_refresh(self, captured: Captured) -> bool:
        rows = captured.samples
        if self.options.positions == "expand":
            rows *= max((io.positions for io in captured.layers.values()), default=1)
        if rows >= 2:
            return True
        if rows == 0 and not self._curvature:
            raise OrderError(
                "step()", "no layer was captured", expected="a forward and backward pass in training mode since the "
                "hooks were placed", got="none", fix="Create the optimizer before the forward pass",
            )  # fmt: skip
        if not self._curvature:
            raise BatchError(
                "step()", "the first batch is too small for curvature", expected="at least 2 samples", got=rows,
                fix="Use a larger batch, or accumulate gradients over several",
            )  # fmt: skip
        self._count("small_batches", "a refresh was put off: the batch had fewer than 2 samples")
        return False

    def _refresh(self, captured: Captured) -> None:
        parts = {
            name: block_io(block, captured.layers)
            for name, block in self._layout.blocks.items()
            if any(entry.name in captured.layers for entry, _ in block.members)
        }
        self._warn_unused(parts)
        sizes = {name: Size.of(ios[0][0], self._itemsize(name)) for name, ios in parts.items()}
        self._choices = choose_all(sizes, self.options, self.options.interval_at(self._step), "step()")
        for name in sorted(parts, key=list(self._layout.blocks).index):
            old = self._curvature.get(name)
            ios = parts.pop(name)
            try:
                self._curvature[name], failed = refresh(
                    self._layout.blocks[name], ios, self._choices[name], captured.samples, self.options, self._step, old
                )
            except FactorisationError:
                self._count("failed_refreshes", f"the curvature of layer {name} could not be factorised and is kept")
                continue
            self._counters["ladder_rungs"] += failed
        self._last_refresh = self._step

    def _itemsize(self, name: str) -> int:
        return self._layout.blocks[name].compute_dtype.itemsize

    def _warn_unused(self, used: Iterable[str]) -> None:
        unused = sorted(set(self._layout.blocks) - set(used) - set(self._curvature))
        if unused:
            self._count("unused", f"the batch did not use these layers, they pass through: {', '.join(unused)}")

    # -- gradients ----------------------------------------------------------------------------------------------

    def _gradients(self) -> dict[str, Grads]:
        """Return each block's gradients as contiguous tensors of its compute dtype, without copies where possible."""
        if not self._all_grads():
            raise OrderError(
                "step()", "no gradients", expected=".grad on the model's parameters", got=None,
                fix="Call loss.backward() before step()",
            )  # fmt: skip
        grads = {}
        for name, block in self._layout.blocks.items():
            found = [p.grad for p in block.parameters]
            if all(g is None for g in found):
                continue
            grads[name] = tuple(
                (torch.zeros_like(p) if p.grad is None else p.grad).to(block.compute_dtype).contiguous()
                for p in block.parameters
            )
        return grads

    def _all_grads(self) -> list[Tensor]:
        parameters = [p for block in self._layout.blocks.values() for p in block.parameters]
        return [p.grad for p in (*parameters, *self._layout.passing.values()) if p.grad is not None]

    def _grads_are_cleared(self) -> bool:
        """Return whether ``.grad`` was cleared, to None or to zeros, since something was captured.

        Blocks alone are asked: what passes through may have its gradient before backward reaches the first layer.
        """
        grads = [p.grad for block in self._layout.blocks.values() for p in block.parameters if p.grad is not None]
        return not grads or (not any(bool(grad.any()) for grad in grads) and self._capture.has_gradients())

    def _count(self, event: str, message: str) -> None:
        self._counters[event] += 1
        if self._counters[event] == 1:
            warnings.warn(f"seng: {message}. Counted in stats(); this is said once", stacklevel=3)

    # -- reports ------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> dict[str, int]:
        """Skipped steps, failed refreshes, rungs of the factorisation ladder, and other events, by name."""
        return dict(self._counters)

    @property
    def steps(self) -> int:
        """Number of completed steps."""
        return self._step

    def stats(self) -> dict[str, LayerStats]:
        """Return the state of every block that has curvature, by name. Cost: eigenvalues where none are held."""
        skipped = self._counters["skipped_steps"]
        return {
            name: layer_stats(curvature, self._uses.get(name), self.options, self._step, skipped)
            for name, curvature in self._curvature.items()
        }

    def coverage(self) -> Coverage:
        """Return which parameters are preconditioned, how, and which pass through and why."""
        return coverage(self._layout, self._choices, set(self._curvature))

    def skip(self, reason: str) -> bool:
        """Count a step that was not taken, and forget its captured batch. Returns False."""
        self._capture.clear()
        self._count("skipped_steps", f"a step was skipped: {reason}")
        return False

    def discard_captured(self) -> None:
        """Forget the backward passes since the last step, as ``zero_grad`` should."""
        self._capture.clear()

    def close(self) -> None:
        """Remove the hooks; the model is as it was."""
        self._capture.close()

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return counters and curvature: tensors and plain values only, keyed by qualified names."""
        held = Held(self._step, self._last_refresh, self.options.seed, dict(self._counters), self._curvature)
        return write(held, self._signature())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, so that training continues bit for bit.

        Raises:
            StateError: The state is truncated, foreign, of another version or another model; nothing has changed then.
        """
        held = read(state, self._signature(), self._layout.blocks)
        self.options = self.options.with_(seed=held.seed)
        self._step, self._last_refresh = held.step, held.last_refresh
        self._counters, self._curvature, self._uses = Counter(held.counters), held.curvature, {}
        self._capture.clear()
        self._capture.armed = self._refresh_due()

    def _signature(self) -> Signature:
        names = {
            name: dict(zip(block.parameter_names, block.parameters, strict=True))
            for name, block in self._layout.blocks.items()
        }
        names["passing through"] = self._layout.passing
        return {name: {key: list(p.shape) for key, p in own.items()} for name, own in names.items()}


def _all_finite(tensors: list[Tensor]) -> Tensor:
    """Return a 0-d bool: no tensor holds NaN or inf."""
    if not tensors:
        return torch.tensor(True)
    dense = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    norms = [torch.linalg.vector_norm(t, 1, dtype=torch.promote_types(t.dtype, torch.float32)) for t in dense]
    return torch.stack([norm.to(norms[0]) for norm in norms]).sum().isfinite()
