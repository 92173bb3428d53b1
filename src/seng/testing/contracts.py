"""Contract suites: what every entry of the layer, sketch and estimator tables must satisfy.

Each check raises AssertionError and says what differs. The library's own tests run them over the whole tables, so
that a new line is tested the day it is written; run them on a layer, sketch or estimator of your own likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..estimators import ESTIMATORS, Estimator, Form
from ..per_sample import LayerGradients, Lookup, Product, Rows
from ..sketch import Identity, draw
from .agreement import EXACT, check_direction, check_rows, relative_error
from .cases import LAYER_CASES, Inputs
from .oracle import samples_dimension

DRAWS = 2000  # of a sketch, for its mean
STANDARD_ERRORS = 3.0  # by which a mean over draws may be off
FULL_ROWS = 64  # at least the parameters of every layer used here
FULL_RANK = 16  # at least the positions, or a side, of every layer used here: nothing is lost


def check_layer(
    make_module: Callable[[], nn.Module],
    make_input: Callable[[], Inputs],
    *,
    seed: int = 0,
    tolerance: float = EXACT,
    **options: Any,
) -> None:
    """Assert that a layer's per-sample gradients and its direction are the dense oracle's, in float64.

    The loss reads the layer's output through fixed random weights, which differ between samples.

    Args:
        make_module: Makes the module; its type, or a base of it, stands in ``seng.layers.LAYERS``.
        make_input: Makes its input [n, ...], n >= 2; several as a tuple, or a mapping by keyword. No other dimension
            of several inputs may have n entries.
        seed: Of all random numbers, those of the two makers included.
        tolerance: Largest relative error.
        **options: As for ``seng.Preconditioner``; ``loss_reduction`` decides how the loss reduces, too.

    Raises:
        AssertionError: The layer breaks the contract.

    Example:
        >>> check_layer(lambda: nn.Linear(3, 2), lambda: torch.randn(4, 3))
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module, inputs = make_module().double(), make_input()
        given: Any = inputs if isinstance(inputs, tuple | Mapping) else (inputs,)
        given = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, given)
        call: Callable[[], Any] = (lambda: module(**given)) if isinstance(given, Mapping) else (lambda: module(*given))
        with torch.no_grad():
            weights = [torch.randn_like(y) for y in _tensors(call())]
    n = _tensors(given)[0].shape[samples_dimension(module)]

    def loss() -> Tensor:
        total = torch.stack([(y.tanh() * w).sum() for y, w in zip(_tensors(call()), weights, strict=True)]).sum()
        return total / n if options.get("loss_reduction", "mean") == "mean" else total

    selection = {key: options[key] for key in ("include", "exclude") if key in options}
    check_rows(module, loss, n, tolerance=tolerance, **selection)
    check_direction(module, loss, n, tolerance=tolerance, **options)


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def check_layer_type(kind: type[nn.Module]) -> None:
    """Run ``check_layer`` on all cases of a layer type, for powers 1 and 0.5 and mean and sum losses.

    Raises:
        AssertionError: There is no case for the type, or one breaks the contract.
    """
    if not LAYER_CASES.get(kind):
        raise AssertionError(f"check_layer_type: no case of {kind.__name__}. Add one to seng.testing.LAYER_CASES.")
    for case, power, reduction in product(LAYER_CASES[kind], (1.0, 0.5), ("mean", "sum")):
        check_layer(*case, power=power, loss_reduction=reduction)


def check_sketch(name: str, *, seed: int = 0) -> None:
    """Assert the laws of a sketch S [q, d] of ``seng.sketch.SKETCHES``.

    Linear; along the last axis of any batch; drawn from its generator and scores alone; the identity for q >= d;
    E[S^T S] = I, whatever the scores: the mean over draws of (S x)^T (S x) is within 3 standard errors of x^T x.

    Raises:
        AssertionError: A law is broken.
    """
    generator = torch.Generator().manual_seed(seed)
    q, d = 5, 13
    x = torch.randn(d, 3, generator=generator, dtype=torch.float64).mul_(torch.linspace(0.1, 2, d)[:, None]).T
    scores = x.square().sum(0)
    first, second = (draw(name, q, torch.Generator().manual_seed(seed), scores) for _ in range(2))
    _require(torch.equal(first(x), second(x)), "check_sketch", f"{name} draws from more than its generator and scores")
    _require(first.size == q and first(x).shape == (3, q), "check_sketch", f"{name} has not the rows asked for")
    _require(relative_error(first(x @ x.T @ x), x @ x.T @ first(x)) <= EXACT, "check_sketch", f"{name} is not linear")
    _require(relative_error(first(x[None])[0], first(x)) <= EXACT, "check_sketch", f"{name} mixes the batch axes")
    for size in (d, d + 1):
        _require(isinstance(draw(name, size, generator, scores), Identity), "check_sketch", f"{name} sketches in vain")
    for given in (scores, torch.zeros_like(scores), scores.flip(0)):
        grams = []
        for _ in range(DRAWS):
            small = draw(name, q, generator, given)(x)
            grams.append(small @ small.T)
        _require_mean(torch.stack(grams), x @ x.T, name)


def _require_mean(draws: Tensor, expected: Tensor, name: str) -> None:
    """Compare in the Frobenius norm: one test for all entries, so that their number needs no correction."""
    off = float((draws.mean(0) - expected).norm())
    error = float(draws.var(0).sum() / len(draws)) ** 0.5
    message = f"{name} is biased: its mean Gram is off by {off:.3g}, with a standard error of {error:.3g}"
    _require(off <= STANDARD_ERRORS * error, "check_sketch", message)


def check_estimator(estimator: str | Estimator, *, tolerance: float = EXACT, **options: Any) -> None:
    """Assert the laws of an estimator where nothing is lost.

    At full rank and with as many rows as parameters each of its forms has F = U U^T, obeys the laws of
    ``seng.per_sample.PerSampleGradients``, and gives the oracle's direction on a model with layers of every kind.

    Args:
        estimator: The estimator, or a name in ``seng.estimators.ESTIMATORS`` for one that loses nothing.
        tolerance: Largest relative error of a direction; an estimator that drops small eigenvalues states its own.
        **options: As for ``seng.Preconditioner``.

    Raises:
        AssertionError: A law is broken.
    """
    full = _full(estimator) if isinstance(estimator, str) else estimator
    for io in _captured(torch.Generator().manual_seed(0)):
        for form in full.forms(io.shape):
            _check_factor(form, io)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, ids = _EveryForm().double(), torch.randint(5, (6, 3))
        weights = torch.randn(6, 2, dtype=torch.float64)
    loss = lambda: (model(ids).tanh() * weights).sum() / 6  # noqa: E731
    check_direction(model, loss, 6, tolerance=tolerance, estimator=full, **options)


def _full(name: str) -> Estimator:
    kind = ESTIMATORS[name]
    taken = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # of a dataclass
    return kind(**{key: value for key, value in {"rows": FULL_ROWS, "rank": FULL_RANK}.items() if key in taken})


def _check_factor(form: Form, io: LayerGradients) -> None:
    u = _columns(io)
    factor = form.build(io, 2.0, torch.float64, torch.Generator().manual_seed(0))
    dense, call = factor.to_dense(), f"check_estimator: {form.name} of {type(io).__name__}"
    generator = torch.Generator().manual_seed(1)
    v = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in io.shapes)
    c = torch.randn(factor.n, generator=generator, dtype=torch.float64)
    flat = torch.cat([x.reshape(-1) for x in v])
    moved = tuple(x.clone() for x in v)
    factor.add_rmv_(moved, c, beta=0.5)
    laws = {
        "U U^T is not the Fisher": (dense @ dense.T, 4.0 * u @ u.T),
        "gram() is not U^T U": (factor.gram(), dense.T @ dense),
        "mv(v) is not U^T v": (factor.mv(v), dense.T @ flat),
        "add_rmv_(v, c, beta) is not beta v + U c": (
            torch.cat([x.reshape(-1) for x in moved]),
            0.5 * flat + dense @ c,
        ),
    }
    for message, (got, expected) in laws.items():
        _require(relative_error(got, expected) <= EXACT, call, message)
    _require(factor.nbytes() > 0, call, "nbytes() counts nothing")


def _captured(generator: torch.Generator) -> Iterator[LayerGradients]:
    """Products with one and many positions, with and without groups and bias; a lookup; rows."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for c, s, d_in, d_out, bias in [(1, 1, 4, 3, True), (1, 6, 2, 4, False), (2, 3, 3, 2, True), (1, 9, 3, 2, True)]:
        yield Product(random(c, 5, s, d_in), random(c, 5, s, d_out), bias)
    yield Lookup(torch.randint(4, (5, 6), generator=generator), random(5, 6, 3), 7)
    yield Rows.of((random(5, 4), random(5, 2)))


def _columns(io: LayerGradients) -> Tensor:
    """Return U [p, n] written out by its definition."""
    if isinstance(io, Rows):
        return torch.cat(io.parts, 1).T
    if isinstance(io, Lookup):
        rows = io.g.new_zeros(io.n, io.vocabulary, io.g.shape[2])
        for i in range(io.n):
            for s in range(io.g.shape[1]):
                rows[i, io.ids[i, s]] += io.g[i, s]
        return rows.flatten(1).T
    assert isinstance(io, Product)
    weight = torch.einsum("cnsi,cnso->ncoi", io.a, io.g).flatten(1)
    bias = io.g.sum(2).transpose(0, 1).flatten(1)
    return torch.cat([weight, bias] if io.bias else [weight], 1).T


class _EveryForm(nn.Module):
    """A small model with a lookup, products with one and many positions and groups, and rows; six samples."""

    def __init__(self):
        super().__init__()
        self.lookup = nn.Embedding(5, 4)
        self.many = nn.Linear(4, 4)
        self.grouped = nn.Conv1d(3, 6, 2, groups=3)
        self.norm = nn.LayerNorm(3)
        self.one = nn.Linear(18, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.grouped(self.many(self.lookup(ids)).tanh())
        return self.one(self.norm(x).tanh().flatten(1))


def _require(good: bool, call: str, problem: str) -> None:
    if not good:
        raise AssertionError(f"{call}: {problem}")
