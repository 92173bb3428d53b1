"""Chooses how the curvature of each block is kept, from shapes, operation counts and a memory budget.

Legend: n samples, s positions, c groups, d_in and d_out features of a group, p parameters, r rank, q sketch rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from .config import Options
from .errors import MemoryBudgetError, OptionError, choose
from .factors import implicit_gram_is_cheaper
from .sketch import SKETCHES
from .types import Choice, LayerIO, Lookup, Product, parameters_of

PAPER_LIMIT = 700_000  # parameters above which the paper treats a layer implicitly
EXACT_LIMIT = 2**28  # bytes of one block's curvature beyond which "auto" sketches
REFRESH_SHARE = 40.0  # flops of a refresh, in backward passes of the block, beyond which "auto" sketches
MEMORY_BOUND = 10.0  # what products that read an element for two flops take, in times their flops
# what a refresh makes of K, in n^3 flops of a large product: eigenvalues run at half that speed
SOLVE_FLOPS: dict[str, float] = {"eigen": 20.0, "cholesky": 1 / 3, "direct": 2 / 3}


@dataclass(frozen=True)
class Size:
    """Shape of one block on one batch."""

    kind: str
    n: int
    p: int
    c: int = 1
    s: int = 1
    d_in: int = 1
    d_out: int = 1
    itemsize: int = 4
    members: tuple[Size, ...] = ()

    @staticmethod
    def of_block(ios: Sequence[LayerIO], options: Options, itemsize: int, tied: bool = True) -> Size:
        """Read the shape of a whole block: tied modules side by side, positions expanded where that is asked for.

        A weight and a bias whose gradients come apart are one layer; ``tied``: no such.
        """
        sizes = [Size.of(io, itemsize) for io in ios]
        first = sizes[0]
        if not tied and [size.kind for size in sizes] == ["product", "rows"]:
            return replace(first, p=sum(size.p for size in sizes))
        if len(sizes) > 1:
            return replace(first, kind="tied", members=tuple(sizes))
        if options.positions == "expand" and first.kind != "rows":
            return replace(first, n=min(first.n * first.s, max(first.n, options.sketch_size)), s=1)
        return first

    @staticmethod
    def of(io: LayerIO, itemsize: int = 4) -> Size:
        """Read the shape off what a layer captured."""
        p = parameters_of(io)
        if isinstance(io, Product):
            c, n, d_out, s = io.g.shape
            return Size("product", n, p, c, s, io.d_in, d_out, itemsize)
        if isinstance(io, Lookup):
            return Size("lookup", io.n, p, 1, io.g.shape[1], 1, io.g.shape[2], itemsize)
        return Size("rows", io.n, p, itemsize=itemsize)

    @property
    def shape(self) -> str:
        """What crosses the layer: samples n, positions s, features in and out of a group; or parameters p."""
        if self.members:
            return " + ".join(member.shape for member in self.members)
        if self.kind == "rows":
            return f"n {self.n}, p {self.p}"
        sides = (
            f"{self.p // self.d_out} rows of {self.d_out}" if self.kind == "lookup" else f"{self.d_in} -> {self.d_out}"
        )
        groups = f", {self.c} groups" if self.c > 1 else ""
        return f"n {self.n}, s {self.s}, {sides}{groups}"

    @property
    def backward_flops(self) -> float:
        """Weight and input gradients of the block, the unit that costs are compared with."""
        if self.members:
            return sum(member.backward_flops for member in self.members)
        weight = 4.0 * self.c * self.n * self.s * self.d_in * self.d_out
        return weight if self.kind == "product" else 8.0 * self.n * self.s * max(self.p, self.d_out)


def operator_cost(size: Size, choice: Choice) -> Choice:
    """Cost of keeping inputs and output gradients; small layers give rows as they are."""
    n, s, both = size.n, size.s, size.d_in + size.d_out
    if size.kind == "rows":
        return _costed(choice, size, n * size.p, 2.0 * n * n * size.p, 4.0 * n * size.p)
    if size.kind == "lookup":
        used = min(n * s, size.p // size.d_out)  # at most so many rows of the weight
        flops = 2.0 * n * n * min(s * s, used) * size.d_out
        return _costed(choice, size, n * s * (size.d_out + 2), flops, 4.0 * n * s * size.d_out)
    cheap = implicit_gram_is_cheaper(n, s, size.d_in, size.d_out)
    whole = size.d_in * size.d_out
    gram = n * n * s * s * both if cheap else n * s * whole + n * n * whole
    return _costed(choice, size, size.c * n * s * both, 2.0 * size.c * gram, 4.0 * size.c * n * s * whole)


def tied_cost(size: Size, choice: Choice) -> Choice:
    """Cost of modules that share a parameter, each kept as it was captured, with one Gram matrix between them."""
    parts = [operator_cost(member, choice) for member in size.members]
    shared = (len(parts) - 1) * size.n**2 * size.itemsize
    return replace(
        choice,
        nbytes=sum(part.nbytes for part in parts) - shared,
        refresh_flops=sum(part.refresh_flops for part in parts),
        apply_flops=sum(part.apply_flops for part in parts),
    )


def rows_cost(size: Size, choice: Choice) -> Choice:
    """Cost of written out per-sample gradients; those of an embedding never are."""
    return operator_cost(size, choice) if size.kind == "lookup" else truncated_cost(size, choice)


def truncated_cost(size: Size, choice: Choice) -> Choice:
    """Cost of at most min(n, p) explicit columns; their products are bound by memory, not by arithmetic."""
    k = min(size.n, size.p)
    form = size.c * size.n * size.s * size.d_in * size.d_out
    gram = 2.0 * form + 2.0 * size.n * k * size.p
    return _costed(choice, size, k * size.p, gram, 4.0 * k * size.p, memory_bound=MEMORY_BOUND, columns=k)


def sketched_rows_cost(size: Size, choice: Choice) -> Choice:
    """Cost of written out per-sample gradients with a sketched system; embeddings stay as they are."""
    if size.kind == "lookup":
        return operator_cost(size, choice)
    q = min(choice.sketch_size, size.p)
    drawn = q * size.p if choice.sketch == "gaussian" and q < size.p else 0
    form = size.c * size.n * size.s * size.d_in * size.d_out
    flops = 2.0 * form + 2.0 * size.n * size.n * q
    return _costed(
        choice, size, size.n * (size.p + q) + drawn, flops, 2.0 * size.n * (size.p + q), memory_bound=MEMORY_BOUND
    )


def implicit_cost(size: Size, choice: Choice) -> Choice:
    """Cost of low-rank per-sample gradients with both sides sampled."""
    if size.kind != "product":
        return rows_cost(size, choice)
    r, q = min(choice.rank, size.s), choice.sketch_size
    sampled = min(q, size.d_in) + min(q, size.d_out)
    both = size.d_in + size.d_out
    low_rank = 0.0 if r == size.s else 4.0 * size.n * size.s * both * (r + 4)
    refresh = size.c * (low_rank + 2.0 * size.n**2 * r * r * sampled)
    apply = 2.0 * size.c * size.n * r * (size.d_in * size.d_out + sampled * min(q, size.d_in))
    drawn = sum(q * d for d in (size.d_in, size.d_out) if q < d) if choice.sketch == "gaussian" else 0
    bias = size.n * (size.p - size.c * size.d_in * size.d_out)
    return _costed(choice, size, size.c * size.n * r * (both + sampled) + bias + drawn, refresh, apply)


def paper_code_cost(size: Size, choice: Choice) -> Choice:
    """Cost of the released estimator: implicit above its threshold, else sketched rows."""
    return implicit_cost(size, choice) if choice.implicit else sketched_rows_cost(size, choice)


def _costed(
    choice: Choice,
    size: Size,
    elements: float,
    gram: float,
    apply: float,
    memory_bound: float = 1.0,
    columns: int | None = None,
) -> Choice:
    k = columns or size.n
    solve = SOLVE_FLOPS[choice.solver] * k**3
    nbytes = int((elements + k * k) * size.itemsize)
    return replace(choice, nbytes=nbytes, refresh_flops=gram + solve, apply_flops=apply * memory_bound + 4.0 * k * k)


COSTS: dict[str, Callable[[Size, Choice], Choice]] = {
    "operator": operator_cost,
    "rows": rows_cost,
    "sketched-rows": sketched_rows_cost,
    "implicit": implicit_cost,
    "truncated": truncated_cost,
    "paper-code": paper_code_cost,
}

# option -> estimators it may use, exact ones first
CANDIDATES: dict[str, tuple[str, ...]] = {
    "auto": ("operator", "rows", "implicit"),
    "exact": ("operator", "rows"),
    "explicit": ("sketched-rows",),
    "implicit": ("implicit",),
    "truncated": ("truncated",),
    "paper-code": ("paper-code",),
}


def require_known(options: Options, call: str) -> None:
    """Raise OptionError where the estimator or sketch has no name in the tables, or cannot do what is asked of it."""
    choose(CANDIDATES, options.estimator, call=call, option="estimator")
    choose(SKETCHES, options.sketch, call=call, option="sketch")
    if options.estimator == "paper-code" and options.power != 1.0:
        raise OptionError(
            call, "paper-code knows the natural gradient only", expected="power=1.0", got=options.power,
            fix="Pass power=1.0 or preset='paper'",
        )  # fmt: skip


def choose_block(size: Size, options: Options, interval: int) -> Choice:
    """Return the estimator with the least work a step, refreshes spread over their interval.

    "auto" leaves the exact ones, where a sketch is less work, for layers whose cheapest exact one would hold more than
    EXACT_LIMIT bytes or refresh in more than REFRESH_SHARE backward passes. Where ``explicit_limit`` is given it leaves
    them for layers above so many parameters, if a sketch holds less or is less work.
    """
    if size.members:
        kept = Choice("operator", options.rank, options.sketch, options.sketch_size)
        kept = replace(kept, solver=solver_for("operator", options, interval))
        return tied_cost(size, replace(kept, reason="modules share a parameter"))
    choice = _choose_single(size, options, interval)
    if options.ema > 0:  # merged curvature is kept as columns, whatever each batch gives
        held = truncated_cost(replace(size, kind="product"), choice)
        return replace(choice, nbytes=held.nbytes, apply_flops=held.apply_flops, reason="columns of a moving average")
    return choice


def _choose_single(size: Size, options: Options, interval: int) -> Choice:
    limit = options.explicit_limit
    above = size.p > (PAPER_LIMIT if limit is None else limit)
    base = Choice("", options.rank, options.sketch, options.sketch_size, implicit=above and size.kind == "product")
    names = [name for name in CANDIDATES[options.estimator] if _fits(name, size)]
    solvers = {name: solver_for(name, options, interval) for name in names}
    costed = {name: COSTS[name](size, replace(base, estimator=name, solver=solvers[name])) for name in names}

    def work(choice: Choice) -> float:
        return choice.apply_flops + choice.refresh_flops / interval

    exact = [choice for name, choice in costed.items() if name in ("operator", "rows")]
    if not exact:
        return replace(costed[names[0]], reason="asked for")
    best = min(exact, key=work)
    if "implicit" not in costed:
        return replace(best, reason="least work of the exact forms")
    excess = _excess(size, best, limit)
    if excess is None:
        return replace(best, reason="exact is affordable")
    sketched = costed["implicit"]
    if work(sketched) < work(best) or (limit is not None and sketched.nbytes < best.nbytes):
        return replace(sketched, reason=excess)
    return replace(best, reason=f"{excess}, but a sketch is more work")


def _excess(size: Size, exact: Choice, limit: int | None) -> str | None:
    """Say why a layer is too large for its cheapest exact form, or return None where it is not."""
    if limit is not None:
        return f"above {limit:,} parameters" if size.p > limit and size.kind == "product" else None
    if exact.nbytes > EXACT_LIMIT:
        return f"exact would hold {exact.nbytes / 2**20:,.0f} MiB"
    passes = exact.refresh_flops / size.backward_flops
    return f"exact would refresh in {passes:,.0f} backward passes" if passes > REFRESH_SHARE else None


def solver_for(estimator: str, options: Options, interval: int) -> str:
    """Return what a refresh makes of K: eigenvalues; or less where K serves once, or power is 1 and damping stays."""
    if estimator == "truncated" or options.ema > 0:
        return "eigen"
    if options.curvature_batch == "current" and interval == 1:
        return "direct"
    steady = not callable(options.damping) or estimator == "paper-code"
    return "cholesky" if options.power == 1.0 and (steady or interval == 1) else "eigen"


def reweighted_choice(size: Size, options: Options) -> Choice:
    """Cost of a layer whose direction takes the place of its weight gradient, which backward leaves out."""
    kept = operator_cost(size, Choice("operator", options.rank, options.sketch, options.sketch_size, solver="direct"))
    return replace(kept, apply_flops=4.0 * size.n**2, reason="takes the place of the weight gradient")


def _fits(name: str, size: Size) -> bool:
    if size.kind == "rows":
        return name != "operator"
    return name != "rows" or size.kind == "product"


def choose_all(
    sizes: Mapping[str, Size], options: Options, interval: int, call: str, reweighted: Collection[str] = ()
) -> dict[str, Choice]:
    """Return a choice for every block, within the memory budget where there is one.

    Blocks are moved, largest first, to the form that holds least until the budget is met; those named in
    ``reweighted`` stay, since the columns of their U have to be the samples.

    Raises:
        MemoryBudgetError: Even the smallest forms need more.
    """
    choices = {
        name: reweighted_choice(size, options) if name in reweighted else choose_block(size, options, interval)
        for name, size in sizes.items()
    }
    budget = options.memory_budget
    if budget is None:
        return choices
    movable = [name for name in choices if name not in reweighted]
    for name in sorted(movable, key=lambda name: -choices[name].nbytes):
        if total_bytes(choices) <= budget:
            break
        smaller = _smallest(sizes[name], options, choices[name])
        choices[name] = smaller if smaller.nbytes < choices[name].nbytes else choices[name]
    if total_bytes(choices) > budget:
        largest = max(choices, key=lambda name: choices[name].nbytes)
        raise MemoryBudgetError(
            call, "no plan fits memory_budget", expected=f"at least {total_bytes(choices)} bytes", got=budget,
            layer=largest, fix="Raise memory_budget, lower rank, use a smaller batch or exclude the largest layers",
        )  # fmt: skip
    return choices


def total_bytes(choices: Mapping[str, Choice]) -> int:
    """Bytes held by all blocks."""
    return sum(choice.nbytes for choice in choices.values())


def _smallest(size: Size, options: Options, current: Choice) -> Choice:
    if size.members or options.ema > 0:
        return current
    names = CANDIDATES[options.estimator]
    forms = []
    for name in filter(lambda name: _fits(name, size), names):
        ranks = {options.rank, max(1, options.rank // 4), 1} if name == "implicit" else {options.rank}
        for rank in ranks:
            form = replace(current, estimator=name, rank=rank, reason="to fit the memory budget")
            forms.append(COSTS[name](size, form))
    return min(forms, key=lambda form: form.nbytes)
