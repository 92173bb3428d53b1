"""The one place where the stages meet: captured layers -> factors -> solve states -> directions in ``.grad``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Block, lay_out, reweightable, unwrap
from .capture import Capture, Captured
from .config import Options
from .curvature import BlockParts, Curvature, as_captured, block_io, damping_at, refresh
from .diagnostics import Coverage, LayerStats, Use, coverage, layer_stats
from .distributed import strategy_for
from .errors import BatchError, OrderError
from .factors import Factor, Kronecker
from .linalg import inverse_quadratic
from .planner import Size, choose_all, require_known
from .sketch import generator_for
from .solve import FactorisationError, coefficients
from .state import Held, Signature, read, write
from .types import Choice, Grads, Product


class Preconditioner:
    """Turns ``.grad`` into the sample-space natural gradient, layer by layer.

    For a block with per-sample gradients in the columns of U [p, n], F = U U^T and g = ``.grad``:

        d = (F + lambda I)^-power g,   from n x n matrices alone.

    Call ``step()`` between ``backward()`` and the step of any optimizer. To time refreshes set ``span``: it is called
    with "refresh" for a context around each block's, as ``torch.profiler.record_function`` can be.

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
        self._strategy = strategy_for(self.options.distributed, call)
        self._layout = lay_out(unwrap(model, call), self.options, call)
        self._warn_unsupported()
        watched = [entry for block in self._layout.blocks.values() for entry, _ in block.members]
        self._reweighted = reweightable(self._layout) if self.options.reweight else frozenset()
        self._capture = Capture(watched, self._grads_are_cleared, withheld=self._reweighted)
        self._curvature: dict[str, Curvature] = {}
        self._choices: dict[str, Choice] = {}
        self._planned_for: tuple[dict[str, Size], int] | None = None
        self._uses: dict[str, Use] = {}
        self._counters: Counter[str] = Counter()
        self._step = 0
        self._last_refresh = -1
        self.span: Callable[[str], AbstractContextManager[Any]] = nullcontext

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
        self._restore_gradients(grads, captured)
        squares = {name: sum(map(_square, own), own[0].new_zeros(())) for name, own in grads.items()}
        if not self._strategy.agree(_all_finite([*squares.values(), *self._loose_squares(captured)])):
            return self.skip("a gradient is not finite")
        due = self._refresh_due() and self._can_refresh(captured)
        fresh = due and (self.options.curvature_batch == "current" or not self._curvature)
        parts = self._plan_refresh(captured) if due else {}
        done = []
        for name, block in self._layout.blocks.items():
            if fresh and name in parts:
                self._refresh(block, parts.pop(name), captured.samples)
            if name in grads:
                written = self._precondition(block, grads.pop(name), squares[name], fresh)
            else:
                written = name in self._reweighted and self._reweight(block)
            done += [name] if written else []
            if due and name in parts:
                self._refresh(block, parts.pop(name), captured.samples)
        self._pass_through(done)
        self._strategy.share_updates(self._all_grads())
        self._last_refresh = self._step if due else self._last_refresh
        self._step += 1
        self._capture.armed = self._refresh_due()
        return True

    def _precondition(self, block: Block, grads: Grads, square: Tensor, fresh: bool) -> bool:
        """Write multiplier * (g + U z) into the block's gradients; False where no curvature reaches it."""
        curvature = self._curvature.get(block.name)
        if curvature is None or curvature.factor is None:
            return False
        factor = curvature.factor
        y, own = self._projection(block.name, curvature, factor, grads, fresh)
        z, multiplier = self._direction(block.name, curvature, square, y, own)
        if multiplier.is_cuda:  # reading its value would wait for the device
            for x in grads:
                x.mul_(multiplier)
        factor.add_rmv_(grads, z * multiplier, beta=1.0 if multiplier.is_cuda else float(multiplier))
        for parameter, x in zip(block.parameters, grads, strict=True):
            if parameter.grad is not None and parameter.grad.data_ptr() != x.data_ptr():
                parameter.grad.copy_(x.view_as(parameter.grad))
        return True

    def _reweight(self, block: Block) -> bool:
        """Make the block's gradients multiplier * U (w + z), g = U w with equal weights w of all samples in U."""
        curvature = self._curvature.get(block.name)
        if curvature is None or not isinstance(curvature.factor, Kronecker) or curvature.row_sums is None:
            return False
        weight = 1 / curvature.factor.scale  # columns of U are the captured gradients times the scale
        y, square = curvature.row_sums * weight, curvature.row_sums.sum() * weight**2
        z, multiplier = self._direction(block.name, curvature, square, y, own=True)
        grads = tuple(torch.empty(p.shape, dtype=z.dtype, device=p.device) for p in block.parameters)
        curvature.factor.add_rmv_(grads, (z + weight) * multiplier, beta=0.0)
        for parameter, x in zip(block.parameters, grads, strict=True):
            parameter.grad = x.to(parameter.dtype)
        return True

    def _direction(
        self, name: str, curvature: Curvature, square: Tensor, y: Tensor, own: bool
    ) -> tuple[Tensor, Tensor]:
        """Return z and the multiplier of the direction; a factor that will not serve again is let go."""
        options, factor = self.options, curvature.factor
        damping = damping_at(options, self._step, curvature.mean)
        frozen = factor is not None and factor.frozen_damping
        z = coefficients(curvature.state, y, curvature.damping if frozen else damping, options.power)
        multiplier = damping**-options.power if options.natural else torch.ones_like(damping)
        if options.trust is not None and not (own and options.trust >= 1):
            multiplier = multiplier * self._trust(options.trust, curvature, square, y, z, damping)
        self._uses[name] = Use(square, y, z, curvature.state)
        if options.serves_once(self._step):
            self._curvature[name] = replace(curvature, factor=None)
        return z, multiplier

    def _projection(
        self, name: str, curvature: Curvature, factor: Factor, grads: Grads, fresh: bool
    ) -> tuple[Tensor, bool]:
        """Return U^T g, from K alone where g is the mean of the very samples in U; and whether that was seen."""
        if fresh and curvature.row_sums is not None:
            alpha = factor.mean_multiple(grads, generator_for(self.options.seed, self._step, name))
            if alpha is not None:
                return curvature.row_sums * (alpha / factor.n**0.5), bool(alpha <= 1)
        return factor.mv(grads), False

    def _trust(
        self, trust: float, curvature: Curvature, square: Tensor, y: Tensor, z: Tensor, damping: Tensor
    ) -> Tensor:
        z_one = z if self.options.power == 1.0 else coefficients(curvature.state, y, damping, 1.0)
        q = inverse_quadratic(square, y, z_one, damping).sqrt()
        if self.options.loss_reduction == "sum":
            q = q / curvature.samples
        return (trust / q.clamp(min=torch.finfo(q.dtype).tiny)).clamp(max=1.0)

    def _pass_through(self, done: list[str]) -> None:
        """Scale what no curvature reaches, so that it moves at the pace of the rest."""
        if not self._curvature or not self.options.natural:
            return
        means = [curvature.mean for curvature in self._curvature.values()]
        dampings = damping_at(self.options, self._step, torch.stack([m.to(means[0]) for m in means]).double())
        mean = dampings[dampings > 0].mean().item()
        if not mean > 0:  # all gradients were zero
            return
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
        used_up = bool(self._curvature) and self.options.serves_once(self._step)  # nothing held could serve instead
        if rows >= (1 if used_up or self._reweighted else 2):
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

    def _plan_refresh(self, captured: Captured) -> dict[str, BlockParts]:
        """Return what each block captured, for ``_refresh`` to consume, and choose how it will be kept."""
        parts = {
            name: block_io(block, captured.layers)
            for name, block in self._layout.blocks.items()
            if any(entry.name in captured.layers for entry, _ in block.members)
        }
        captured.layers.clear()  # so that a layer's tensors die with its refresh
        self._warn_unused(parts)
        sizes = {
            name: Size.of_block([io for io, _ in ios], self.options, self._layout.blocks[name].compute_dtype.itemsize)
            for name, ios in parts.items()
        }
        interval = self.options.interval_at(self._step)
        if self._planned_for != (sizes, interval):
            self._choices = choose_all(sizes, self.options, interval, "step()", self._reweighted)
            self._planned_for = (sizes, interval)
        return parts

    def _refresh(self, block: Block, parts: BlockParts, samples: int) -> None:
        old, name = self._curvature.get(block.name), block.name
        try:
            with self.span("refresh"):
                self._curvature[name], failed = refresh(
                    block, parts, self._choices[name], samples, self.options, self._step, old
                )
            if failed:
                self._counters["ladder_rungs"] += failed
        except FactorisationError:
            self._count("failed_refreshes", f"the curvature of layer {name} could not be factorised and is kept")

    def _warn_unsupported(self) -> None:
        chosen = ("excluded", "not included")
        lost = [f"{name} ({why})" for name, why in self._layout.passed.items() if why not in chosen]
        if lost:
            warnings.warn(f"seng: these parameters keep their plain gradient: {', '.join(lost)}", stacklevel=4)

    def _warn_unused(self, used: Iterable[str]) -> None:
        unused = sorted(set(self._layout.blocks) - set(used) - set(self._curvature))
        if unused:
            self._count("unused", f"the batch did not use these layers, they pass through: {', '.join(unused)}")

    # -- gradients ----------------------------------------------------------------------------------------------

    def _gradients(self) -> dict[str, Grads]:
        """Return each block's gradients as contiguous tensors of its compute dtype, without copies where possible."""
        if not self._all_grads() and not (self._reweighted and self._capture.holds_records):
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

    def _restore_gradients(self, grads: dict[str, Grads], captured: Captured) -> None:
        """Add the captured gradient where a withheld one is only part of it: the weight was used elsewhere, too."""
        for name in self._reweighted & grads.keys() & captured.layers.keys():
            block, io = self._layout.blocks[name], captured.layers[name]
            factor = as_captured(block, block_io(block, captured.layers), 1.0, block.compute_dtype)
            factor.add_rmv_(grads[name], grads[name][0].new_ones(io.n))
            for parameter, x in zip(block.parameters, grads[name], strict=True):
                parameter.grad = x.view_as(parameter).to(parameter.dtype)

    def _loose_squares(self, captured: Captured) -> list[Tensor]:
        """Return the squares of gradients outside ``grads``: passing through, or still to be summed."""
        passing = [p.grad for p in self._layout.passing.values() if p.grad is not None]
        withheld = [captured.layers[name] for name in sorted(self._reweighted & captured.layers.keys())]
        return [_square(x) for x in (*passing, *(io.g for io in withheld if isinstance(io, Product)))]

    def _grads_are_cleared(self) -> bool:
        """Return whether ``.grad`` was cleared, to None or to zeros, since something was captured.

        Blocks alone are asked: what passes through may have its gradient before backward reaches the first layer.
        """
        if self._reweighted:  # backward leaves no trace of itself in .grad; zero_grad() and step() void records
            return False
        grads = [p.grad for block in self._layout.blocks.values() for p in block.parameters if p.grad is not None]
        return not grads or (not any(bool(grad.any()) for grad in grads) and self._capture.has_gradients())

    def _count(self, event: str, message: str) -> None:
        self._counters[event] += 1
        if self._counters[event] == 1:
            warnings.warn(f"seng: {message}. Counted in `counters`; this is said once", stacklevel=3)

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


def _square(x: Tensor) -> Tensor:
    """Return x.x, at least in float32; NaN or inf where x holds one."""
    values = x.coalesce().values() if x.is_sparse else x
    values = torch.view_as_real(values) if values.is_complex() else values
    flat = values.reshape(-1).to(torch.promote_types(values.dtype, torch.float32))
    return torch.dot(flat, flat)


def _all_finite(values: list[Tensor]) -> Tensor:
    """Return a 0-d bool: none of the 0-d tensors is NaN or inf."""
    return torch.stack([value.to(values[0]) for value in values]).sum().isfinite()
