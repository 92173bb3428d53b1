"""The curvature of one block, and how a refresh makes it from what the layer captured."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from .blocks import Block
from .config import Options
from .errors import BatchError
from .factors import Combined, Explicit, Factor, build_factor, merge, truncate
from .sketch import generator_for
from .solve import EigenState, FactorisationError, LinAlgError, SolveState, init
from .types import Choice, LayerIO, expand_positions, join_uses

SMALLEST = 2.0**24  # multiples of the smallest normal number below which a damping cannot be divided by
BlockParts = tuple[tuple[LayerIO, tuple[int, ...]], ...]  # per member: what it gave, positions of its parameters


@dataclass(frozen=True)
class Curvature:
    """What is held between refreshes.

    Args:
        factor: U as an operator; None where gradients were zero or next to it, and once it has served where the next
            step refreshes before it is used.
        state: Factorisation of K = U^T U.
        mean: Mean eigenvalue trace(K) / samples, the unit of relative damping, 0-d.
        samples: Number of samples (rows, with positions expanded) behind U.
        step: Step of the refresh.
        damping: The damping in force at the refresh, 0-d.
        row_sums: K 1, or None where the columns of U are not the samples.
    """

    factor: Factor | None
    state: SolveState
    mean: Tensor
    samples: int
    step: int
    damping: Tensor
    row_sums: Tensor | None = None

    def nbytes(self) -> int:
        """Bytes held by U; the n x n state comes on top."""
        return 0 if self.factor is None else self.factor.nbytes()


def damping_at(options: Options, step: int, mean: Tensor) -> Tensor:
    """Return lambda of each block at a step, of the shape of their mean eigenvalues."""
    value = options.damping_at(step)
    return mean * value if options.damping_mode == "relative" else torch.full_like(mean, value)


def block_io(block: Block, layers: dict[str, LayerIO]) -> BlockParts:
    """Return what each member of a block gave, with the positions of its parameters; alike members are joined."""
    parts = [(layers[watched.name], slots) for watched, slots in block.members if watched.name in layers]
    alike = len({slots for _, slots in parts}) == 1 and len({type(io) for io, _ in parts}) == 1
    if len({io.n for io, _ in parts}) > 1:
        raise BatchError(
            "step()", "modules that share a parameter saw different numbers of samples", expected=f"{parts[0][0].n}",
            got=[io.n for io, _ in parts], layer=block.name, fix="Use them in the same micro-batches, or exclude them",
        )  # fmt: skip
    if not alike or len({io.shapes for io, _ in parts}) > 1:
        return tuple(parts)
    return ((join_uses([io for io, _ in parts]), parts[0][1]),)


def refresh(
    block: Block,
    parts: BlockParts,
    choice: Choice,
    samples: int,
    options: Options,
    step: int,
    old: Curvature | None,
) -> tuple[Curvature, int]:
    """Make a block's curvature from one batch, merged into the old one where ``ema`` asks for it.

    Returns:
        The curvature, and how many rungs of the factorisation ladder failed before one held.

    Raises:
        FactorisationError: No factorisation held.
    """
    factor, samples = _factor(block, parts, choice, samples, options, step)
    gram = factor.gram()
    mean, sums = gram.diagonal().sum() / samples, gram @ gram.new_ones(factor.n)
    if options.ema > 0 and old is not None and isinstance(old.factor, Explicit):
        factor = merge(old.factor, factor, options.ema)
        mean = options.ema * old.mean + (1 - options.ema) * mean
    damping = damping_at(options, step, mean)
    size, least = torch.stack([mean, damping]).tolist()
    if not isfinite(size):
        raise FactorisationError("the Gram matrix is not finite")
    steady = not callable(options.damping) or options.interval_at(step) == 1
    direct = options.power == 1.0 and (steady or factor.frozen_damping)
    summarise = choice.estimator == "truncated" or options.ema > 0
    once = direct and not summarise and options.serves_once(step)
    state, failed = init(gram, damping, cholesky=direct or summarise, once=once)
    used = factor if least > SMALLEST * torch.finfo(gram.dtype).tiny else None
    if summarise and used is not None:
        try:
            used, values = truncate(factor, damping, limit=samples)
        except LinAlgError as error:
            raise FactorisationError("the merged Gram matrix could not be factorised") from error
        state = EigenState(values, torch.eye(len(values), dtype=values.dtype, device=values.device))
    return Curvature(used, state, mean, samples, step, damping, sums), failed


def _factor(
    block: Block,
    parts: BlockParts,
    choice: Choice,
    samples: int,
    options: Options,
    step: int,
) -> tuple[Factor, int]:
    drawing = choice.draws or options.positions == "expand"
    generator = generator_for(options.seed, step, block.name) if drawing else torch.default_generator
    dtype = block.compute_dtype
    io, slots = parts[0]
    if len(parts) > 1 or len(slots) < len(block.parameters):
        return as_captured(block, parts, _scale(samples, options), dtype), samples
    if options.positions == "expand":
        io, samples = expand_positions(io, max(io.n, options.sketch_size), generator)
    return build_factor(io, choice, _scale(samples, options), dtype, generator), samples


def as_captured(block: Block, parts: BlockParts, scale: float, dtype: torch.dtype) -> Combined:
    """Return U of all modules of a block as they were captured, one column a sample, ``scale`` times each.

    Parameters that no module reached in this batch have zero rows.
    """
    shapes = {slot: shape for io, slots in parts for slot, shape in zip(slots, io.shapes, strict=True)}
    every = tuple(shapes.get(k, (p.numel(), 1)) for k, p in enumerate(block.parameters))
    keep = Choice("operator")
    terms = tuple(build_factor(io, keep, scale, dtype, torch.default_generator) for io, _ in parts)
    return Combined(terms, tuple(slots for _, slots in parts), every)


def _scale(samples: int, options: Options) -> float:
    """Return what turns captured gradients into columns of U: sqrt(n) for mean losses, 1 / sqrt(n) for sums."""
    scale = samples**0.5 if options.loss_reduction == "mean" else samples**-0.5
    return scale if options.grad_scaler is None else scale / options.grad_scaler.get_scale()
