"""What a refresh takes from the hooks: the samples of each block, as far as they add up to ``.grad``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch

from .blocks import Layout
from .capture import Capture, Captured
from .config import Options
from .curvature import in_place, member_io
from .distributed import Strategy, several_ranks
from .errors import BatchError, CaptureError
from .events import Events, listed
from .gradient_check import COLUMNS, DIGEST, REDUCED, Probe, common_ratio, digest, probe
from .gradients import BlockGradients, Gradients
from .per_sample import LayerGradients
from .refreshing import Members
from .sketch import generator_for
from .subsets import Subset

DISAGREES = (
    "the captured samples do not add up to .grad: the weight is also used outside of its layer, the gradient was "
    "changed by a hook, by hand or by clip_grad_value_ (gradient_check=False if that is meant), or the loss contains "
    "gradients"
)
ALWAYS = 2  # refreshes at which all blocks are compared with their gradients
UNCOMPARED = -1.0  # what ranks tell as rounding error of samples that they captured and did not look at
TURNS = 8  # refreshes after which each block has been compared again


@dataclass
class Taken:
    """What the hooks gave for one step.

    Args:
        layers: By qualified module name.
        members: By block: what each member gave.
        samples: Number of samples.
        batch: Number of samples of the batch that they were drawn from.
        probes: By block, what the check compares.
        refused: Reason by name of each block whose samples cannot be used.
    """

    layers: dict[str, LayerGradients] = field(default_factory=dict)
    members: Members = field(default_factory=dict)
    samples: int = 0
    batch: int = 0
    probes: dict[str, Probe] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class Samples:
    """Takes what the hooks captured, and compares it with the gradients.

    Args:
        layout: The model's blocks.
        capture: The hooks.
        events: Takes what is said once.
        withheld: Names of blocks whose weight gradients exist only after the step.

    Attributes:
        refused: Reason by name of each block whose samples could not be used at the last refresh.
    """

    def __init__(self, layout: Layout, capture: Capture, events: Events, withheld: frozenset[str]):
        self.refused: dict[str, str] = {}
        self._refreshes, self._ratio, self._loose = 0, 1.0, False
        self._layout, self._capture, self._events, self._withheld = layout, capture, events, withheld

    def subset(self, options: Options, step: int) -> Subset | None:
        """Return which samples hooks are to record for the refresh at a step; None for all.

        Layers whose samples will be compared with their gradients are recorded whole.
        """
        if options.curvature_samples is None:
            return None
        checked = self._checked(self._loose) if options.gradient_check else set()
        whole = {member.watched.name for name in checked for member, _ in self._layout.blocks[name].members}
        return Subset(options.curvature_samples, options.seed, step, frozenset(whole))

    def take(self, gradients: Gradients, options: Options, step: int, strategy: Strategy) -> Taken:
        """Take what the hooks captured, and forget it there. What can fail on one rank alone fails here.

        Args:
            gradients: Those in ``.grad``.
            options: Of the preconditioner.
            step: The step.
            strategy: The ranks.

        Raises:
            CaptureError: A layer's input was overwritten in place before it could be used.
        """
        try:
            captured = self._capture.collect()
            self._loose = captured.loose
            alone = strategy.world == 1
            grads = gradients.blocks
            if alone and several_ranks():  # gradients of all ranks' samples beside those of this one
                grads = {}
            taken = self._look(captured, grads, options, step)
            if alone and captured.loose and not _agree(taken):
                with suppress(CaptureError):  # what was cleared need not be there any more
                    other = self._look(self._capture.collect(loose=True), grads, options, step)
                    taken = other if _agree(other) else taken
            return taken
        finally:
            self._capture.release()

    def _look(self, captured: Captured, grads: Mapping[str, BlockGradients], options: Options, step: int) -> Taken:
        checked = self._checked(captured.loose) & grads.keys() if options.gradient_check else set()
        taken = Taken(captured.layers, samples=captured.samples, batch=captured.batch)
        for name, block in self._layout.blocks.items():
            refused = [captured.refused[m.name] for m, _ in block.members if m.name in captured.refused]
            try:
                members = {} if refused else member_io(block, captured.layers)
            except BatchError as error:
                refused, members = [f"{error.problem}: {error.got}"], {}
            if refused:
                taken.refused[name] = refused[0]
            if members:
                taken.members[name] = members
            every = members
            if members and name in checked and captured.whole is not captured.layers:
                known = all(m.name in captured.whole for m, _ in block.members if m.name in captured.layers)
                every = member_io(block, captured.whole) if known else {}
            if every and name in checked:
                generator = generator_for(options.seed, step, name)
                taken.probes[name] = probe(block, in_place(block, every), grads[name].values, generator)
        return taken

    def _checked(self, every: bool) -> set[str]:
        """Return the blocks to compare: all at first, later some in turn, and those that disagreed."""
        names = [] if self._layout.sharded else list(self._layout.blocks)
        if every or self._refreshes < ALWAYS or not names:
            return set(names) - self._withheld
        some = -(-len(names) // TURNS)
        start = self._refreshes * some
        turn = {names[k % len(names)] for k in range(start, start + some)}
        return (turn | (self.refused.keys() & set(names))) - self._withheld

    def settle(self, taken: Taken, strategy: Strategy, options: Options) -> set[str]:
        """Leave out of ``taken.members`` what does not add up to the gradients of all ranks. A collective call.

        Args:
            taken: What this rank's hooks gave.
            strategy: The ranks.
            options: Of the preconditioner.

        Returns:
            The names of the blocks left out.
        """
        probes, refused = taken.probes, taken.refused
        scale = 1.0 if options.grad_scaler is None else options.grad_scaler.get_scale()
        if strategy.world > 1 and not self._layout.sharded:
            probes, refused = self._of_all(taken, strategy)
        eps = max((found.eps for found in probes.values()), default=0.0)
        eps = max(eps, REDUCED) if strategy.world > 1 else eps
        ratios = {name: found.ratio(eps) for name, found in probes.items()}
        refused = refused | {name: DISAGREES for name, ratio in ratios.items() if ratio is None}
        for name in refused:
            taken.members.pop(name, None)
        self._refreshes += 1
        self._ratio = common_ratio({n: ratio * scale for n, ratio in ratios.items() if ratio is not None}, self._ratio)
        if self._ratio != 1.0:
            self._take_out(taken, self._ratio / scale)
        self._tell(refused)
        return set(refused)

    def _of_all(self, taken: Taken, strategy: Strategy) -> tuple[dict[str, Probe], dict[str, str]]:
        """Return the probes of all ranks' samples together, and what any rank refuses.

        A block that some rank captured and did not look at is not compared: gradients are those of all ranks.
        """
        blocks = self._layout.blocks
        table = torch.zeros(len(blocks), COLUMNS, dtype=torch.float64)
        for row, name in zip(table, blocks, strict=True):
            if name in taken.probes:
                row[:] = digest(taken.probes[name], name)
            elif name in taken.members:
                row[-2] = UNCOMPARED
            row[-1] = name in taken.refused
        every = strategy.tables(table.reshape(-1), "gradient check").view(-1, *table.shape)
        probes, refused = {}, {}
        for k, name in enumerate(blocks):
            rows = every[:, k]
            if bool(rows[:, -1].any()):
                refused[name] = taken.refused.get(name, "its samples cannot be used on another rank")
            there = rows[rows[:, -2] > 0]
            if len(there) and not bool((rows[:, -2] == UNCOMPARED).any()):
                x = there[:, :DIGEST].sum(0) / strategy.world
                y, *penalties = there[0, DIGEST:-3].split(DIGEST)
                noise = there[:, -3].square().sum().sqrt() / strategy.world
                probes[name] = Probe(x, y, partial(torch.stack, penalties), noise, float(there[:, -2].max()))
        return probes, refused

    def _take_out(self, taken: Taken, ratio: float) -> None:
        members = taken.members
        taken.members = {name: {k: io.multiplied(ratio) for k, io in own.items()} for name, own in members.items()}
        message = (
            f"captured gradients are {1 / ratio:.6g} times those in .grad, as a loss scale or hard clipping makes them"
        )
        self._events.count("loss_scales", f"{message}; this is taken out. Pass grad_scaler if you use a GradScaler")

    def _tell(self, refused: Mapping[str, str]) -> None:
        """Warn of blocks that pass through from now on."""
        new = {name: why for name, why in refused.items() if name not in self.refused}
        self.refused = dict(refused)
        if new:
            self._events.warn(f"these layers keep their plain gradient: {listed(new)}. See coverage()")


def _agree(taken: Taken) -> bool:
    eps = max((found.eps for found in taken.probes.values()), default=0.0)
    return all(found.ratio(eps) is not None for found in taken.probes.values())
