"""The one place where the stages meet: captured layers -> factors -> solve states -> directions in ``.grad``."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Block, Layout, lay_out, reweightable
from .capture import Capture
from .config import Options
from .curvature import Curvature, as_captured, block_io, converted
from .diagnostics import Coverage, LayerStats, Use, coverage, layer_stats
from .direction import MeanProjection, Seen, direction, is_sketched, project, shortening
from .distributed import Batch, Plan, Strategy, Updates, strategy_so_far
from .errors import OrderError, RankError
from .events import Events, listed
from .factors import Kronecker
from .gradients import (
    all_finite,
    block_gradients,
    cuts,
    densify,
    passing,
    present,
    square,
    squared,
    targets,
    whole_gradients,
    write_back,
)
from .hooks import recorders
from .planner import require_known
from .refreshing import Facts, NoRefresh, Reach, Refreshes, Sharing, ThinCorrections, bounds_passing, go_on
from .samples import Samples, Taken
from .state import Held, read, write
from .types import Grads, LayerIO, Product
from .wrappers import unwrap


@dataclass
class Ready:
    """What a step works on: gradients, their squares, what the hooks captured for a refresh, and what is solved.

    ``passing`` holds the squares of the gradients that no block holds.
    """

    grads: dict[str, Grads]
    squares: dict[str, Tensor]
    taken: Taken
    passing: list[Tensor] = field(default_factory=list)
    solved: dict[str, tuple[Use, Tensor]] = field(default_factory=dict)


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
        chosen = Options.build(call, options)
        require_known(chosen, call)
        self._model = unwrap(model, call)
        self._events = Events()
        layout = lay_out(self._model, chosen, call)
        strategy = strategy_so_far(chosen.distributed, call, chosen.wire_dtype, layout.cut_among)
        self._warn_unsupported(layout)
        self._reweighted = reweightable(layout) if chosen.reweight else frozenset()
        self._capture = Capture(layout.watched, self._reweighted, self._model, _witnesses(layout, self._reweighted))
        weakref.finalize(self, self._capture.close)
        self._use(layout, chosen, strategy)
        self._uses: dict[str, Use] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._step = 0
        self._last_refresh = -1

    def _use(self, layout: Layout, options: Options, strategy: Strategy) -> None:
        """Work with these blocks from now on."""
        self._layout = layout
        self._sharing = Sharing(layout, options, strategy, self._reweighted)
        self._reach = Reach(list(layout.blocks))
        self._thin = ThinCorrections(layout)
        self._samples = Samples(layout, self._capture, self._events, self._reweighted)
        self._refreshes = Refreshes(layout, self._sharing, self._reach, self._thin, self._events.count)
        self._facts = Facts(options, layout.signature())

    def _follow_model(self, call: str) -> None:
        """Take up modules and parameters that were added, replaced, frozen or released since.

        Raises:
            ModelError, OptionError: Nothing is left to precondition, or a selector matches no module any more.
            OrderError: ``fully_shard`` has replaced the parameters.
        """
        self._layout.require_current(call)
        if self._layout.sharded or self._layout.describes(self._model):  # fully_shard swaps parameters all the time
            return
        layout, old, curvature = lay_out(self._model, self.options, call), self._layout, self._curvature
        kept = {name for name, block in layout.blocks.items() if block.same_as(old.blocks.get(name))}
        kept &= curvature.keys() if self.strategy.world == 1 else set()
        span = self.span
        self._capture.watch(layout.watched)
        self._use(layout, self.options, self._sharing.asked)
        self.span = span
        for name in kept:
            self._refreshes.curvature[name] = curvature[name]
            self._reach.note(name, curvature[name])
        if self.strategy.world == 1:
            self._reach.share(self.strategy)
        if kept != set(layout.blocks):
            self._last_refresh, self._capture.armed = -1, True  # what is new gets curvature once its samples are there

    def _follow_dtype(self) -> None:
        """Convert held curvature where the model was moved to another dtype."""
        before, self._dtypes = self._dtypes, {name: b.compute_dtype for name, b in self._layout.blocks.items()}
        for name in self._curvature.keys() & self._dtypes.keys():
            dtype = self._dtypes[name]
            if before.get(name, dtype) != dtype:
                self._curvature[name] = converted(self._curvature[name], dtype)

    @property
    def span(self) -> Callable[[str], AbstractContextManager[Any]]:
        """Called with "refresh" for a context around each block's."""
        return self._refreshes.span

    @span.setter
    def span(self, span: Callable[[str], AbstractContextManager[Any]]) -> None:
        self._refreshes.span = span

    @property
    def options(self) -> Options:
        """The options in force."""
        return self._sharing.options

    @options.setter
    def options(self, options: Options) -> None:
        self._sharing.options = options

    @property
    def _curvature(self) -> dict[str, Curvature]:
        return self._refreshes.curvature

    @property
    def layout(self) -> Layout:
        """The model as it was last looked at; another object once it has changed."""
        return self._layout

    @property
    def blocks(self) -> dict[str, Block]:
        """What is preconditioned together, by name."""
        return self._layout.blocks

    @property
    def strategy(self) -> Strategy:
        """What ranks do together."""
        return self._sharing.strategy

    @property
    def offered(self) -> Sequence[Strategy]:
        """The strategies that the option leaves to choose from."""
        return self._sharing.offered

    # -- the algorithm ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, spoiled: str | None = None) -> bool:
        """Replace ``.grad`` by its preconditioned direction; refresh the curvature where that is due.

        Args:
            spoiled: Why this step must be skipped, where that is known; all ranks then skip it.

        Returns:
            False if the step was skipped because a gradient is not finite; nothing has changed then.

        Raises:
            OrderError: No backward pass has run since the gradients were cleared.
            OptionError: A schedule gave a value out of range.
            BatchError: The first batch has one sample.
            CaptureError: A layer's input was overwritten in place before it could be used.
            RankError: Another rank raised an error, is gone, or has other options.
        """
        self.join_ranks("step()")
        ready, agreed = self.strategy.together(partial(self._prepare, spoiled))
        if self._reach.known and not self._refresh_due():  # meanwhile the ranks agree
            self._solve_ahead(ready)
        if not agreed():
            return self.skip(spoiled or "a gradient is not finite")
        if not self._reach.known and not self._go_on(ready.taken.samples):
            return self.skip("curvature is made anew, and the batch was not captured for it")
        due = self._refresh_due()
        refresh = self._begin_refresh(ready) if due else NoRefresh()
        if refresh.fresh:
            refresh.shared()
            refresh.at_once()
        travelling = {name: own for name, own in present(self._layout).items() if name not in self._thin}
        updates, done = self.strategy.updates(travelling, cuts(self._layout)), set()
        for name, block in self._layout.blocks.items():
            if refresh.fresh:
                refresh.block(name)
            if name in ready.grads:
                written = self._precondition(block, ready, updates, refresh.fresh)
            else:
                written = name in self._reweighted and self._reweight(block)
            done |= {name} if written else set()
            updates.ready(name, written)
            refresh.block(name)
        if refresh.fresh:
            refresh.finish()
        self._share(updates, ready, done)
        if not refresh.fresh:
            refresh.finish()
        self._last_refresh = self._step if refresh.taken else self._last_refresh
        self._step += 1
        self._capture.armed = self._refresh_due()
        return True

    def _begin_refresh(self, ready: Ready) -> NoRefresh:
        """Leave out samples that do not add up to the gradients, and agree with the other ranks on the rest."""
        taken = ready.taken
        for name in self._samples.settle(taken, self.strategy, self.options):
            self._curvature.pop(name, None)
            self._reach.forget(name)
        idle = taken.samples == 0 and not any(bool(square) for square in ready.squares.values())
        return self._refreshes.begin(taken.members, taken.samples, self._step, self._samples.refused, idle)

    def join_ranks(self, call: str) -> None:
        """Take up the ranks that there are now; the step after it agrees with them on what is held.

        Raises:
            OptionError: The strategy needs ranks, and there are none.
        """
        if self._sharing.settle(call):
            self._reach.known = self._last_refresh < 0 and self._reach.known
        self.strategy.device = next(iter(self._layout.blocks.values())).parameters[0].device

    def meet(self, call: str, **facts: object) -> None:
        """Make sure that all ranks are at this call, and agree on what is held. A collective call.

        Raises:
            RankError: Another rank is gone, or at another call or step, or has other facts.
        """
        self.join_ranks(call)
        told = {"call": call, "step": self._step, "state_loaded": not self._reach.known, **facts}
        batch = Batch(torch.tensor(True), lambda: {name: str(value) for name, value in told.items()})
        if not self.strategy.together(lambda: (None, batch))[1]():
            raise RankError(
                call, "another rank is at a step", expected="this call on every rank", got="a step that is not finite",
                fix="Let all ranks take every step together",
            )  # fmt: skip
        if not self._reach.known:
            self._go_on(0)

    def _go_on(self, samples: int) -> bool:
        """Go on with the curvature held where all ranks can, else have it made anew: False if that has to wait."""
        kept, captured = go_on(self._refreshes, self._last_refresh, samples if self._capture.armed else -1)
        self._reach.share(self.strategy)
        if not kept:
            if self._step:
                self._events.count("remade_curvature", "the curvature held is not that of these ranks: it is made anew")
            self._last_refresh, self._capture.armed = -1, True
        return kept or captured

    def _share(self, updates: Updates, ready: Ready, done: set[str]) -> None:
        """Combine the ranks' directions, and scale what no curvature of any rank reaches."""
        holders = self._reach.holders()
        updates.finish(holders)
        self._thin.finish(ready.grads, holders, self.strategy)
        if self.strategy.world > 1:
            done = {name for name, count in holders.items() if count}
        self._pass_through(ready, done)
        self._reach.spent = self.options.serves_once(self._step)

    def _solve_ahead(self, ready: Ready) -> None:
        """Solve with curvature that stays, and write nothing yet."""
        for name, grads in ready.grads.items():
            curvature = self._curvature.get(name)
            if curvature is not None and curvature.factor is not None and not self._layout.blocks[name].cuts:
                seen = project(curvature, curvature.factor, grads, ready.squares[name], None)
                ready.solved[name] = self._solve(curvature, seen)

    def _precondition(self, block: Block, ready: Ready, updates: Updates, fresh: bool) -> bool:
        """Write multiplier * (g + U z) into the block's gradients; False where no curvature reaches it."""
        name, curvature = block.name, self._curvature.get(block.name)
        grads = ready.grads[name] if name in self._thin else ready.grads.pop(name)
        taken = updates.take(name) if block.cuts else ()
        if curvature is None or curvature.factor is None:
            return False
        factor, held = curvature.factor, targets(block)
        if block.cuts:
            held, grads = whole_gradients(block, taken)
            ready.squares[name] = squared(grads)
        if name not in ready.solved:
            draw = (self.options.seed, self._step, name) if fresh else None
            seen = project(curvature, factor, grads, ready.squares[name], draw)
            ready.solved[name] = self._solve(curvature, seen)
        z, multiplier = self._take_note(name, curvature, *ready.solved.pop(name))
        sketched = self.options.trust is not None and is_sketched(curvature)
        if name in self._thin:
            if sketched:
                multiplier = self._form(curvature, tuple(x.clone() for x in grads), z, multiplier)
            self._thin.say(name, z, multiplier)
            return True
        if sketched:
            multiplier = self._form(curvature, grads, z, multiplier)
        if sketched or multiplier.is_cuda:  # reading its value would wait for the device
            for x in grads:
                x.mul_(multiplier)
        if not sketched:
            factor.add_rmv_(grads, z * multiplier, beta=1.0 if multiplier.is_cuda else float(multiplier))
        write_back(held, grads)
        return True

    def _form(self, curvature: Curvature, grads: Grads, z: Tensor, multiplier: Tensor) -> Tensor:
        """Leave g + U z in ``grads``; return the multiplier within the trust cap."""
        assert curvature.factor is not None
        curvature.factor.add_rmv_(grads, z)
        return multiplier * shortening(curvature, grads, self.options, self._step, self._pooled_ranks)

    def _reweight(self, block: Block) -> bool:
        """Make the block's gradients multiplier * U (w + z), g = U w with equal weights w of all samples in U."""
        curvature = self._curvature.get(block.name)
        if curvature is not None and curvature.factor is None and curvature.step == self._step:
            for parameter in block.parameters:  # all captured gradients were zero or next to it
                parameter.grad = torch.zeros_like(parameter)
            return True
        if curvature is None or not isinstance(curvature.factor, Kronecker) or curvature.row_sums is None:
            return False
        weight = 1 / curvature.factor.scale  # columns of U are the captured gradients times the scale
        solved = self._solve(curvature, MeanProjection(curvature.row_sums, weight))
        z, multiplier = self._take_note(block.name, curvature, *solved)
        grads = tuple(torch.empty(p.shape, dtype=z.dtype, device=p.device) for p in block.parameters)
        curvature.factor.add_rmv_(grads, (z + weight) * multiplier, beta=0.0)
        for parameter, x in zip(block.parameters, grads, strict=True):
            parameter.grad = x.to(parameter.dtype)
        return True

    def _solve(self, curvature: Curvature, seen: Seen) -> tuple[Use, Tensor]:
        """Return the coefficients of U and the multiplier of the direction."""
        z, multiplier = direction(curvature, seen, self.options, self._step, self._pooled_ranks)
        return Use(seen, z, curvature.state), multiplier

    @property
    def _pooled_ranks(self) -> int:
        return self.strategy.world if self.strategy.pooled else 1

    def _take_note(self, name: str, curvature: Curvature, use: Use, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        """Take note of what is used; a factor that will not serve again is let go."""
        self._uses[name] = use
        if self.options.serves_once(self._step):
            self._curvature[name] = replace(curvature, factor=None, row_solution=None)
        return use.z, multiplier

    def _pass_through(self, ready: Ready, done: set[str]) -> None:
        """Scale what no curvature reaches, as one block: to the pace of the rest, and within the trust cap."""
        rest = {name: own for name, own in present(self._layout).items() if name not in done}
        unreached = [*passing(self._layout), *(g for own in rest.values() for g in own)]
        if not unreached or not self.options.natural:
            return
        squares = [*ready.passing, *(ready.squares[name] for name in rest)]
        total = torch.stack([value.to(squares[0]) for value in squares]).sum()
        if self._layout.cut_among > 1 and bounds_passing(self.options):
            total = self.strategy.tables(total.double()[None], "squares").sum()
        pace = self._reach.pace(self.options, self._step, total.sqrt())
        if pace is not None and (pace.is_cuda or pace != 1):  # None: all gradients were zero
            for gradient in unreached:
                gradient.mul_(pace.to(gradient.device) if pace.is_cuda else float(pace))

    # -- what a step works on -----------------------------------------------------------------------------------

    def _refresh_due(self) -> bool:
        return self._last_refresh < 0 or self._step - self._last_refresh >= self.options.interval_at(self._step)

    def _prepare(self, spoiled: str | None) -> tuple[Ready, Batch]:
        """Return what this rank brings to a step; all that can fail on one rank alone fails here."""
        if spoiled is not None:
            return Ready({}, {}, Taken()), Batch(torch.tensor(False), dict)
        self.options.require_schedules(self._step)
        due = self._capture.armed or self._refresh_due()
        if due:
            self._follow_model("step()")
        self._follow_dtype()
        grads = self._gradients()
        taken = self._samples.take(grads, due, self.options, self._step, self.strategy)
        self._restore_gradients(grads, taken.layers)
        squares = {name: squared(own) for name, own in grads.items()}
        through = [square(x) for x in passing(self._layout)]
        good = all_finite([*squares.values(), *through, *self._withheld_squares(taken.layers)])
        taken.layers.clear()  # a block's samples die with its refresh
        return Ready(grads, squares, taken, through), Batch(good, self._told)

    def _told(self) -> dict[str, str]:
        """Return what must be alike on all ranks."""
        position = {"gradients": len(present(self._layout)), "state_loaded": not self._reach.known}
        return self._facts.at(self.options, self._step, **position)

    def _warn_unsupported(self, layout: Layout) -> None:
        chosen = ("excluded", "not included")
        lost = {name: why for name, why in layout.passed.items() if why not in chosen}
        if lost:
            text = f"these parameters keep their plain gradient: {listed(lost)}. See coverage()"
            warnings.warn(f"seng: {text}", stacklevel=4)
        if recorders(self._model):
            warnings.warn(
                "seng: another optimizer or preconditioner of seng is attached to this model, and steps of both would "
                "act on the same gradients: call close() on the earlier one, unless its name is given to this one",
                stacklevel=4,
            )  # fmt: skip

    # -- gradients ----------------------------------------------------------------------------------------------

    def _gradients(self) -> dict[str, Grads]:
        found = present(self._layout) or passing(self._layout)
        if not found and not (self._reweighted and self._capture.holds_records):
            self._layout.require_current("step()")
            raise OrderError(
                "step()", "no gradients", expected=".grad on the model's parameters", got=None,
                fix="Call loss.backward() before step()",
            )  # fmt: skip
        densify(self._layout)
        return block_gradients(self._layout)

    def _restore_gradients(self, grads: dict[str, Grads], layers: Mapping[str, LayerIO]) -> None:
        """Add the captured gradient where a withheld one is only part of it: the weight was used elsewhere, too."""
        for name in self._reweighted & grads.keys() & layers.keys():
            block, io = self._layout.blocks[name], layers[name]
            factor = as_captured(block, block_io(block, layers), 1.0, block.compute_dtype)
            factor.add_rmv_(grads[name], grads[name][0].new_ones(io.n))
            for parameter, x in zip(block.parameters, grads[name], strict=True):
                parameter.grad = x.view_as(parameter).to(parameter.dtype)

    def _withheld_squares(self, layers: Mapping[str, LayerIO]) -> list[Tensor]:
        """Return the squares of output gradients whose sums, the weight gradients, are still to be formed."""
        withheld = [layers[name] for name in sorted(self._reweighted & layers.keys())]
        return [square(io.g) for io in withheld if isinstance(io, Product)]

    # -- reports ------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> dict[str, int]:
        """Skipped steps, failed refreshes, rungs of the factorisation ladder, and other events, by name."""
        return dict(self._events.counts)

    @property
    def steps(self) -> int:
        """Number of completed steps."""
        return self._step

    @property
    def plan(self) -> Plan:
        """Who does what among the ranks, and what travels; known from the first refresh on."""
        return self.strategy.plan

    def stats(self) -> dict[str, LayerStats]:
        """Return the state of every block that has curvature, by name. Cost: eigenvalues where none are held."""
        skipped = self._events.counts["skipped_steps"]
        return {
            name: layer_stats(curvature, self._uses.get(name), self.options, self._step, skipped)
            for name, curvature in self._curvature.items()
        }

    def coverage(self) -> Coverage:
        """Return which parameters are preconditioned, how, and which pass through and why."""
        self._follow_model("coverage()")
        held = self._reach.held() if self._reach.known else set(self._curvature)
        return coverage(self._layout, self._sharing.choices, held, self._samples.refused)

    def mark(self) -> Callable[[], None]:
        """Return a function that takes counters and curvature back to what they are now."""
        holders = (self, self._refreshes, self._reach, self._thin, self._sharing, self._samples, self._events)
        held = [(vars(holder), {key: _kept(value) for key, value in vars(holder).items()}) for holder in holders]
        armed, plan = self._capture.armed, self.strategy.plan

        def go_back() -> None:
            for own, before in held:
                own.update(before)
            self._capture.armed, self.strategy.plan = armed, plan

        return go_back

    def idle(self) -> bool:
        """Return whether there is nothing to do: no curvature, nothing captured, and gradients that are all zero."""
        if self._step > 0 or self._last_refresh >= 0 or self._capture.holds_records:
            return False
        grads = [g for own in present(self._layout).values() for g in own] + passing(self._layout)
        return bool(grads) and not any(bool(square(g)) for g in grads)

    def skip(self, reason: str) -> bool:
        """Count a step that was not taken, and forget its captured batch. Returns False."""
        self._capture.clear()
        self._events.count("skipped_steps", f"a step was skipped: {reason}")
        return False

    def discard_captured(self) -> None:
        """Forget the backward passes since the last step, as ``zero_grad`` should."""
        self._capture.clear()

    def close(self) -> None:
        """Remove the hooks, and give back what the ranks share; the model is as it was."""
        self._capture.close()
        self.strategy.close()

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return counters and curvature: tensors and plain values only, keyed by qualified names.

        With several ranks each has a state of its own, to be saved beside the others'.
        """
        held = Held(
            self._step, self._last_refresh, self.options.seed, dict(self._events.counts), self._curvature,
            self._sharing.place(), self._thin.carriers,
        )  # fmt: skip
        return write(held, self._layout.signature())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, so that training continues bit for bit.

        At the next step the ranks agree on the curvature they have loaded: where each has its own state, or states hold
        what all of them need, they go on with it, else that step refreshes it. So one rank's state serves all.

        Raises:
            StateError: The state is truncated, foreign, of another version or model; nothing has changed then.
        """
        held = read(state, self._layout.signature(), self._layout.blocks)
        self._sharing.resume(held.place)
        self.options = self.options.with_(seed=held.seed)
        self._step, self._last_refresh = held.step, held.last_refresh
        self._events.counts, self._uses = Counter(held.counters), {}
        self._refreshes.curvature, self._thin.carriers = held.curvature, held.carriers
        self._reach.restore(self._curvature)
        self._capture.clear()
        alone = self.strategy.world == 1 and self._sharing.moved(self._curvature, held.carriers) is not None
        self._capture.armed = self._refresh_due() or not alone  # other ranks may have loaded what does not serve


def _witnesses(layout: Layout, reweighted: frozenset[str]) -> list[nn.Parameter]:
    """Return parameters that have a gradient after backward where those of reweighted layers have none."""
    return [p for name, block in layout.blocks.items() if name not in reweighted for p in block.parameters]


def _kept(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict) else value
