"""Directions of whole models against the dense oracle: shared and tied parameters, held curvature, positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from seng import Exact, Preconditioner
from seng.per_sample import LayerGradients, Lookup, Product
from seng.testing import (
    EXACT,
    blocks_of,
    check_direction,
    check_rows,
    dense_direction,
    flat_gradient,
    oracle_rows,
    relative_error,
)

N = 5
EXACTLY: dict[str, Any] = {"estimator": "exact", "scale": "natural"}

powers = pytest.mark.parametrize("power", [1.0, 0.7, 0.5])


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


# -- shared and tied parameters -----------------------------------------------------------------------------------


class _Through(nn.Module):
    """Applies a path of modules by name, some of them more than once, with a nonlinearity between."""

    def __init__(self, path: str, **modules: nn.Module):
        super().__init__()
        self.path: Sequence[str] = path.split()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.path:
            x = self.get_submodule(name)(x).tanh()
        return x


def _tied_linears() -> nn.Module:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return _Through("first second last", first=first, second=second, last=nn.Linear(3, 2))


def _tied_with_and_without_bias() -> nn.Module:
    first, second, third = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
    second.weight = third.weight = first.weight
    third.bias = first.bias
    return _Through("first second third", first=first, second=second, third=third)


def _tied_norms() -> nn.Module:
    first, second = nn.LayerNorm(3), nn.LayerNorm(3)
    second.bias = first.bias
    return _Through(
        "first middle second last", first=first, middle=nn.Linear(3, 3), second=second, last=nn.Linear(3, 2)
    )


SHARING: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear twice": (lambda: _Through("a b a", a=nn.Linear(3, 3), b=nn.Linear(3, 3)), (N, 3)),
    "linear thrice, with positions": (lambda: _Through("a a a b", a=nn.Linear(3, 3), b=nn.Linear(3, 1)), (N, 2, 3)),
    "convolution on two sizes": (
        lambda: _Through("a a", a=nn.Conv2d(2, 2, 2, groups=2, bias=False)), (N, 2, 4, 4)
    ),
    "convolution of strides": (lambda: _Through("a a b", a=nn.Conv1d(2, 2, 2, 2), b=nn.Conv1d(2, 1, 1)), (N, 2, 9)),
    "norms twice": (lambda: _Through("n a n a", n=nn.LayerNorm(3), a=nn.Linear(3, 3)), (N, 3)),
    "batch norm twice": (lambda: _Through("a n a n", n=nn.BatchNorm1d(3), a=nn.Linear(3, 3)), (N, 3)),
    "one module, two names": (
        lambda: nn.Sequential(*[nn.Linear(3, 3), nn.Tanh()] * 2), (N, 3)
    ),
    "tied weights, separate biases": (_tied_linears, (N, 3)),
    "tied weights, with positions": (_tied_linears, (N, 4, 3)),
    "tied in part": (_tied_with_and_without_bias, (N, 3)),
    "tied norms": (_tied_norms, (N, 3)),
}  # fmt: skip


@powers
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", SHARING)
def test_direction_matches_oracle_with_shared_parameters(name: str, reduction: str, power: float):
    make, shape = SHARING[name]
    model, x, scale = _built(make), _random(1, *shape), N if reduction == "mean" else 1

    def loss() -> Tensor:
        return (model(x) * torch.arange(1.0, N + 1).view(-1, *[1] * (x.dim() - 1))).square().sum() / scale

    check_rows(model, loss, N)
    check_direction(model, loss, N, power=power, loss_reduction=reduction)


class _Tied(nn.Module):
    """An embedding whose weight is the head's, with a bias of its own on the head."""

    def __init__(self, padding: int | None = None):
        super().__init__()
        self.embed = nn.Embedding(6, 3, padding_idx=padding)
        self.middle = nn.Linear(3, 3)
        self.head = nn.Linear(3, 6)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.middle(self.embed(ids)).tanh())


@powers
@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("shape", [(N,), (N, 4)])
def test_direction_matches_oracle_with_an_embedding_tied_to_the_head(
    shape: tuple[int, ...], padding: int | None, power: float
):
    model = _built(lambda: _Tied(padding))
    ids = torch.randint(6, shape, generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        return F.cross_entropy(model(ids).flatten(0, -2), ids.flatten().flip(0))

    assert blocks_of(model)["embed"].parameter_names == ("embed.weight", "head.bias")
    check_rows(model, loss, N)
    check_direction(model, loss, N, power=power)


@powers
def test_direction_matches_oracle_with_an_embedding_used_twice(power: float):
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 3, padding_idx=0), nn.Linear(3, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.head((self.embed(left).sum(1) * self.embed(right)).tanh())

    model, generator = _built(Pairs), torch.Generator().manual_seed(0)
    left, right = (torch.randint(6, shape, generator=generator) for shape in ((N, 4), (N,)))
    check_direction(model, lambda: model(left, right).square().sum(1).mean(), N, power=power)


def test_tied_block_of_which_one_module_is_idle_matches_oracle():
    model = _built(_tied_linears)
    assert isinstance(model, _Through)
    model.path = ["first", "last"]
    x = _random(1, N, 3)
    check_direction(model, lambda: model(x).square().sum(1).mean(), N)
    model.path = ["second", "last"]
    check_direction(model, lambda: model(x).square().sum(1).mean(), N)


def test_tied_modules_with_different_samples_pass_through():
    model = _built(_tied_linears)
    assert isinstance(model, _Through)
    pre = Preconditioner(model)
    for path in ("first last", "first second last"):
        model.path = path.split()
        model(_random(1, N, 3)).square().mean().backward()
    with pytest.warns(
        UserWarning, match=r"first \(modules that share a parameter saw different numbers of samples: \[10"
    ):
        pre.step()
    assert "first.weight" in pre.coverage().passed_through


# -- dampings, powers, scales -------------------------------------------------------------------------------------


def _small() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))


def _loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - torch.arange(len(x))[:, None]).square().sum(1).mean()


@settings(max_examples=40, deadline=None)
@given(power=st.floats(0.05, 1.0), damping=st.floats(1e-3, 10.0), mode=st.sampled_from(["relative", "absolute"]),
       scale=st.sampled_from(["auto", "gradient", "natural"]), trust=st.none() | st.floats(0.01, 2),
       n=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_direction_matches_oracle_for_any_damping_power_and_scale(
    power: float, damping: float, mode: str, scale: str, trust: float | None, n: int, seed: int
):
    model, x = _built(_small, seed), _random(seed, n, 2, 4)
    check_direction(
        model, lambda: _loss_of(model, x), n, power=power, damping=damping, damping_mode=mode, scale=scale, trust=trust
    )


def test_direction_matches_oracle_with_the_papers_preset():
    model, x = _built(_small), _random(1, N, 2, 4)
    check_direction(model, lambda: _loss_of(model, x), N, preset="paper", damping=0.17)


def test_direction_tends_to_the_gradient_as_damping_grows():
    model, x = _built(_small), _random(1, N, 2, 4)
    _loss_of(model, x).backward()
    gradients = {name: flat_gradient(block) for name, block in blocks_of(model).items()}
    for power in (1.0, 0.5):
        errors = []
        for damping in (1e2, 1e4):
            model.zero_grad()
            pre = Preconditioner(model, damping=damping, power=power, scale="gradient", **{"estimator": "exact"})  # type: ignore[arg-type]
            _loss_of(model, x).backward()
            pre.step()
            pre.close()
            errors.append(
                max(relative_error(flat_gradient(block), gradients[name]) for name, block in blocks_of(model).items())
            )
        # (1 + e / lambda)^-power = 1 - O(1 / damping): e / lambda is at most n / damping
        assert errors[0] <= N / 1e2
        assert errors[1] == pytest.approx(errors[0] / 100, rel=0.1)


# -- curvature of an earlier batch --------------------------------------------------------------------------------


@powers
@pytest.mark.parametrize("estimator", ["exact", "implicit"])
def test_trust_cap_follows_the_norm_of_the_gradient(power: float, estimator: str):
    model = nn.Linear(9, 3, bias=False).double()
    pre = Preconditioner(model, power=power, scale="natural", refresh_every=100, sketch_size=64, estimator=estimator)  # type: ignore[arg-type]
    first, largest, caps = _random(1, N, 9), 0.0, []
    rows = oracle_rows(model, lambda: _loss_of(model, first), N)[""] * N
    for step, size in enumerate([1.0, 1.2, 0.6, 5.0, 0.4, 2.0, 4.0]):
        x = first if step == 0 else _random(10 + step, N, 9)
        model.zero_grad()
        (size * _loss_of(model, x)).backward()
        assert model.weight.grad is not None
        g = model.weight.grad.flatten().clone()
        largest = max(0.999 * largest, float(g.norm()))
        caps.append(min(1.0, max(0.25, 1.5 * float(g.norm()) / largest)))
        pre.step()
        expected = dense_direction(rows, g, damping=0.1, power=power, natural=True, trust=caps[-1])
        if estimator == "exact":
            assert relative_error(model.weight.grad.flatten(), expected) <= EXACT
        else:  # what a sketch sees is not all: the cap alone is exact
            metric = 0.1 * (rows.square().sum() / N / N) * torch.eye(27).double() + rows.mT @ rows / N
            d = model.weight.grad.flatten()
            values, vectors = torch.linalg.eigh(metric)
            q = (values ** (power - 0.5) * (vectors.mT @ d)).norm()
            assert float(q) <= caps[-1] * (1 + EXACT)
    assert min(caps) == 0.25
    assert len(set(caps)) >= 4


@powers
@pytest.mark.parametrize("trust", [None, 1.0, 0.01])
@pytest.mark.parametrize("other", [N, 3])
@pytest.mark.parametrize("mode", ["relative", "absolute"])
def test_held_curvature_preconditions_the_next_batch_as_the_oracle(
    power: float, trust: float | None, other: int, mode: str
):
    model, first, second = _built(_small), _random(1, N, 2, 4), 3 * _random(2, other, 2, 4)
    rows = oracle_rows(model, lambda: _loss_of(model, first), N)
    pre = Preconditioner(model, power=power, trust=trust, damping=0.2, damping_mode=mode, **EXACTLY)  # type: ignore[arg-type]
    _loss_of(model, first).backward()
    pre.step()
    model.zero_grad()
    _loss_of(model, second).backward()
    gradients = {name: flat_gradient(block) for name, block in blocks_of(model).items()}
    pre.step()
    caps = 0
    for name, block in blocks_of(model).items():
        held = {"damping": 0.2, "power": power, "relative": mode == "relative", "natural": True}
        expected = dense_direction(rows[name] * N, gradients[name], trust=trust, **held)
        free = dense_direction(rows[name] * N, gradients[name], **held)
        caps += relative_error(expected, free) > 0.1
        assert relative_error(flat_gradient(block), expected) <= EXACT, name
    assert caps == (0 if trust is None else len(rows))  # the case is one in which the cap matters


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("order", ["previous", "current"])
def test_each_step_uses_the_batch_that_its_order_says(order: str, power: float):
    model = _built(_small)
    batches = [_random(seed, N + seed, 2, 4) for seed in range(4)]
    rows = [oracle_rows(model, lambda x=x: _loss_of(model, x), len(x)) for x in batches]
    schedule = lambda step: 0.5 / (1 + step)  # noqa: E731
    pre = Preconditioner(
        model,
        power=power,
        trust=None,
        damping=schedule,
        refresh_every=2,
        curvature_batch=order,  # type: ignore[arg-type]
        **EXACTLY,  # type: ignore[arg-type]
    )
    # refreshes at steps 0 and 2; "previous" takes batch 2 in after step 2 has used batch 0
    used = [0, 0, 0, 2] if order == "previous" else [0, 0, 2, 2]
    for step, x in enumerate(batches):
        model.zero_grad()
        _loss_of(model, x).backward()
        gradients = {name: flat_gradient(block) for name, block in blocks_of(model).items()}
        pre.step()
        for name, block in blocks_of(model).items():
            u = rows[used[step]][name] * len(batches[used[step]])
            expected = dense_direction(u, gradients[name], damping=schedule(step), power=power, natural=True)
            assert relative_error(flat_gradient(block), expected) <= EXACT, (step, name)


def test_cholesky_state_serves_a_damping_that_changed():
    model, batches = _built(_small), [_random(seed, N, 2, 4) for seed in range(2)]
    rows = oracle_rows(model, lambda: _loss_of(model, batches[0]), N)
    pre = Preconditioner(model, power=1.0, trust=None, damping=lambda step: 0.1 * 2**step, refresh_every=1, **EXACTLY)  # type: ignore[arg-type]
    gradients: dict[str, Tensor] = {}
    for x in batches:
        model.zero_grad()
        _loss_of(model, x).backward()
        gradients = {name: flat_gradient(block) for name, block in blocks_of(model).items()}
        pre.step()
    for name, block in blocks_of(model).items():
        expected = dense_direction(rows[name] * N, gradients[name], damping=0.2, natural=True)
        assert relative_error(flat_gradient(block), expected) <= EXACT, name


# -- positions as rows --------------------------------------------------------------------------------------------


def _position_rows(layer: nn.Module, x: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return each position's contribution to ``.grad``, [positions, p], from the output's gradient by hand."""
    y = layer(x)
    (g,) = torch.autograd.grad(loss_of(y), y)
    if isinstance(layer, nn.Linear):
        a, g = x.flatten(0, -2), g.flatten(0, -2)
    elif isinstance(layer, nn.Embedding):
        return torch.einsum(
            "kv,kd->kvd", F.one_hot(x.flatten(), layer.num_embeddings).double(), g.flatten(0, -2)
        ).flatten(1)
    else:
        assert isinstance(layer, nn.Conv2d)
        a = F.unfold(x, (2, 2)).mT.flatten(0, 1)
        g = g.flatten(2).mT.flatten(0, 1)
    return torch.cat([torch.einsum("ko,ki->koi", g, a).flatten(1), g], 1)


POSITIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(3, 2), lambda: _random(1, N, 4, 3)),
    "linear with one position": (lambda: nn.Linear(3, 2), lambda: _random(1, N, 3)),
    "convolution": (lambda: nn.Conv2d(2, 3, 2), lambda: _random(1, N, 2, 3, 4)),
    "embedding": (lambda: nn.Embedding(4, 3), lambda: torch.arange(N * 3).view(N, 3) % 4),
}


@powers
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", POSITIONS)
def test_expanded_positions_match_an_oracle_of_position_rows(name: str, reduction: str, power: float):
    make, batch = POSITIONS[name]
    layer, x, scale = _built(make), batch(), N if reduction == "mean" else 1

    def loss_of(y: Tensor) -> Tensor:
        return (y.tanh() * torch.linspace(0.5, 2, y.numel()).view_as(y)).sum() / scale

    rows = _position_rows(layer, x, loss_of)
    count = len(rows)
    pre = Preconditioner(
        layer,
        positions="expand",
        estimator=Exact(rows=count),
        scale="natural",
        power=power,
        loss_reduction=reduction,  # type: ignore[arg-type]
    )
    loss_of(layer(x)).backward()
    (block,) = blocks_of(layer).values()
    before = flat_gradient(block)
    pre.step()
    # a mean loss divides each row by the number of rows; with a sum, .grad is so many times their mean
    divided, summed = (count, 1) if reduction == "mean" else (1, count)
    expected = summed * dense_direction(
        rows * divided, before / summed, damping=0.1, power=power, natural=True, trust=1.0
    )
    assert relative_error(flat_gradient(block), expected) <= EXACT
    assert pre.stats()[""].samples == count


def test_expanded_positions_leave_layers_without_positions_alone():
    model, x = _built(lambda: nn.LayerNorm(3)), _random(1, N, 4, 3)
    check_direction(model, lambda: model(x).tanh().square().sum((1, 2)).mean(), N, positions="expand")


@pytest.mark.parametrize("form", ["product", "lookup"])
def test_drawn_positions_give_the_fisher_of_all_in_the_mean(form: str):
    draws, kept = 400, 7
    if form == "product":
        io: LayerGradients = Product(_random(1, 2, N, 4, 2), _random(2, 2, N, 4, 2), True)
    else:
        io = Lookup(torch.arange(N * 4).view(N, 4) % 3, _random(2, N, 4, 2), 3)

    def fisher(io: Any) -> Tensor:
        if isinstance(io, Lookup):
            rows = torch.einsum("nsv,nsd->nvd", F.one_hot(io.ids, 3).double(), io.g).flatten(1)
        else:
            rows = torch.einsum("cnsi,cnso->ncoi", io.a, io.g).flatten(1)
        return rows.T @ rows

    whole, total = io.expanded(10**6, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    some = [io.expanded(kept, generator) for _ in range(draws)]
    assert {count for _, count in some} == {total} == {N * 4}
    assert {part.n for part, _ in some} == {kept}
    fishers = torch.stack([fisher(part) for part, _ in some])
    standard_error = float(fishers.var(0).sum() / draws) ** 0.5
    assert float((fishers.mean(0) - fisher(whole)).norm()) <= 3 * standard_error
