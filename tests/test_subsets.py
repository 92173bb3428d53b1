"""Curvature from some of a batch's samples: unbiased, the same for all layers, the dense oracle's of that subset."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import combinations, product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import seng
from seng import SENG, Preconditioner
from seng.config import Options
from seng.errors import CaptureError, OptionError
from seng.subsets import Subset, chosen, count_drawn, counts_drawn
from seng.testing import (
    EXACT,
    LAYER_CASES,
    Case,
    blocks_of,
    dense_direction,
    flat_gradient,
    oracle_rows,
    relative_error,
)
from seng.testing.oracle import samples_dimension
from seng.types import Product

from .capturing import N, assert_same, loss_of, mlp, random, uses

MEAN = 1e-12  # float64 rounding of a mean over all subsets
FULL: dict[str, dict[str, Any]] = {  # nothing is lost
    "exact": {}, "explicit": {"sketch_size": 10_000}, "implicit": {"rank": 64, "sketch_size": 10_000}, "truncated": {},
    "auto": {"rank": 64, "sketch_size": 10_000},
}  # fmt: skip
CASES = [(kind, k) for kind, cases in LAYER_CASES.items() for k in range(len(cases))]
ROUND = 8  # refreshes in which each layer is compared with its gradient
ALL = 2  # refreshes at which all layers are compared with their gradients, and recorded whole for that


def network() -> nn.Sequential:
    """A network with a layer that is cut in its hook, one that is cut later, and rows; samples see one another."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5)]
        return nn.Sequential(*layers, nn.Linear(5, 2)).double()


def inputs(n: int, seed: int = 1) -> Tensor:
    return random(seed, n, 2, 4)


def losses(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x).tanh() - 1).square().sum(1)


def dense(pre: Preconditioner) -> dict[str, Tensor]:
    return {name: own.factor.to_dense() for name, own in pre._curvature.items() if own.factor is not None}


def drawn_by(subset: tuple[int, ...]) -> Callable[..., Tensor]:
    return lambda self, place, n, count: torch.tensor(subset)


# -- which samples are drawn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [2, 3, 7, 0.1, 0.3, 0.5, 0.99, 1.0, 40])
@pytest.mark.parametrize("sizes", [[8], [4, 4], [1, 6, 3], [5, 0, 2], [1] * 12], ids=str)
def test_counts_of_micro_batches_add_up_and_fit_into_what_hooks_keep(samples: float, sizes: list[int]) -> None:
    counts, subset = counts_drawn(samples, sizes), Subset(samples, 0, 0)
    wanted = count_drawn(samples, sum(sizes))
    assert all(min(1, n) <= k <= subset.most(n) <= n for k, n in zip(counts, sizes, strict=True))
    assert sum(counts) == wanted or wanted < sum(n > 0 for n in sizes)
    assert wanted == (min(sum(sizes), samples) if isinstance(samples, int) else max(2, round(samples * sum(sizes))))


def test_draws_are_ascending_nested_and_uniform() -> None:
    counts = torch.zeros(6)
    for seed in range(600):
        subset = Subset(3, seed, 4)
        index = subset.first(0, 6, 3)
        assert index.tolist() == sorted(set(index.tolist()))
        assert set(index.tolist()) <= set(subset.first(0, 6, 5).tolist())
        counts[index] += 1
    assert (counts - 300).abs().max() < 4 * (600 * 0.25) ** 0.5  # four standard deviations
    assert not torch.equal(Subset(8, 0, 0).first(0, 64, 8), Subset(8, 0, 1).first(0, 64, 8))
    assert not torch.equal(Subset(8, 0, 0).first(0, 64, 8), Subset(8, 0, 0).first(1, 64, 8))


def test_samples_of_overlapping_patches_share_their_memory() -> None:
    x = random(1, 5, 2, 6)
    a = x.as_strided((2, 5, 4, 1, 3), (6, 12, 1, 6, 1), x.storage_offset())
    io, index = Product(a, random(2, 2, 5, 4, 3)), torch.tensor([1, 3])
    some = chosen(io, index)
    assert isinstance(some, Product)
    assert torch.equal(some.a, a[:, index])
    assert torch.equal(some.g, io.g[:, index])
    assert some.a.untyped_storage().nbytes() == 2 * 2 * 6 * 8


# -- unbiased --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("estimator", ["exact", "explicit"])
def test_mean_fisher_over_all_subsets_is_that_of_the_batch(reduction: str, check: bool, estimator: str) -> None:
    n, k, totals = 5, 2, dict[str, Tensor]()
    model, x = network(), inputs(5)
    options: dict[str, Any] = {"estimator": estimator, "loss_reduction": reduction, "gradient_check": check}
    subsets = list(combinations(range(n), k))
    with patch.object(seng.estimators.Auto, "explicit_limit", None):
        for own in subsets:
            with patch.object(Subset, "first", drawn_by(own)):
                u = _factors(model, x, reduction, curvature_samples=k, **options)
            assert {own.shape[1] for own in u.values()} == {k}
            totals = {name: totals.get(name, 0) + own @ own.T / len(subsets) for name, own in u.items()}
        whole = _factors(model, x, reduction, **options)
    for name, own in whole.items():
        assert relative_error(totals[name], own @ own.T) <= MEAN, name


def _factors(model: nn.Module, x: Tensor, reduction: str, **options: Any) -> dict[str, Tensor]:
    model.zero_grad()
    pre = Preconditioner(model, **options)
    loss = losses(model, x)
    (loss.mean() if reduction == "mean" else loss.sum()).backward()
    pre.step()
    pre.close()
    return dense(pre)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mean_fisher_over_all_subsets_of_unequal_micro_batches_is_that_of_the_batch(reduction: str) -> None:
    model, x, sizes, totals = mlp(), random(1, N, 3), [4, 2], dict[str, Tensor]()
    fixed: dict[str, Any] = {"estimator": "exact", "loss_reduction": reduction}

    def factors(**options: Any) -> dict[str, Tensor]:
        model.zero_grad()
        pre = Preconditioner(model, **options, **fixed)
        for part in x.split(sizes):
            loss_of(model, part, total=N if reduction == "mean" else 1).backward()
        pre.step()
        pre.close()
        return dense(pre)

    pairs = list(product(combinations(range(4), 2), combinations(range(2), 1)))
    assert counts_drawn(3, sizes) == [2, 1]
    for own in pairs:

        def first(self: Subset, place: int, n: int, count: int, own: Any = own) -> Tensor:
            return torch.tensor([*own[place], *(k for k in range(n) if k not in own[place])][:count]).sort().values

        with patch.object(Subset, "first", first):
            u = factors(curvature_samples=3)
        totals = {name: totals.get(name, 0) + own @ own.T / len(pairs) for name, own in u.items()}
    for name, own in factors().items():
        assert relative_error(totals[name], own @ own.T) <= MEAN, name


# -- the dense oracle ------------------------------------------------------------------------------------------------


def _case(kind: type[nn.Module], case: Case, reduction: str) -> tuple[nn.Module, list[Callable[[], Tensor]], int]:
    """Return a layer with another one behind it, two losses, and the number of samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, given = case.make_module().double(), case.make_input()
        given = given if isinstance(given, tuple | Mapping) else (given,)
        given = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, given)
        call = (lambda: module(**given)) if isinstance(given, Mapping) else (lambda: module(*given))
        with torch.no_grad():
            weights = [[torch.randn_like(y) for y in _tensors(call())] for _ in range(2)]
    n = _tensors(given)[0].shape[samples_dimension(module)]

    def loss(own: list[Tensor]) -> Tensor:
        total = torch.stack([(y.tanh() * w).sum() for y, w in zip(_tensors(call()), own, strict=True)]).sum()
        return total / n if reduction == "mean" else total

    return module, [lambda own=own: loss(own) for own in weights], n


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


@pytest.mark.parametrize(("kind", "k"), CASES, ids=str)
@pytest.mark.parametrize("batch", ["previous", "current"])
def test_direction_is_that_of_the_subset_and_the_whole_gradient(kind: type[nn.Module], k: int, batch: str) -> None:
    for power, reduction, trust in product((1.0, 0.5), ("mean", "sum"), (None, 0.3)):
        module, closures, n = _case(kind, LAYER_CASES[kind][k], reduction)
        blocks = blocks_of(module)
        options: dict[str, Any] = {"power": power, "loss_reduction": reduction, "trust": trust, "refresh_every": 1}
        options |= {"curvature_batch": batch, "estimator": "exact", "gradient_check": power == 1}
        every = [oracle_rows(module, closure, n) for closure in closures]
        pre = Preconditioner(module, curvature_samples=2, **options)
        kept = None
        for step, (closure, rows) in enumerate(zip(closures, every, strict=True)):
            index = Subset(2, 0, step).first(0, n, 2)
            own = {name: (rows[name] * (n if reduction == "mean" else 1))[index] for name in blocks}
            used = own if kept is None or batch == "current" else kept
            kept, summed = own, 1 if reduction == "mean" else n
            module.zero_grad()
            closure().backward()
            expected = {
                name: summed * dense_direction(
                    used[name], flat_gradient(blocks[name]) / summed, damping=0.1, power=power, natural=power < 1,
                    trust=trust,
                )
                for name in blocks
            }  # fmt: skip
            pre.step()
            for name, block in blocks.items():
                if bool(used[name].any()) and bool(expected[name].any()):
                    assert relative_error(flat_gradient(block), expected[name]) <= EXACT, (name, power, reduction)
        pre.close()


@pytest.mark.parametrize("estimator", FULL)
@pytest.mark.parametrize("batch", ["previous", "current"])
@pytest.mark.parametrize("options", [{}, {"positions": "expand", "sketch_size": 10_000}, {"ema": 0.5}], ids=str)
def test_every_estimator_takes_the_subset_of_all_layers(estimator: str, batch: str, options: dict[str, Any]) -> None:
    """At full size each gives what it gives of a batch whose other samples were left out of the curvature by hand."""
    options = {"estimator": estimator, "curvature_batch": batch, "refresh_every": 1, **FULL[estimator], **options}
    results = []
    for by_hand in (False, True):
        model, n, k = mlp(), N, 3
        pre = Preconditioner(model, curvature_samples=None if by_hand else k, **options)
        for step in range(3):
            x = random(step + 1, n, 3)
            model.zero_grad()
            if by_hand:
                loss_of(model, x[Subset(k, 0, step).first(0, n, k)]).backward()
                pre._capture.armed = False  # the gradient alone follows
                model.zero_grad()
                loss_of(model, x).backward()
                pre._capture.armed, pre._samples._checked = True, lambda every: set()  # type: ignore[method-assign]
            else:
                loss_of(model, x).backward()
            pre.step()
        pre.close()
        results.append({name: flat_gradient(block) for name, block in blocks_of(model).items()})
    assert_same(*results, tolerance=EXACT)


# -- where samples are cut -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [[12], [6, 6], [5, 7]], ids=str)
@pytest.mark.parametrize("make", [network, mlp])
def test_directions_are_the_same_bits_whether_samples_are_compared_or_cut_at_once(
    splits: list[int], make: Callable[[], nn.Module]
) -> None:
    x, results = inputs(12) if make is network else random(1, 12, 3), []
    for check in (True, False):
        model = make()
        pre = Preconditioner(model, curvature_samples=4, curvature_batch="current", gradient_check=check)
        for part in x.split(splits):
            loss_of(model, part, total=12).backward()
        pre.step()
        pre.close()
        results.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_hooks_hold_no_more_than_the_samples_drawn() -> None:
    held = {}
    for samples in (None, 8):
        model, x = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4))), torch.randn(64, 10, 32)
        pre = Preconditioner(model, curvature_samples=samples, refresh_every=1)
        for step in range(ALL + 1):
            model.zero_grad()
            model(x).square().mean().backward()
            if step == ALL:
                tensors = {
                    t.untyped_storage().data_ptr(): t for use in uses() for t in (*use.args, *use.grads.values())
                }
                held[samples] = sum(t.untyped_storage().nbytes() for t in tensors.values())
            pre.step()
        pre.close()
    one_layer = 2 * 64 * 10 * 32 * 4  # of four, the one whose samples are compared at this refresh
    assert held[8] <= held[None] / 8 + one_layer


def test_a_model_called_in_parts_is_cut_after_the_backward_pass() -> None:
    x, results = inputs(6), []
    for parts in (False, True):
        model = network()
        pre = Preconditioner(model, curvature_samples=3, curvature_batch="current", gradient_check=False)
        y = model[4:](model[:4](x)) if parts else model(x)
        (y.tanh() - 1).square().sum(1).mean().backward()
        pre.step()
        pre.close()
        results.append({name: flat_gradient(block) for name, block in blocks_of(model).items()})
    assert_same(*results)


def test_an_unbatched_input_whose_first_dimension_is_as_long_as_the_batch_is_one_sample() -> None:
    x, results = random(1, 4, 9), []
    for samples in (None, 2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1)).double()
        pre = Preconditioner(model, curvature_samples=samples, curvature_batch="current", gradient_check=False)
        for row in (x, x + 1):
            (model(row).square().sum() / 2).backward()
        pre.step()
        pre.close()
        results.append(model[0].weight.grad)
    assert torch.equal(*results)  # pyright: ignore[reportArgumentType]


# -- safety ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change_at", [0, 4])
def test_a_changed_gradient_is_found_within_a_round_of_refreshes(change_at: int) -> None:
    model = network()
    pre = Preconditioner(model, curvature_samples=3, refresh_every=1)
    passed = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(change_at + ROUND):
            model.zero_grad()
            losses(model, inputs(8, step)).mean().backward()
            if step >= change_at:
                model[4].weight.grad.mul_((torch.arange(12) % 2).double())  # type: ignore[union-attr]
            pre.step()
            passed.append(set(pre.coverage().passed_through))
    assert passed[:change_at] == [set()] * change_at
    assert passed[-1] == {"4.weight", "4.bias"}
    assert any("do not add up" in str(own.message) for own in said)
    pre.close()


@pytest.mark.parametrize("step", range(4))
def test_an_input_overwritten_in_place_is_refused_or_was_cut_before(step: int) -> None:
    model, results = mlp(), []
    pre = Preconditioner(model, curvature_samples=3, refresh_every=1)
    for own in range(step + 1):
        model.zero_grad()
        x = random(own, N, 3)
        loss = loss_of(model, x)
        loss.backward()
        if own == step:
            x.zero_()
            whole = "0" in pre._capture.subset.whole  # type: ignore[union-attr]
            if whole:
                with pytest.raises(CaptureError, match="modified in place"):
                    pre.step()
                break
        results.append(pre.step())
    assert all(results)
    pre.close()


def test_gradients_cleared_to_zeros_are_noticed_where_those_of_the_samples_drawn_were_zero() -> None:
    model, x, kept = mlp(), random(1, N, 3), Subset(2, 0, 0).first(0, N, 2)
    pre = Preconditioner(model, curvature_samples=2, gradient_check=False)
    others = torch.ones(N, dtype=torch.float64).index_fill(0, kept, 0.0)
    (model(x).square().sum(1) * others).mean().backward()
    model.zero_grad(set_to_none=False)
    loss_of(model, x).backward()
    pre.step()
    assert {own.batch for own in pre._curvature.values()} == {N}
    pre.close()


# -- what stays as it is ---------------------------------------------------------------------------------------------


def _trained(steps: int, samples: float | None, resume_at: int | None = None, **options: Any) -> Tensor:
    model, x = network(), inputs(8)
    given = {"refresh_every": 2, "curvature_samples": samples, **options}
    optimizer = SENG(model, lr=0.05, **given)
    for step in range(steps):
        if step == resume_at:
            state = optimizer.state_dict()
            optimizer.close()
            optimizer = SENG(model, lr=0.05, **given)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        (losses(model, x + step).sum() / (1 if options.get("loss_reduction") == "sum" else 8)).backward()
        optimizer.step()
    optimizer.close()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("samples", [8, 100, 1.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"curvature_batch": "current"}, {"ema": 0.5}, {"loss_reduction": "sum"}, {"positions": "expand"}],
    ids=str,
)
def test_as_many_samples_as_the_batch_change_no_bit(samples: float, options: dict[str, Any]) -> None:
    assert torch.equal(_trained(9, samples, **options), _trained(9, None, **options))


@pytest.mark.parametrize("resume_at", [3, 4, 7])
@pytest.mark.parametrize("options", [{}, {"curvature_batch": "current"}, {"power": 1.0}], ids=str)
def test_training_goes_on_bit_for_bit(resume_at: int, options: dict[str, Any]) -> None:
    straight = _trained(9, 3, **options)
    assert torch.equal(_trained(9, 3, resume_at, **options), straight)
    assert not torch.equal(_trained(9, 3, seed=1, **options), straight)


def test_statistics_count_the_samples_drawn() -> None:
    model = mlp()
    pre = Preconditioner(model, curvature_samples=0.5)
    loss_of(model, random(1, N, 3)).backward()
    pre.step()
    assert {own.samples for own in pre.stats().values()} == {N // 2}
    assert all(len(own.spectrum) == N // 2 for own in pre.stats().values())
    pre.close()


def test_reweighting_takes_all_samples() -> None:
    options: dict[str, Any] = {"curvature_batch": "current", "refresh_every": 1, "estimator": "exact"}
    with pytest.raises(OptionError, match="reweight does not go with this curvature_samples"):
        Options.build("SENG()", {**options, "reweight": True, "distributed": "none", "curvature_samples": 8})


def test_plans_price_the_samples_drawn() -> None:
    model, x = mlp(), random(1, 64, 3)
    few, whole = seng.plan(model, x, curvature_samples=8), seng.plan(model, x)
    assert few.backward_flops == whole.backward_flops
    assert few.nbytes == seng.plan(model, x[:8]).nbytes < whole.nbytes
    assert "8 of 64 samples" in str(few)
    assert "samples make curvature" not in str(whole)
