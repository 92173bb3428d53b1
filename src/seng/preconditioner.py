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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .blocks import Block, Layout, reweightable
from .capture import Capture
from .config import OptionKeywords, Options, shows_options
from .curvature import Curvature, as_captured, block_io, converted
from .diagnostics import Coverage, LayerStats, coverage, layer_stats
from .direction import Direction, MeanProjection, direction, project, shortening
from .distributed import Batch, Plan, Strategy, Updates, strategy_so_far
from .errors import OrderError, RankError
from .events import Events, listed
from .gradients import BlockGradients, Gradients, collect, lacking, square
from .grouping import lay_out
from .hooks import recorders
from .per_sample import Grads, LayerGradients, Product
from .refreshing import Facts, Reach, Refresh, Refreshes, Sharing, ThinCorrections, bounds_passing
from .samples import Samples, Taken
from .state import Held, read, write
from .wrappers import unwrap

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass
class StepInputs:
    """What a step works on.

    Args:
        gradients: Those in ``.grad``.
        taken: What the hooks captured for a refresh.
        due: Whether the curvature is to be refreshed.
        once: Whether curvature made now serves this step alone.
        solved: By block, what was solved while the ranks agreed.
    """

    gradients: Gradients = field(default_factory=Gradients)
    taken: Taken = field(default_factory=Taken)
    due: bool = False
    once: bool = False
    solved: dict[str, Direction] = field(default_factory=dict)


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
        **options: See ``seng.Options``.

    Attributes:
        layout: The model as it was last looked at; another object once it has changed.

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

    @shows_options
    def __init__(self, model: nn.Module, *, call: str = "Preconditioner()", **options: Unpack[OptionKeywords]):
        chosen = Options.build(call, dict(options))
        self._model = unwrap(model, call)
        self._events = Events()
        layout = lay_out(self._model, chosen, call)
        strategy = strategy_so_far(chosen.distributed, call, layout.cut_among)
        self._warn_unsupported(layout)
        self._reweighted = reweightable(layout) if chosen.reweight else frozenset()
        self._capture = Capture(layout.watched, self._reweighted, self._model, _witnesses(layout, self._reweighted))
        weakref.finalize(self, self._capture.close)
        self._use(layout, chosen, strategy)
        self._uses: dict[str, Direction] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._step = 0
        self._last_refresh = -1
        self._capture.subset = self._samples.subset(chosen, 0)

    def _use(self, layout: Layout, options: Options, strategy: Strategy) -> None:
        """Work with these blocks from now on."""
        self.layout, self._options = layout, options
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
        if self.layout.describes(self._model):
            return
        self.layout.require_current(call)
        if self.layout.sharded:  # fully_shard swaps parameters all the time
            return
        layout, old, curvature = lay_out(self._model, self.options, call), self.layout, self._curvature
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

    def _follow_dtype(self, dtypes: dict[str, torch.dtype]) -> None:
        """Convert held curvature where the model was moved to another dtype."""
        before, self._dtypes = self._dtypes, dtypes
        for name in self._curvature.keys() & dtypes.keys():
            if before.get(name, dtypes[name]) != dtypes[name]:
                self._curvature[name] = converted(self._curvature[name], self.layout.blocks[name].compute_dtype)

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
        return self._options

    @options.setter
    def options(self, options: Options) -> None:
        self._options = self._sharing.options = options

    @property
    def _curvature(self) -> dict[str, Curvature]:
        return self._refreshes.curvature

    @property
    def blocks(self) -> dict[str, Block]:
        """What is preconditioned together, by name."""
        return self.layout.blocks

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
        strategy = self._sharing.strategy
        inputs, agreed = strategy.together(partial(self._prepare, spoiled))
        if self._reach.known and not inputs.due:  # meanwhile the ranks agree
            self._solve_ahead(inputs)
        if not agreed():
            return self.skip(spoiled or "a gradient is not finite")
        if not self._reach.known and not self._go_on(inputs):
            return self.skip("curvature is made anew, and the batch was not captured for it")
        refresh = self._begin_refresh(inputs) if inputs.due else None
        fresh = refresh is not None and refresh.fresh
        if refresh and fresh:
            refresh.shared()
            refresh.at_once()
        updates, done = self._updates(inputs.gradients) if strategy.several else None, set()
        for name, block in self.layout.blocks.items():
            if refresh and fresh:
                refresh.block(name)
            if name in inputs.gradients.blocks:
                written = self._write(block, inputs, updates, fresh)
            else:
                written = name in self._reweighted and self._reweight(block)
            done |= {name} if written else set()
            if updates:
                updates.ready(name, written)
            if refresh and not fresh:
                refresh.block(name)
        if refresh and fresh:
            refresh.finish()
        if updates:
            done = self._share(updates, inputs.gradients)
        self._pass_through(inputs.gradients, done)
        if refresh and not fresh:
            refresh.finish()
        self._reach.spent = inputs.once
        self._last_refresh = self._step if refresh else self._last_refresh
        self._step += 1
        self._capture.armed = self._refresh_due()
        if self._capture.armed and self._options.curvature_samples is not None:
            self._capture.subset = self._samples.subset(self._options, self._step)
        return True

    def _begin_refresh(self, inputs: StepInputs) -> Refresh | None:
        """Leave out samples that do not add up to the gradients, and agree with the other ranks on the rest."""
        taken = inputs.taken
        for name in self._samples.settle(taken, self.strategy, self.options):
            self._curvature.pop(name, None)
            self._reach.forget(name)
        idle = taken.samples == 0 and not any(bool(own.square) for own in inputs.gradients.blocks.values())
        counts = taken.samples, taken.batch
        return self._refreshes.begin(taken.members, *counts, self._step, self._samples.refused, idle)

    def join_ranks(self, call: str) -> None:
        """Take up the ranks that there are now; the step after it agrees with them on what is held.

        Raises:
            OptionError: The strategy needs ranks, and there are none.
        """
        sharing = self._sharing
        if not sharing.strategy.current(sharing.options.distributed.name):
            sharing.settle(call)
            self._reach.known = self._last_refresh < 0 and self._reach.known
        sharing.strategy.device = next(iter(self.layout.blocks.values())).parameters[0].device

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
            self._go_on(StepInputs())

    def _go_on(self, inputs: StepInputs) -> bool:
        """Go on with the curvature held where all ranks can, else have it made anew: False if that has to wait."""
        samples = inputs.taken.samples if self._capture.armed else -1
        kept, captured = self._refreshes.go_on(self._last_refresh, samples)
        self._reach.share(self.strategy)
        if not kept:
            if self._step:
                self._events.count("remade_curvature", "the curvature held is not that of these ranks: it is made anew")
            self._last_refresh, self._capture.armed, inputs.due = -1, True, True
        return kept or captured

    def _updates(self, gradients: Gradients) -> Updates | None:
        """Return the way of directions to the other ranks, where they travel."""
        own = {name: each.present for name, each in gradients.blocks.items() if name not in self._thin}
        return self.strategy.updates(own, gradients.cuts(self.layout))

    def _share(self, updates: Updates, gradients: Gradients) -> set[str]:
        """Combine the ranks' directions; return the blocks that curvature of some rank reaches."""
        holders = self._reach.holders()
        updates.finish(holders)
        self._thin.finish(gradients.blocks, holders, self.strategy)
        return {name for name, count in holders.items() if count}

    def _solve_ahead(self, inputs: StepInputs) -> None:
        """Solve with curvature that stays, and write nothing yet."""
        held, blocks, options = self._refreshes.curvature, self.layout.blocks, self._options
        for name, own in inputs.gradients.blocks.items():
            curvature = held.get(name)
            if curvature is not None and curvature.factor is not None and not blocks[name].cuts:
                seen = project(curvature, curvature.factor, own.values, own.square, None)
                inputs.solved[name] = direction(curvature, seen, options, self._step, self._pooled_ranks)

    def _write(self, block: Block, inputs: StepInputs, updates: Updates | None, fresh: bool) -> bool:
        """Write multiplier * (g + U z) into the block's gradients; False where no curvature reaches it."""
        name, held = block.name, self._refreshes.curvature
        own, curvature = inputs.gradients.blocks[name], held.get(name)
        taken = updates.take(name) if updates and block.cuts else ()
        if curvature is None or curvature.factor is None:
            return False
        own = own.whole(block, taken) if block.cuts else own
        solved, factor, grads = inputs.solved.pop(name, None), curvature.factor, own.values
        if solved is None:
            draw = (self._options.seed, self._step, name) if fresh else None
            seen = project(curvature, factor, grads, own.square, draw)
            solved = direction(curvature, seen, self._options, self._step, self._pooled_ranks)
        self._uses[name], z, multiplier = solved, solved.z, solved.multiplier
        if inputs.once:  # the factor will not serve again
            held[name] = replace(curvature, factor=None, row_solution=None, largest=solved.largest)
        elif solved.largest is not None:
            held[name] = replace(curvature, largest=solved.largest)
        if updates and name in self._thin:
            if not solved.capped:
                multiplier = self._form(curvature, tuple(x.clone() for x in grads), solved)
            self._thin.say(name, z, multiplier)
            return True
        if not solved.capped:
            multiplier = self._form(curvature, grads, solved)
        if not solved.capped or multiplier.is_cuda:  # reading its value would wait for the device
            for x in grads:
                x.mul_(multiplier)
        if solved.capped:
            factor.add_rmv_(grads, z * multiplier, beta=1.0 if multiplier.is_cuda else float(multiplier))
        own.write_back()
        return True

    def _form(self, curvature: Curvature, grads: Grads, solved: Direction) -> Tensor:
        """Leave g + U z in ``grads``; return the multiplier within the trust cap."""
        assert curvature.factor is not None
        assert solved.trust is not None
        curvature.factor.add_rmv_(grads, solved.z)
        capped = shortening(curvature, grads, solved.trust, self.options, self._step, self._pooled_ranks)
        return solved.multiplier * capped

    def _reweight(self, block: Block) -> bool:
        """Make the block's gradients multiplier * U (w + z), g = U w with equal weights w of all samples in U."""
        curvature = self._curvature.get(block.name)
        if curvature is not None and curvature.factor is None and curvature.step == self._step:
            for parameter in block.parameters:  # all captured gradients were zero or next to it
                parameter.grad = torch.zeros_like(parameter)
            return True
        if curvature is None or not isinstance(curvature.factor, Product) or curvature.row_sums is None:
            return False
        weight = 1 / curvature.factor.scale  # columns of U are the captured gradients times the scale
        seen = MeanProjection(curvature.row_sums, weight)
        solved = direction(curvature, seen, self._options, self._step, self._pooled_ranks)
        self._uses[block.name], z, multiplier = solved, solved.z, solved.multiplier
        self._curvature[block.name] = replace(curvature, factor=None, row_solution=None, largest=solved.largest)
        grads = tuple(torch.empty(p.shape, dtype=z.dtype, device=p.device) for p in block.parameters)
        curvature.factor.add_rmv_(grads, (z + weight) * multiplier, beta=0.0)
        for parameter, x in zip(block.parameters, grads, strict=True):
            parameter.grad = x.to(parameter.dtype)
        return True

    @property
    def _pooled_ranks(self) -> int:
        strategy = self._sharing.strategy
        return strategy.world if strategy.pooled else 1

    def _pass_through(self, gradients: Gradients, done: set[str]) -> None:
        """Scale what no curvature reaches, as one block: to the pace of the rest, and within the trust cap."""
        rest = [own for name, own in gradients.blocks.items() if name not in done]
        unreached = [*gradients.passing, *(x for own in rest for x in own.present)]
        if not unreached or not self._options.natural:
            return
        squares = [*map(square, gradients.passing), *(own.square for own in rest)]
        total = torch.stack([value.to(squares[0]) for value in squares]).sum()
        if self.layout.cut_among > 1 and bounds_passing(self._options):
            total = self.strategy.tables(total.double()[None], "squares").sum()
        pace = self._reach.pace(self._options, self._step, total.sqrt())
        if pace is not None and (pace.is_cuda or pace != 1):  # None: all gradients were zero
            for gradient in unreached:
                gradient.mul_(pace.to(gradient.device) if pace.is_cuda else float(pace))

    # -- what a step works on -----------------------------------------------------------------------------------

    def _refresh_due(self) -> bool:
        return self._last_refresh < 0 or self._step - self._last_refresh >= self._options.interval_at(self._step)

    def _prepare(self, spoiled: str | None) -> tuple[StepInputs, Batch]:
        """Return what this rank brings to a step; all that can fail on one rank alone fails here."""
        if spoiled is not None:
            return StepInputs(), Batch(torch.tensor(False), dict)
        if self._options.has_schedules:
            self._options.require_schedules(self._step)
        due, withheld = self._refresh_due(), []
        capturing = due or self._capture.armed
        if capturing:
            self._follow_model("step()")
            due = self._refresh_due()
        dtypes = {name: block.parameters[0].dtype for name, block in self.layout.blocks.items()}
        if dtypes != self._dtypes:
            self._follow_dtype(dtypes)
        gradients, taken = self._gradients(), Taken()
        if capturing:
            taken = self._samples.take(gradients, self._options, self._step, self.strategy)
            self._restore_gradients(gradients, taken.layers)
            withheld = self._withheld_squares(taken.layers)
            taken.layers.clear()  # a block's samples die with its refresh
        inputs = StepInputs(gradients, taken, due, self._options.serves_once(self._step))
        return inputs, Batch(gradients.finite(withheld), self._told)

    def _told(self) -> dict[str, str]:
        """Return what must be alike on all ranks."""
        dtypes = [str(p.dtype) for p in self.layout.named().values()]
        position = {
            "gradients": " ".join(["all", *(f"but {name}" for name in lacking(self.layout))]),
            "dtypes": dtypes[0] if len(set(dtypes)) == 1 else " ".join(dtypes),
            "state_loaded": not self._reach.known,
        }
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

    def _gradients(self) -> Gradients:
        found = collect(self.layout)
        if not (found.blocks or found.passing or (self._reweighted and self._capture.holds_records)):
            self.layout.require_current("step()")
            raise OrderError(
                "step()", "no gradients", expected=".grad on the model's parameters", got=None,
                fix="Call loss.backward() before step()",
            )  # fmt: skip
        return found

    def _restore_gradients(self, gradients: Gradients, layers: Mapping[str, LayerGradients]) -> None:
        """Add the captured gradient where a withheld one is only part of it: the weight was used elsewhere, too."""
        for name in self._reweighted & gradients.blocks.keys() & layers.keys():
            block, io, own = self.layout.blocks[name], layers[name], gradients.blocks[name]
            factor = as_captured(block, block_io(block, layers), 1.0, block.compute_dtype)
            factor.add_rmv_(own.values, own.values[0].new_ones(io.n))
            for parameter, x in zip(block.parameters, own.values, strict=True):
                parameter.grad = x.view_as(parameter).to(parameter.dtype)
            gradients.blocks[name] = BlockGradients.of(block, [p.grad for p in block.parameters])

    def _withheld_squares(self, layers: Mapping[str, LayerGradients]) -> list[Tensor]:
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
        return coverage(self.layout, self._sharing.choices, held, self._samples.refused)

    def mark(self) -> Callable[[], None]:
        """Return a function that takes counters and curvature back to what they are now."""
        holders = (self, self._refreshes, self._reach, self._thin, self._sharing, self._samples, self._events)
        held = [(vars(holder), {key: _kept(value) for key, value in vars(holder).items()}) for holder in holders]
        armed, subset, plan = self._capture.armed, self._capture.subset, self.strategy.plan

        def go_back() -> None:
            for own, before in held:
                own.update(before)
            self._capture.armed, self._capture.subset, self.strategy.plan = armed, subset, plan

        return go_back

    def idle(self) -> bool:
        """Return whether there is nothing to do: no curvature, nothing captured, and gradients that are all zero."""
        if self._step > 0 or self._last_refresh >= 0 or self._capture.holds_records:
            return False
        found = collect(self.layout)
        squares = [*(own.square for own in found.blocks.values()), *map(square, found.passing)]
        return bool(squares) and not any(map(bool, squares))

    def skip(self, reason: str) -> bool:
        """Count a step that was not taken, and forget its captured batch. Returns False."""
        self._capture.clear()
        self._events.count("skipped_steps", f"a step was skipped: {reason}")
        return False

    def discard_captured(self) -> None:
        """Forget the backward passes since the last step, as ``zero_grad`` should."""
        if self._capture.armed:
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
        return write(held, self.layout.signature())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, so that training continues bit for bit.

        At the next step the ranks agree on the curvature they have loaded: where each has its own state, or states hold
        what all of them need, they go on with it, else that step refreshes it. So one rank's state serves all.

        Raises:
            StateError: The state is truncated, foreign, of another version or model; nothing has changed then.
        """
        held = read(state, self.layout.signature(), self.layout.blocks)
        self._sharing.resume(held.place)
        self.options = self.options.with_(seed=held.seed)
        self._step, self._last_refresh = held.step, held.last_refresh
        self._events.counts, self._uses = Counter(held.counters), {}
        self._refreshes.curvature, self._thin.carriers = held.curvature, held.carriers
        self._reach.restore(self._curvature)
        self._capture.clear()
        alone = self.strategy.world == 1 and self._sharing.moved(self._curvature, held.carriers) is not None
        self._capture.armed = self._refresh_due() or not alone  # other ranks may have loaded what does not serve
        self._capture.subset = self._samples.subset(self._options, self._step)


def _witnesses(layout: Layout, reweighted: frozenset[str]) -> list[nn.Parameter]:
    """Return parameters that have a gradient after backward where those of reweighted layers have none."""
    return [p for name, block in layout.blocks.items() if name not in reweighted for p in block.parameters]


def _kept(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict) else value
