"""Laws that hold for every family of models: no step fails, what is captured is right, training is no worse."""

from __future__ import annotations

from functools import cache
from math import isfinite, sqrt
from statistics import median

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

import seng

from .family import Family, Losses
from .library import LIBRARY
from .networks import NETWORKS
from .paired_networks import PAIRED_NETWORKS
from .positions import POSITIONS
from .routed_networks import ROUTED_NETWORKS
from .sequence_networks import SEQUENCE_NETWORKS
from .tasks import LENGTH, Batch

FAMILIES: dict[str, Family] = {**LIBRARY, **NETWORKS, **SEQUENCE_NETWORKS, **ROUTED_NETWORKS, **PAIRED_NETWORKS}

RATE, MOMENTUM, DECAY = 0.03, 0.9, 5e-4
STEPS, BATCH, SEEDS = 40, 16, (0, 1, 2)
LAST = 8  # steps whose losses are averaged
WORSE = 1.2  # times SGD's loss
UNSTEADY = {  # where the law does not hold yet at the end, but at the best of the way
    "gan": "both players circle the point of rest, which they reach in half of SGD's steps",
}
ABOUT_ZERO = 1e-3  # of the first loss: losses below are alike
COUNTS = (5, 6)  # of samples: no other dimension of a family, nor a divisor of one
EQUAL = 1e-6  # relative error in float64, where single samples and batches sum in other orders
ROUNDING = 1e-12  # of the whole gradient: a parameter whose true gradient is zero has no relative error

every_family = pytest.mark.parametrize("name", FAMILIES)
pytestmark = pytest.mark.filterwarnings("ignore:seng:UserWarning")


def natural(model: nn.Module) -> Optimizer:
    return seng.SENG(model, lr=RATE)


def plain(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=DECAY)


@cache
def trained(name: str, seed: int) -> list[float]:
    return FAMILIES[name].train(seed, natural, STEPS, BATCH)


@every_family
def test_no_step_raises(name: str) -> None:
    assert len(trained(name, SEEDS[0])) == STEPS


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("name", [*FAMILIES, *POSITIONS])
def test_claimed_gradients_are_those_of_single_samples(name: str, n: int) -> None:
    family = {**FAMILIES, **POSITIONS}[name]
    if not family.apart:
        pytest.skip("samples have no losses of their own")
    model, batch = family.made(0).double(), family.task(n, Generator().manual_seed(n))
    batch = tuple(x.double() if x.is_floating_point() else x for x in batch)
    for player, losses in family.players.items():
        losses(model.train(), *batch)  # so that running statistics are not those of a new model
        model.eval()
        expected = single_gradients(model, player, losses, batch)
        pre = seng.Preconditioner(model.get_submodule(player), estimator="exact")
        model.zero_grad()
        losses(model, *batch).mean().backward()
        means = {key: rows.mean(0, keepdim=True) for key, rows in expected.items()}
        assert not differences(gradients(model.get_submodule(player)), means), f"{name}: hooks change gradients"
        assert pre.step()
        claims = claimed_gradients(pre)
        assert set(claims) == set(pre.coverage().preconditioned)
        wrong = differences(claims, expected)
        assert not wrong, f"{name} {player}: relative errors of {wrong}"


def single_gradients(model: nn.Module, player: str, losses: Losses, batch: Batch) -> dict[str, Tensor]:
    """Return the gradients [n, p] of each sample run by itself, by name of the parameter."""
    trainable = {name: p for name, p in model.get_submodule(player).named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in trainable}
    for i in range(len(batch[0])):
        model.zero_grad()
        losses(model, *(x[i : i + 1] for x in batch)).sum().backward()
        for name, p in trainable.items():
            rows[name].append(torch.zeros_like(p) if p.grad is None else p.grad)
    return {name: torch.stack(own).reshape(len(own), -1) for name, own in rows.items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.reshape(1, -1) for name, p in model.named_parameters() if p.grad is not None}


def claimed_gradients(pre: seng.Preconditioner) -> dict[str, Tensor]:
    """Return the per-sample gradients [n, p] behind the curvature held, by name of the parameter."""
    claims = {}
    for name, curvature in pre._curvature.items():
        block, factor = pre.layout.blocks[name], curvature.factor
        sizes = [p.numel() for p in block.parameters]
        if factor is None:  # all gradients were zero
            rows = torch.zeros(curvature.samples, sum(sizes), dtype=torch.float64)
        else:
            rows = factor.to_dense().T * sqrt(factor.n)  # columns of U are u_i / sqrt(n)
        claims |= dict(zip(block.parameter_names, rows.split(sizes, 1), strict=True))
    return claims


def differences(claims: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, str]:
    """Return the relative error of each parameter whose gradients are not equal, or their numbers of samples."""
    zero = ROUNDING * float(torch.cat(list(expected.values()), 1).norm())
    wrong = {}
    for name, got in claims.items():
        own = expected[name]
        if len(got) <= got.shape[1] < len(own):  # as few rows as parameters, with the same second moment
            got, own = got.T @ got / len(got), own.T @ own / len(own)
        if got.shape != own.shape:
            wrong[name] = f"{len(got)} rows, {len(own)} samples"
            continue
        error, size = float((got - own).norm()), float(own.norm())
        if not error <= EQUAL * size + zero:
            wrong[name] = f"{error / max(size, zero):.2g}"
    return wrong


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.apart and "" in family.players])
def test_verify_finds_what_is_wrong_by_accident(name: str) -> None:
    family = FAMILIES[name]  # as many samples as there are positions: shapes cannot tell them apart
    model, batch = family.made(0).double(), family.task(LENGTH, Generator().manual_seed(0))
    batch = tuple(x.double() if x.is_floating_point() else x for x in batch)
    losses = family.players[""]
    losses(model, *batch)
    model.eval()
    expected = single_gradients(model, "", losses, batch)
    model.zero_grad()
    pre = seng.Preconditioner(model, estimator="exact")
    losses(model, *batch).mean().backward()
    pre.step()
    wrong, blocks = differences(claimed_gradients(pre), expected), set(pre._curvature)
    pre.close()
    report = seng.verify(model, lambda: losses(model, *batch).mean(), per_sample=True)
    found = {block for block in blocks if report.apart.get(block, 0.0) > report.apart_tolerance}
    assert bool(found) == bool(wrong), f"{name}: wrong are {wrong}, found are {found}"


@every_family
def test_loss_is_no_higher_than_that_of_sgd(name: str) -> None:
    ratios, nearest = [], []
    for seed in SEEDS:
        reference = FAMILIES[name].train(seed, plain, STEPS, BATCH)
        ours, theirs, zero = ending(trained(name, seed)), ending(reference), ABOUT_ZERO * reference[0]
        assert theirs < reference[0], "SGD trains the model"
        ratios.append(ours / max(theirs, zero) if isfinite(ours) else float("inf"))
        nearest.append(least(trained(name, seed)) / max(least(reference), zero))
    assert median(nearest) <= WORSE, f"{name}: at best {[f'{ratio:.3g}' for ratio in nearest]} times SGD's best"
    if name in UNSTEADY and median(ratios) > WORSE:
        pytest.xfail(UNSTEADY[name])
    assert median(ratios) <= WORSE, f"{name}: {[f'{ratio:.3g}' for ratio in ratios]} times the loss of SGD"


def ending(losses: list[float]) -> float:
    return sum(losses[-LAST:]) / LAST


def least(losses: list[float]) -> float:
    """Return the least mean of so many losses in a row as ``ending`` takes."""
    return min(ending(losses[: step + 1]) for step in range(LAST - 1, len(losses)))
