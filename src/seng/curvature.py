"""The curvature of one block, and how a refresh makes it from what the layer captured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from .blocks import Block
from .config import Options
from .errors import BatchError
from .estimators import Choice, Form
from .estimators import Rows as RowsForm
from .per_sample import Combined, LayerGradients, PerSampleGradients, Product, Rows, join_uses
from .per_sample.truncated import TOLERANCE, merge, truncate
from .sketch import generator_for
from .solve import EigenState, FactorisationError, SolveState

SMALLEST = 2.0**24  # multiples of the smallest normal number below which a damping cannot be divided by
ROUNDINGS = 16.0  # of the mean eigenvalue: smaller dampings would be lost beside the rounding errors of K
FLOOR = 1e-4  # share of the largest mean eigenvalue so far below which relative damping does not follow
BlockParts = tuple[tuple[LayerGradients, tuple[int, ...]], ...]  # per member: what it gave, positions of its parameters


@dataclass(frozen=True)
class Curvature:
    """What is held between refreshes.

    Args:
        factor: U as an operator; None where gradients were zero or next to it, and once it has served where the next
            step refreshes before it is used.
        state: Factorisation of K = U^T U.
        mean: Mean eigenvalue trace(K) / samples, or its floor: the unit of relative damping, 0-d.
        peak: The largest mean eigenvalue of all refreshes so far, 0-d.
        samples: Number of samples (rows, with positions expanded) behind U.
        step: Step of the refresh.
        damping: The damping in force at the refresh, 0-d.
        row_sums: K 1, or None where the columns of U are not the samples.
        row_solution: The coefficients for y = K 1, where those of many blocks were found at once.
        largest: The largest |g| of the block lately, 0-d; None before its first direction.
        batch: Number of samples (or rows) of the batch that those behind U were drawn from; 0: not known, all of them.
    """

    factor: PerSampleGradients | None
    state: SolveState
    mean: Tensor
    peak: Tensor
    samples: int
    step: int
    damping: Tensor
    row_sums: Tensor | None = None
    row_solution: Tensor | None = None
    largest: Tensor | None = None
    batch: int = 0

    def nbytes(self) -> int:
        """Bytes held by U; the n x n state comes on top."""
        return 0 if self.factor is None else self.factor.nbytes()


def converted(value: Any, dtype: torch.dtype) -> Any:
    """Return curvature, or a part of it, with its floating-point tensors in a dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if is_dataclass(value):
        parts = {part.name: converted(getattr(value, part.name), dtype) for part in fields(value) if part.init}
        return replace(value, **parts)  # pyright: ignore[reportArgumentType]  # an object, not a class
    return tuple(converted(item, dtype) for item in value) if type(value) is tuple else value


def damping_at(options: Options, step: int, mean: Tensor) -> Tensor:
    """Return lambda of each block at a step, of the shape of their mean eigenvalues; never below K's own rounding."""
    value = options.damping_at(step)
    chosen = mean * value if options.damping_mode == "relative" else torch.full_like(mean, value)
    return torch.maximum(chosen, ROUNDINGS * torch.finfo(mean.dtype).eps * mean)


def member_io(block: Block, layers: Mapping[str, LayerGradients]) -> dict[int, LayerGradients]:
    """Return what the members of a block gave; alike ones are joined at the position of the first of their kind."""
    kinds = [(slots, member.layer) for member, slots in block.members]
    found: dict[int, list[LayerGradients]] = {}
    for kind, (member, _) in zip(kinds, block.members, strict=True):
        if member.name in layers:
            found.setdefault(kinds.index(kind), []).append(layers[member.name])
    counts = [io.n for ios in found.values() for io in ios]
    if len(set(counts)) > 1:
        raise BatchError(
            "step()", "modules that share a parameter saw different numbers of samples", expected=f"{counts[0]}",
            got=counts, layer=block.name, fix="Use them in the same micro-batches, or exclude them",
        )  # fmt: skip
    return {k: join_uses(ios) for k, ios in found.items()}


def block_io(block: Block, layers: Mapping[str, LayerGradients]) -> BlockParts:
    """Return what the members of a block gave, with the positions of their parameters; alike members are joined."""
    return in_place(block, member_io(block, layers))


def in_place(block: Block, members: Mapping[int, LayerGradients]) -> BlockParts:
    """Put beside what each member gave the positions of its parameters."""
    return tuple((members[k], block.members[k][1]) for k in sorted(members))


@dataclass(frozen=True)
class Pool:
    """Whose samples lie behind a curvature.

    Args:
        samples: How many there are.
        ranks: Number of ranks they come from, over which gradients were averaged: each contributes 1 / ranks of what
            was captured on it.
        batch: Number of samples that they were drawn from; 0: all of them.
    """

    samples: int
    ranks: int = 1
    batch: int = 0

    def scale(self, options: Options) -> float:
        """Return what turns captured gradients into columns of U: sqrt(n) / M for mean losses, 1 / sqrt(n) for sums."""
        mean, n = options.loss_reduction == "mean", self.batch or self.samples
        scale = n**0.5 / self.ranks if mean else n**-0.5
        return scale if options.grad_scaler is None else scale / options.grad_scaler.get_scale()


@dataclass(frozen=True)
class Draft:
    """U of a refresh, before its Gram matrix is known.

    Args:
        batch: U of the new batch.
        factor: The same, or that merged with the curvature held before.
        pool: Whose samples they are.
        truncation: Multiple of the damping below which eigenvalues are dropped; None: all samples are kept.
        solver: What is made of K.
    """

    batch: PerSampleGradients
    factor: PerSampleGradients
    pool: Pool
    truncation: float | None
    solver: type[SolveState]


@dataclass(frozen=True)
class Solution:
    """What a refresh makes of K.

    Args:
        state: Factorisation of K.
        mean: Mean eigenvalue, or its floor, 0-d.
        peak: The largest so far, 0-d.
        damping: The damping in force, 0-d.
        row_sums: K 1 of the new batch.
        usable: Whether the damping can be divided by.
        failed: Rungs of the factorisation ladder that failed before one held.
        gram: K, where the state is not of the kind wanted.
    """

    state: SolveState
    mean: Tensor
    peak: Tensor
    damping: Tensor
    row_sums: Tensor
    usable: bool
    failed: int
    gram: Tensor | None = None


def refresh(
    block: Block, parts: BlockParts, choice: Choice, pool: Pool, options: Options, step: int, old: Curvature | None
) -> tuple[Curvature, int]:
    """Make a block's curvature from one batch, merged into the old one where ``ema`` asks for it.

    Returns:
        The curvature, and how many rungs of the factorisation ladder failed before one held.

    Raises:
        FactorisationError: No factorisation held.
    """
    drafted = draft(block, parts, choice, pool, options, step, old)
    solution = solve(drafted, options, step, old)
    return hold(drafted, solution, step, old), solution.failed


def draft(
    block: Block, parts: BlockParts, choice: Choice, pool: Pool, options: Options, step: int, old: Curvature | None
) -> Draft:
    """Make U from one batch."""
    batch, pool = factor_of(block, parts, choice, pool, options, step)
    truncation = TOLERANCE if options.ema > 0 and choice.form.truncation is None else choice.form.truncation
    batch = (
        batch if truncation is None else batch.unsketched
    )  # eigenvalues of a sketch would not be those of the columns kept
    merged = options.ema > 0 and old is not None and isinstance(old.factor, Rows)
    factor = merge(old.factor, batch, options.ema) if merged else batch  # type: ignore[union-attr,arg-type]
    return Draft(batch, factor, pool, truncation, choice.solver)


def solve(drafted: Draft, options: Options, step: int, old: Curvature | None) -> Solution:
    """Factorise the Gram matrix.

    Raises:
        FactorisationError: No factorisation held.
    """
    batch, merged = drafted.batch, drafted.factor is not drafted.batch
    gram = batch.gram()
    mean, sums = gram.trace() / drafted.pool.samples, gram.sum(0)
    if merged:
        assert old is not None
        mean = options.ema * old.mean + (1 - options.ema) * mean
    mean, peak = _floored(mean, options, step, old)
    damping = damping_at(options, step, mean)
    size, least = torch.stack([mean, damping]).tolist()
    if not isfinite(size):
        raise FactorisationError("the Gram matrix is not finite")
    whole = drafted.factor.gram() if merged else gram
    state, failed = drafted.solver.factorise(whole, damping)
    usable = least > SMALLEST * torch.finfo(gram.dtype).tiny
    return Solution(state, mean, peak, damping, sums, usable, failed, whole)


def _floored(mean: Tensor, options: Options, step: int, old: Curvature | None) -> tuple[Tensor, Tensor]:
    """Return the unit of relative damping and the largest mean eigenvalue so far.

    Where directions carry the scale of (F + lambda I)^-power g, their length does not fall with the gradient as the
    loss goes to zero. From a share of the largest mean on the unit stays, and they do; but no damping above 1 is
    made, so that none becomes shorter than the gradient by this.
    """
    if old is None or not options.natural:
        return mean, mean
    peak = torch.maximum(mean, old.peak)
    return torch.maximum(mean, (FLOOR * peak).clamp(max=1 / options.damping_at(step))), peak


def hold(drafted: Draft, solution: Solution, step: int, old: Curvature | None) -> Curvature:
    """Return what is kept until the next refresh."""
    factor, state = drafted.factor, solution.state
    if drafted.truncation is not None and solution.usable:
        assert isinstance(state, EigenState)
        spectrum = (state.values, state.vectors)
        factor, values = truncate(
            factor, solution.damping, limit=drafted.pool.samples, spectrum=spectrum, tolerance=drafted.truncation
        )
        state = EigenState(values, torch.eye(len(values), dtype=values.dtype, device=values.device))
    return Curvature(
        factor if solution.usable else None, state, solution.mean, solution.peak, drafted.pool.samples, step,
        solution.damping, solution.row_sums, largest=old.largest if old else None, batch=drafted.pool.batch,
    )  # fmt: skip


def factor_of(
    block: Block, parts: BlockParts, choice: Choice, pool: Pool, options: Options, step: int
) -> tuple[PerSampleGradients, Pool]:
    """Return U of the samples given, and the pool with rows counted as positions where those are expanded."""
    form, expanded, scale = choice.form, options.expanded, pool.scale(options)
    drawing = form.draws or expanded is not None
    generator = generator_for(options.seed, step, block.name) if drawing else torch.default_generator
    dtype = block.compute_dtype
    io, slots = parts[0]
    if len(parts) > 1 and isinstance(form, RowsForm) and not block.tied:  # one layer, on as few columns as it needs
        written = as_captured(block, parts, scale, dtype)
        return Rows.split(written.to_dense().T, written.shapes).thin(), pool
    if len(parts) > 1 or len(slots) < len(block.parameters):
        return as_captured(block, parts, scale, dtype, form if len(parts) > 1 else None, generator), pool
    if expanded is not None:
        io, rows = io.expanded(max(io.n, expanded), generator)
        pool = Pool(rows, pool.ranks, rows * pool.batch // pool.samples)
        scale = pool.scale(options)
    if io.kind not in form.kinds:  # a layer of this kind is kept as it was captured
        return io.held(scale, dtype), pool
    return form.build(io, scale, dtype, generator), pool


def as_captured(
    block: Block,
    parts: BlockParts,
    scale: float,
    dtype: torch.dtype,
    form: Form | None = None,
    generator: torch.Generator = torch.default_generator,
) -> Combined:
    """Return U of all parts of a block, one column a sample, ``scale`` times what was captured.

    Parameters that no part reaches in this batch have zero rows. ``form`` says how products are kept, by default as
    they were captured.
    """
    shapes = {slot: shape for io, slots in parts for slot, shape in zip(slots, io.shapes, strict=True)}
    every = tuple(shapes.get(k, (p.numel(), 1)) for k, p in enumerate(block.parameters))
    terms = tuple(
        form.build(io, scale, dtype, generator) if form and isinstance(io, Product) else io.held(scale, dtype)
        for io, _ in parts
    )
    return Combined(terms, tuple(slots for _, slots in parts), every)
