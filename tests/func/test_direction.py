"""Rows and directions equal the dense float64 reference, however they are computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from seng.errors import MemoryBudgetError, OptionError
from seng.func import Info, SingularError, gradient, natural_gradient
from seng.func.rows import COPIES

from .problems import RESIDUALS, unbatched
from .reference import DTYPE, dense, draw, flat, network, parameters

EXACT = 1e-9  # float64, another order of sums, systems of condition up to 1e6
TINY = 1e-12  # the same numbers, well conditioned
N, DAMPING = 6, 1e-4
NET = network()
P = sum(p.numel() for p in NET.parameters())
ROW = P * DTYPE.itemsize
TIGHT = COPIES * 2 * ROW  # memory for two rows a tile

each_residual = pytest.mark.parametrize("name", RESIDUALS)


def both(name: str, **options: Any) -> tuple[Tensor, Info]:
    d, info = natural_gradient(RESIDUALS[name].ours, NET, draw(N, 2), damping=DAMPING, **options)
    return flat(d), info


def assert_close(got: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    assert torch.linalg.norm(got - expected) <= tolerance * torch.linalg.norm(expected)


@each_residual
@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_direction_matches_dense_reference(name: str, mode: str) -> None:
    reference = dense({"r": RESIDUALS[name].theirs(NET)}, {"r": draw(N, 2)}, parameters(NET))
    damping = DAMPING if mode == "absolute" else reference.damping(DAMPING)
    got, info = both(name, damping_mode=mode)
    assert_close(got, reference.direction(damping))
    assert info.damping == pytest.approx(damping, rel=TINY)
    assert info.loss == pytest.approx(reference.loss, rel=TINY)
    assert info.slope == pytest.approx(float(reference.gradient @ got), rel=EXACT)
    assert info.curvature == pytest.approx(float((reference.j @ got).square().sum()), rel=EXACT)
    assert info.solve_error < EXACT
    assert info.rungs == 0


@each_residual
@pytest.mark.parametrize("memory", [TIGHT, 2**30])
@pytest.mark.parametrize("per_sample", [True, False])
def test_direction_is_the_same_in_chunks(name: str, memory: int, per_sample: bool) -> None:
    if name == "first" and memory == TIGHT and per_sample:
        memory *= 2  # a sample has two rows here
    fn = RESIDUALS[name].ours if per_sample else unbatched(RESIDUALS[name].ours)
    got = flat(natural_gradient(fn, NET, draw(N, 2), damping=DAMPING, memory=memory, per_sample=per_sample)[0])
    assert_close(got, both(name)[0])


def test_direction_sums_weighted_terms() -> None:
    weights = {"second": 3.0, "value": 0.5}
    batch = {"second": draw(N, 2), "value": draw(4, 2, seed=1)}
    functions = {name: RESIDUALS[name].ours for name in weights}
    reference = dense({name: RESIDUALS[name].theirs(NET) for name in weights}, batch, parameters(NET), weights)
    for memory in (TIGHT, 2**30):
        d, info = natural_gradient(
            functions, NET, batch, damping=DAMPING, weights=weights, damping_mode="absolute", memory=memory
        )
        assert_close(flat(d), reference.direction(DAMPING))
        assert sum(info.losses.values()) == pytest.approx(reference.loss, rel=TINY)
        assert info.rows == N + 4
    halves = {
        name: dense({name: RESIDUALS[name].theirs(NET)}, batch, parameters(NET), weights).loss for name in weights
    }
    assert info.losses == pytest.approx(halves, rel=TINY)


@pytest.mark.parametrize("memory", [TIGHT, 2**30])
def test_momentum_minimises_its_least_squares_problem(memory: int) -> None:
    reference = dense({"r": RESIDUALS["second"].theirs(NET)}, {"r": draw(N, 2)}, parameters(NET))
    previous = draw(P, seed=5)
    tree = dict(zip(dict(NET.named_parameters()), _split(previous), strict=True))
    d, info = natural_gradient(
        RESIDUALS["second"].ours, NET, draw(N, 2), damping=DAMPING, damping_mode="absolute", momentum=0.7,
        previous=tree, memory=memory,
    )  # fmt: skip
    assert_close(flat(d), reference.direction(DAMPING, 0.7 * previous))
    assert info.solve_error < EXACT


def _split(vector: Tensor) -> list[Tensor]:
    parts = vector.split([p.numel() for p in NET.parameters()])
    return [part.view_as(p) for part, p in zip(parts, NET.parameters(), strict=True)]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 100))
def test_direction_of_linear_models_of_any_shape(n: int, width: int, inputs: int, tight: bool, seed: int) -> None:
    x, w = draw(n, inputs, seed=seed), draw(width, inputs, seed=seed + 1)
    memory = COPIES * width * w.numel() * DTYPE.itemsize if tight else 2**30
    d, info = natural_gradient(lambda w, xi: w @ xi - 1, w, x, damping=0.3, damping_mode="absolute", memory=memory)
    params = [w.clone().requires_grad_()]
    reference = dense({"r": lambda xi: params[0] @ xi - 1}, {"r": x}, params)
    assert d.shape == w.shape
    assert_close(d.reshape(-1), reference.direction(0.3))
    assert info.rows == n * width


def test_order_of_samples_does_not_matter() -> None:
    x = draw(N, 2)
    d = [flat(natural_gradient(RESIDUALS["second"].ours, NET, b, damping=DAMPING)[0]) for b in (x, x.flip(0))]
    assert_close(d[0], d[1])


def test_relative_damping_is_blind_to_the_scale_of_residuals() -> None:
    ours = RESIDUALS["second"].ours
    d, _ = natural_gradient(lambda u, x: 1e3 * ours(u, x), NET, draw(N, 2), damping=DAMPING)
    assert_close(flat(d), both("second")[0])


def test_large_damping_gives_the_gradient() -> None:
    reference = dense({"r": RESIDUALS["second"].theirs(NET)}, {"r": draw(N, 2)}, parameters(NET))
    huge = 1e12  # |F| / huge is below the tolerance
    d, info = natural_gradient(RESIDUALS["second"].ours, NET, draw(N, 2), damping=huge, damping_mode="absolute")
    assert_close(huge * flat(d), reference.gradient)
    assert info.damping == huge


def test_direction_of_a_linear_problem_solves_it() -> None:
    a, w = draw(6, 4), draw(4, seed=1)
    target = a @ draw(4, seed=2)
    d, info = natural_gradient(lambda w, s: s[0] @ w - s[1], w, (a, target), damping=0.0)
    assert torch.linalg.norm(a @ (w - d) - target) < 1e-5  # K is singular here: the first jitter is n eps of its mean
    assert info.predicted(1.0) == pytest.approx(info.loss, rel=1e-6)
    assert info.predicted(0.0) == 0


def test_singular_gram_next_to_damping_zero_takes_the_ladder() -> None:
    x = draw(3, 2).repeat(2, 1)  # every row twice
    d, info = natural_gradient(RESIDUALS["value"].ours, NET, x, damping=1e-30)
    assert flat(d).isfinite().all()
    assert info.rungs >= 1
    pseudo = dense({"r": RESIDUALS["value"].theirs(NET)}, {"r": x}, parameters(NET))
    expected = torch.linalg.pinv(pseudo.j, rtol=1e-10) @ pseudo.r
    assert_close(flat(d), expected, 1e-5)  # jitter over the smallest eigenvalue of the three different rows


def test_structures_of_parameters_come_back() -> None:
    x = draw(5)
    trees: list[tuple[Any, Any]] = [
        ({"a": torch.tensor(1.0, dtype=DTYPE), "b": [draw(2), draw(1, 2)]}, lambda q, s: q["a"] * s + q["b"][0][1]),
        ((draw(3),), lambda q, s: q[0].sum() * s - 1),
        (draw(2, 2), lambda q, s: q[0, 1] * s - 1),
    ]
    for tree, fn in trees:
        d, _ = natural_gradient(fn, tree, x)
        assert tree_structure(d) == tree_structure(tree)
        same = tree_map(lambda p, q: p.shape == q.shape and p.dtype == q.dtype, d, tree)
        assert all(tree_leaves(same))


def test_unused_parameters_do_not_move() -> None:
    tree = {"used": draw(2), "unused": draw(3)}
    for per_sample in (True, False):
        d, _ = natural_gradient(lambda q, s: q["used"].sum() * s - 1, tree, draw(4), per_sample=per_sample)
        assert torch.equal(d["unused"], torch.zeros(3, dtype=DTYPE))
        assert d["used"].abs().min() > 0


def test_frozen_parameters_of_a_module_are_left_out() -> None:
    net = network()
    net[0].requires_grad_(False)
    d, _ = natural_gradient(RESIDUALS["second"].ours, net, draw(N, 2), damping=DAMPING, damping_mode="absolute")
    assert set(d) == {"2.weight", "2.bias", "4.weight", "4.bias"}
    reference = dense({"r": RESIDUALS["second"].theirs(net)}, {"r": draw(N, 2)}, parameters(net))
    assert_close(flat(d), reference.direction(DAMPING))


def test_pure_function_leaves_everything_as_it_was() -> None:
    net = network()
    before = flat(net.parameters())
    natural_gradient(RESIDUALS["second"].ours, net, draw(N, 2))
    assert torch.equal(flat(net.parameters()), before)
    assert all(p.grad is None for p in net.parameters())


def test_single_rows_keep_the_direction_in_mixed_precision() -> None:
    exact = both("second")[0]
    mixed, info = both("second", row_dtype=torch.float32)
    assert mixed.dtype == DTYPE
    assert 1e-12 < torch.linalg.norm(mixed - exact) / torch.linalg.norm(exact) < 1e-2  # 6e-8 * condition 1e4
    assert info.solve_error < 1e-3


def test_float32_parameters_are_solved_in_float64() -> None:
    net = network().float()
    d, info = natural_gradient(RESIDUALS["value"].ours, net, draw(N, 2).float(), damping=DAMPING)
    assert all(q.dtype == torch.float32 for q in d.values())
    assert info.solve_error < 1e-4  # rows and products in float32
    assert_close(flat(d).double(), both("value")[0], 1e-2)


def test_modules_of_any_kind_are_functions() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    wrapped = natural_gradient(RESIDUALS["second"].ours, Shifted(), draw(N, 2), damping=DAMPING)[0]
    assert_close(flat(wrapped), both("second")[0])


def test_memory_for_less_than_one_row_is_refused() -> None:
    with pytest.raises(MemoryBudgetError, match=rf"at least {COPIES * ROW} bytes, got {ROW}"):
        both("value", memory=ROW)


def test_outputs_without_parameters_are_refused() -> None:
    with pytest.raises(SingularError, match="no output depends on a parameter"):
        natural_gradient(lambda w, x: x, draw(2), draw(3))


@pytest.mark.parametrize("options", [{"solver": "nystrom", "rank": 2}, {"solver": "gaussian", "rank": 2}])
def test_sketches_need_damping(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="damping out of range: expected a number > 0 with a sketch"):
        natural_gradient(RESIDUALS["value"].ours, NET, draw(N, 2), damping=0.0, **options)


def test_previous_of_another_shape_is_refused() -> None:
    w = draw(3)
    with pytest.raises(OptionError, match="previous does not fit"):
        natural_gradient(lambda w, x: w.sum() * x, w, draw(3), momentum=0.5, previous=draw(4))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 8), st.integers(0, 12), st.integers(0, 99))
def test_directions_at_small_damping_are_as_exact_as_least_squares(p: int, more: int, power: int, seed: int) -> None:
    """Columns that decay over four decades, fewer or more than the rows, against QR of the stacked problem."""
    n = max(1, p + more - 4)
    left, right = torch.linalg.qr(draw(n, n, seed=seed)).Q, torch.linalg.qr(draw(p, p, seed=seed + 1)).Q
    k = min(n, p)
    a = left[:, :k] * 10.0 ** -torch.linspace(0, 4, k, dtype=DTYPE) @ right[:, :k].mT
    w, y, damping = draw(p, seed=2), draw(n, seed=3), 10.0**-power
    d, info = natural_gradient(lambda w, s: s[0] @ w - s[1], w, (a, y), damping=damping)
    j, r = a / n**0.5, (a @ w - y) / n**0.5
    lam = damping * float(j.square().sum()) / n
    q, top = torch.linalg.qr(torch.cat([j, lam**0.5 * torch.eye(p, dtype=DTYPE)]))
    expected = torch.linalg.solve_triangular(
        top, (q.mT @ torch.cat([r, torch.zeros(p, dtype=DTYPE)]))[:, None], upper=True
    )
    assert_close(d, expected[:, 0], 1e-8)  # condition 1e4 or 1e6, of residuals that the model does not reach
    assert info.damping == pytest.approx(lam, rel=TINY)


@pytest.mark.parametrize("memory", [COPIES * 3 * DTYPE.itemsize * 4, 2**30])
@pytest.mark.parametrize("fisher", ["gauss_newton", "sampled"])
def test_fewer_parameters_than_rows_match_the_dense_reference(memory: int, fisher: str) -> None:
    w, x, labels = draw(3, seed=1), draw(12, 3), torch.arange(12) % 2
    logits: Any = lambda w, s: torch.stack([s[0] @ w, 0 * w[0]])  # noqa: E731
    if fisher == "sampled":
        d, info = natural_gradient(logits, w, (x, labels), fisher=fisher, damping=0.1, memory=memory)
        assert info.solve_error < EXACT
        step = 1e-6 * d
        losses = [
            float(nn.functional.cross_entropy(torch.stack([x @ q, 0 * x[:, 0]], 1), labels)) for q in (w, w - step)
        ]
        assert info.slope == pytest.approx((losses[0] - losses[1]) / 1e-6, rel=1e-4)
        return
    d, info = natural_gradient(
        lambda w, s: s @ w - 1, w, x, damping=0.1, damping_mode="absolute", momentum=0.5, previous=w, memory=memory
    )
    reference = dense({"r": lambda s: s @ leaf - 1}, {"r": x}, [leaf := w.clone().requires_grad_()])
    assert_close(d, reference.direction(0.1, 0.5 * w))
    assert info.solve_error < EXACT


@pytest.mark.parametrize(("n", "p", "rank"), [(9, 2, 1), (30, 8, 5), (8, 8, 6), (8, 8, 8), (8, 20, 8), (8, 20, 6)])
def test_without_damping_the_direction_is_that_of_the_pseudo_inverse(n: int, p: int, rank: int) -> None:
    rows, r = draw(n, rank) @ draw(rank, p, seed=1), draw(n, seed=2)
    d, _ = natural_gradient(lambda w, s: s[0] @ w + s[1], torch.zeros(p, dtype=DTYPE), (rows, r), damping=0.0)
    torch.testing.assert_close(d, torch.linalg.pinv(rows) @ r, rtol=1e-9, atol=1e-9)


class Holder(nn.Module):
    """What a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.rate = network(), nn.Parameter(torch.tensor(0.7, dtype=DTYPE))
        self.pairs = nn.ParameterDict({"a": nn.Parameter(draw(2)), "b": nn.Parameter(draw(1)[0])})
        self.list = nn.ParameterList([nn.Parameter(draw(1, seed=k)) for k in range(2)])
        self.parts = nn.ModuleDict({"u": nn.Linear(2, 1, dtype=DTYPE)})
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 1, dtype=DTYPE))
        self.register_buffer("shift", torch.tensor(2.0, dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def flux(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return factor * self.rate * self.net(x).square()

    @property
    def positive(self) -> Tensor:
        return self.rate.exp()


READS: dict[str, Any] = {
    "parameter": lambda u, x: u.rate * u(x) - 1,
    "buffer": lambda u, x: u.shift * u(x) - 1,
    "item": lambda u, x: u.parts["u"](x) - 1 + ("u" in u.parts),
    "nested": lambda u, x: u.net[0].weight.square().sum() * u.net[-1].bias - 1,
    "slice": lambda u, x: u.net[:2](x).sum() - 1,
    "method": lambda u, x: u.flux(x, factor=2.0) - 1,
    "property": lambda u, x: u.positive * x.sum() - 1,
    "dict": lambda u, x: sum(v.sum() for v in u.pairs.values()) * u.pairs["a"].sum() + u.pairs.b * x.sum(),
    "list": lambda u, x: sum(p * x.sum() for p in u.list) + u.list[1].square() * len(u.list),
    "modules": lambda u, x: sum(m(x) for m in u.parts.values()) + u.get_submodule("net")(x),
    "parameters": lambda u, x: sum(p.square().sum() for p in u.parameters()) * x.sum(),
    "names": lambda u, x: u.get_parameter("net.0.weight").sum() * u.state_dict()["rate"] * x.sum(),
    "first parameter": lambda u, x: next(u.parameters()).square() * x.sum(),
    "truth": lambda u, x: u.rate * x.sum() if u and u.training else x.sum(),
    "parametrized": lambda u, x: u.normed.weight.square().sum() + u.normed(x),
    "derivative of a part": lambda u, x: gradient(u.net, x)[0] * u.rate + gradient(u.flux, x)[0],
}


@pytest.mark.parametrize("name", READS)
def test_residuals_read_what_a_module_holds(name: str) -> None:
    module = Holder()
    read = READS[name]
    d, _ = natural_gradient(read, module, draw(N, 2), damping=0.01, damping_mode="absolute")
    reference = dense({"r": lambda x: read(module, x)}, {"r": draw(N, 2)}, parameters(module))
    assert_close(flat(d), reference.direction(0.01), 1e-7)


@pytest.mark.parametrize("hidden", [lambda p: [p], lambda p: {"a": (p,)}])
def test_parameters_in_plain_containers_are_named(hidden: Any) -> None:
    """Neither are they the module's, nor are those of the module exchanged there."""
    for made in (network, Holder):
        module = made()
        module.kept = hidden(next(module.parameters()) if made is Holder else nn.Parameter(draw(2)))
        with pytest.warns(UserWarning, match="parameters in kept count as constants"):
            natural_gradient(lambda u, x: u(x), module, draw(N, 2))
        with (
            pytest.warns(UserWarning, match="kept"),
            pytest.raises(OptionError, match="a parameter is read that is con"),
        ):
            natural_gradient(lambda u, x: u(x) * len(u.kept), module, draw(N, 2))
