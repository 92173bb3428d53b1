"""Terms of the loss: a function, its samples, its weight; values, losses and derivatives of all of them.

Everything runs over pieces of the batch, a bounded number of samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap

from ..errors import BatchError, OptionError
from .config import weights_of
from .fishers import Fisher, SampleFunction
from .plain import SpelledOut
from .ranks import Ranks
from .trees import Leaves, Params, cast, count_samples, take

VECTORISED = "a function of the parameters and the sample alone"
UNFIT = {  # torch's words, and what they mean
    "randomness": "one that draws random numbers, as dropout does",
    "updated in place": "one that changes a tensor of its own, as batch norm does in training",
    "in-place operation": "one that changes a tensor of its own, as batch norm does in training",
    "setup_context": "one with an autograd.Function of the old form, as full backward hooks have",
}


@dataclass(frozen=True)
class Term:
    """One term of the loss on this rank.

    Args:
        name: Its name.
        fn: (leaves, one sample) -> any shape, or (leaves, all samples) -> any shape where not ``per_sample``.
        samples: Tree of tensors whose first dimension is the samples.
        count: Number of samples.
        weight: Weight in the loss.
        per_sample: Which of the two ``fn`` is.
    """

    name: str
    fn: SampleFunction
    samples: Any
    count: int
    weight: float
    per_sample: bool

    def values(self, leaves: Leaves, start: int, stop: int) -> Float[Tensor, " m"]:
        """Return the function's values at the samples start..stop, sample by sample; all where not per sample."""
        if not self.per_sample:
            return self.fn(leaves, self.samples).reshape(-1)
        return vmap(self.fn, (None, 0))(leaves, take(self.samples, start, stop)).reshape(-1)

    def pieces(self, most: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of at most so many samples; the whole batch where the function takes it whole."""
        step = max(1, most) if self.per_sample else self.count
        for start in range(0, self.count, step):
            yield start, min(start + step, self.count)

    def mapped(self, change: Callable[[SampleFunction], SampleFunction]) -> Term:
        """Return the term with another function of the same samples."""
        return replace(self, fn=change(self.fn))

    def in_dtype(self, dtype: torch.dtype) -> Term:
        """Return the term with floating samples in another dtype."""
        return replace(self, samples=cast(self.samples, dtype))


def terms_of(
    residual_fn: Any, params: Params, batch: Any, weights: Mapping[str, Any] | None, per_sample: bool, call: str
) -> list[Term]:
    """Pair functions with their samples and weights; a single function is the term "residual".

    Raises:
        OptionError: A function is none, or a weight names no term.
        BatchError: The batch does not fit.
    """
    functions = dict(residual_fn) if isinstance(residual_fn, Mapping) else {"residual": residual_fn}
    if not functions or not all(map(callable, functions.values())):
        raise OptionError(
            call, "residual_fn cannot be used", expected="a function (params, batch), or a dict of them",
            got={name: type(fn).__name__ for name, fn in functions.items()}, fix="Pass functions",
        )  # fmt: skip
    batches = batch if isinstance(residual_fn, Mapping) else {"residual": batch}
    if not isinstance(batches, Mapping) or set(batches) != set(functions):
        raise BatchError(
            call, "batch does not fit the terms", expected=f"a dict with the keys {sorted(functions)}",
            got=sorted(batches) if isinstance(batches, Mapping) else type(batches).__name__,
            fix="Give each function its samples",
        )  # fmt: skip
    known = weights_of(call, weights)
    if not set(known) <= set(functions):
        raise OptionError(
            call, "weights name no term", expected=f"names among {sorted(functions)}", got=sorted(known),
            fix="Use the terms' names",
        )  # fmt: skip
    return [
        Term(
            name, _bound(name, fn, params, call), batches[name], count_samples(batches[name], call, name),
            known.get(name, 1.0), per_sample,
        )
        for name, fn in functions.items()
    ]  # fmt: skip


def _bound(name: str, fn: Callable[..., Any], params: Params, call: str) -> SampleFunction:
    def checked(leaves: Leaves, sample: Any) -> Tensor:
        with in_words(call, f"function of {name!r}"), SpelledOut() if params.normalises else nullcontext():
            got = fn(params.bind(leaves), sample)
        if isinstance(got, Tensor) and got.is_floating_point() and got.numel():
            return got
        raise BatchError(
            call, f"function of {name!r} cannot be used", expected="a floating tensor with one or more numbers",
            got=f"{got.dtype} {list(got.shape)}" if isinstance(got, Tensor) else type(got).__name__,
            fix="Return residuals as a tensor",
        )  # fmt: skip

    return checked


@contextmanager
def in_words(call: str, function: str) -> Iterator[None]:
    """Raise BatchError where torch.func refuses a function in words of its own."""
    try:
        yield
    except (RuntimeError, BatchError) as error:
        said = str(error.__cause__ or error)  # of derivatives within a residual, the residual is named
        for sign, cause in UNFIT.items():
            if sign in said:
                raise BatchError(
                    call, f"{function} cannot be vectorised", expected=VECTORISED, got=cause,
                    fix="Call eval() on the module, or take that part out",
                ) from error  # fmt: skip
        raise


def shared(term: Term, ranks: Ranks, call: str) -> Term:
    """Return the term with the samples this rank works on.

    Raises:
        BatchError: Samples are dealt, but cannot be: fewer than ranks, or a function that takes them whole.
    """
    part = ranks.share(term.count)
    if part == slice(0, term.count):
        return term
    if not term.per_sample or term.count < ranks.world:
        raise BatchError(
            call, f"samples of {term.name!r} cannot be dealt", expected=f"per_sample=True and >= {ranks.world} samples",
            got=(term.per_sample, term.count), fix="Pass each rank its own samples and distributed='joined'",
        )  # fmt: skip
    return replace(term, samples=take(term.samples, part.start, part.stop), count=part.stop - part.start)


def values_of(terms: list[Term], leaves: Leaves, most: int) -> list[Float[Tensor, " m"]]:
    """Return each term's values, computed at most so many samples at a time."""
    return [torch.cat([term.values(leaves, *piece) for piece in term.pieces(most)]).detach() for term in terms]


def losses_of(
    terms: list[Term], fisher: Fisher, leaves: Leaves, most: int
) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"]]:
    """Return the sum of each term's losses, and how many there are, on this rank."""
    sums, counts = [], []
    for term in terms:
        lossy = term.mapped(fisher.losses)
        parts = [lossy.values(leaves, start, stop) for start, stop in lossy.pieces(most)]
        sums.append(torch.stack([part.sum() for part in parts]).sum())
        counts.append(sum(part.numel() for part in parts))
    total = torch.stack(sums)
    return total, total.new_tensor(counts)


def loss_gradient(
    terms: list[Term], fisher: Fisher, params: Params, factors: list[float], most: int
) -> Float[Tensor, " p"]:
    """Return the gradient of sum_t factor_t * (sum of the losses of term t) on this rank. Cost: one reverse pass."""
    leaves = params.values()
    total = leaves[0].new_zeros(params.size)
    for term, factor in zip(terms, factors, strict=True):
        lossy = term.mapped(fisher.losses)
        for piece in lossy.pieces(most):
            pull = vjp(lambda *q: lossy.values(q, *piece).sum(), *leaves)[1]  # noqa: B023
            total += factor * torch.cat([part.reshape(-1) for part in pull(total.new_ones(()))])
    return total
