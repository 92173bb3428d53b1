"""Capture on unmodified models: whatever happens around the layers, their samples are the right ones."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from seng import SENG, Preconditioner
from seng.errors import CaptureError, OrderError
from seng.layers import LAYERS, Layer, LayerCall
from seng.testing import (
    EXACT,
    LAYER_CASES,
    blocks_of,
    check_direction,
    check_rows,
    relative_error,
)

from .capturing import N, assert_same, directions, loss_of, mlp, random, uses

# -- in-place operations on outputs -------------------------------------------------------------------------------


def _zero_first(y: Tensor) -> Tensor:
    y[:, :1] = 0
    return y


def _through_a_view(y: Tensor) -> Tensor:
    y[..., ::2].mul_(0.5)
    return y


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.ReLU(True),
    "clamp": nn.Hardtanh(-0.5, 0.5, inplace=True),
    "scale, then shift": lambda y: y.mul_(2).add_(1),
    "part of it": _zero_first,
    "a view of it": _through_a_view,
}


class _Then(nn.Module):
    def __init__(self, layer: nn.Module, change: Callable[[Tensor], Tensor]):
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, *x: Tensor, **named: Tensor) -> Tensor:
        y = self.layer(*x, **named)
        return self.change(y[0] if isinstance(y, tuple) else y)


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_capture_is_right_under_in_place_operations_on_the_output(kind: type[nn.Module], change: str):
    for case in LAYER_CASES[kind]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, x = _Then(case.make_module(), IN_PLACE[change]).double(), case.make_input()
        given: Any = x if isinstance(x, tuple | dict) else (x,)
        given = tree_map(lambda x: x.double() if x.is_floating_point() else x, given)

        def loss(model: nn.Module = model, given: Any = given) -> Tensor:
            y = model(**given) if isinstance(given, dict) else model(*given)
            return (y * torch.linspace(0.5, 2, y.numel()).view_as(y)).tanh().sum() / N

        check_rows(model, loss, len(tree_leaves(given)[0]))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_capture_is_right_where_the_output_is_a_view_changed_in_place(axes: int):
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    x = random(1, 2, 2, *(3,) * axes)
    grads = []
    for in_place in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = kind(2, 3, 2).double()

        def run(layer: nn.Module = layer, in_place: bool = in_place) -> None:
            for sample in x:  # without a batch dimension torch returns a view of a batch of one
                y = layer(sample)
                (y.relu_() if in_place else y.relu()).tanh().sum().backward()

        grads.append(directions(layer, run))
    assert_same(grads[0], grads[1])


class _Viewed(nn.Module):
    """A layer of a third party that returns a view of what it computed."""

    def __init__(self, view: str):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 4, dtype=torch.float64))
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        if self.view == "first samples":
            return (torch.cat([x, x]) * self.weight)[: len(x)]
        y = x * self.weight
        return y[:, 1:] if self.view == "part" else y.mT


def _viewed(module: nn.Module, call: LayerCall) -> dict[str, Tensor]:
    x = call.x[:, 1:] if module.view == "part" else call.x
    return {"weight": (x * (call.g.mT if module.view == "transposed" else call.g)).sum(1)}


@pytest.mark.parametrize("view", ["part", "transposed", "first samples"])
@pytest.mark.parametrize("change", IN_PLACE)
def test_capture_is_right_where_the_output_is_not_all_of_its_base(
    change: str, view: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(LAYERS, _Viewed, Layer(_viewed))
    model, x = _Then(_Viewed(view), IN_PLACE[change]), random(1, N, 3, 4)

    def loss() -> Tensor:
        y = model(x)
        return (y * torch.linspace(0.5, 2, y.numel()).view_as(y)).tanh().sum() / N

    check_rows(model, loss, N)


def test_capture_sees_models_called_with_other_parameters():
    model, x = mlp(), random(1, N, 3)
    values = {name: (2 * p).detach().requires_grad_() for name, p in model.named_parameters()}
    pre = Preconditioner(model)
    functional_call(model, values, (x,)).square().sum(1).mean().backward()
    for name, p in model.named_parameters():
        p.grad = values[name].grad
    pre.step()
    assert {stats.samples for stats in pre.stats().values()} == {N}
    pre.close()


def test_capture_is_right_in_a_residual_block_with_in_place_additions():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.a(x)).relu_()
            z = self.b(y)
            z += y
            return F.relu_(z)

    torch.manual_seed(0)
    model, x = Residual().double(), random(1, N, 3)
    check_direction(model, lambda: loss_of(model, x), N)


# -- calls --------------------------------------------------------------------------------------------------------


def test_capture_takes_keyword_inputs():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.inner:
                x = layer(input=x)
            return x

    model, x = Keywords(), random(1, N, 3)
    expected = directions(model.inner, lambda: loss_of(model.inner, x).backward())
    got = directions(model, lambda: loss_of(model, x).backward())
    assert_same({name.removeprefix("inner."): value for name, value in got.items()}, expected)


@pytest.mark.parametrize("backwards", [1, 2, 3])
def test_several_backward_passes_through_one_forward_are_one_batch(backwards: int):
    model, x = mlp(), random(1, N, 3)
    weights = torch.arange(1.0, backwards + 1)

    def run() -> None:
        y = model(x)
        for k, weight in enumerate(weights):
            (weight * (y - k).square().sum() / N).backward(retain_graph=True)

    def whole() -> None:
        y = model(x)
        sum(weight * (y - k).square().sum() / N for k, weight in enumerate(weights)).backward()  # type: ignore[union-attr]

    assert_same(directions(model, run), directions(model, whole))


def test_backward_passes_through_parts_of_one_forward_are_one_batch():
    model, x = mlp(), random(1, N, 3)

    def run() -> None:
        hidden = model[:3](x)
        last = model[3:](hidden)
        hidden.square().sum().div(N).backward(retain_graph=True)
        last.square().sum().div(N).backward()

    def whole() -> None:
        hidden = model[:3](x)
        ((hidden.square().sum() + model[3:](hidden).square().sum()) / N).backward()

    assert_same(directions(model, run), directions(model, whole))


def test_input_gradients_taken_on_the_way_are_not_captured():
    model, x = mlp(), random(1, N, 3)

    def adversarial() -> None:
        probe = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss_of(model, probe), probe)
        loss_of(model, x + 0.1 * g.sign()).backward()

    probe = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss_of(model, probe), probe)
    moved = x + 0.1 * g.sign()
    assert_same(directions(model, adversarial), directions(model, lambda: loss_of(model, moved).backward()))


def test_gradients_taken_by_hand_are_captured():
    model, x = mlp(), random(1, N, 3)

    def by_hand() -> None:
        parameters = list(model.parameters())
        for p, g in zip(parameters, torch.autograd.grad(loss_of(model, x), parameters), strict=True):
            p.grad = g

    assert_same(directions(model, by_hand), directions(model, lambda: loss_of(model, x).backward()))


# -- frozen, unused, foreign --------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.", "4.bias"])
def test_frozen_parameters_are_left_alone(frozen: str):
    model, x = mlp(), random(1, N, 3)
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    check_rows(model, lambda: loss_of(model, x), N)
    check_direction(model, lambda: loss_of(model, x), N)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    names = {name for block in blocks_of(model).values() for name in block.parameter_names}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}


def test_layer_frozen_after_the_hooks_were_placed_is_left_alone():
    model, x = mlp(), random(1, N, 3)
    pre = Preconditioner(model)
    model[0].requires_grad_(False)
    loss_of(model, x).backward()
    pre.step()
    assert set(pre.coverage().preconditioned) == {"2.weight", "2.bias", "4.weight", "4.bias"}
    assert pre.coverage().share == 1
    assert all(p.grad is None for p in model[0].parameters())
    assert model[2].weight.grad is not None
    pre.close()


def test_unused_layers_are_named_once():
    model = nn.ModuleDict({name: nn.Linear(3, 2) for name in ("used", "idle", "other")}).double()
    pre = Preconditioner(model, refresh_every=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(3):
            model.zero_grad()
            loss_of(model["used"], random(seed, N, 3)).backward()
            pre.step()
    messages = [str(item.message) for item in caught if "did not use" in str(item.message)]
    assert messages == [
        "seng: the batch did not use these layers, they pass through: idle, other. "
        "Counted in `counters`; this is said once"
    ]
    assert set(pre.coverage().passed_through) == {"idle.weight", "idle.bias", "other.weight", "other.bias"}
    assert set(pre.coverage().passed_through.values()) == {"no batch has used it yet"}
    pre.close()


def test_weights_computed_by_old_hooks_pass_through_with_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = nn.utils.weight_norm(nn.Linear(3, 4))  # type: ignore[no-untyped-call]
    model = nn.Sequential(first, nn.Linear(4, 2)).double()
    pre = Preconditioner(model)
    assert pre.coverage().passed_through == dict.fromkeys(
        ("0.weight_g", "0.weight_v"), "Linear computes its own weight"
    )
    pre.close()


def test_double_backward_is_refused_or_verified_not_to_work():
    from seng import verify

    model, x = mlp(), random(1, N, 3)

    def loss() -> Tensor:
        points = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
        return slope.square().sum(1).mean()

    assert not verify(model, loss).ok


# -- errors -------------------------------------------------------------------------------------------------------


def _state(model: nn.Module, pre: Preconditioner) -> list[Any]:
    return [[p.clone() for p in model.parameters()], pre.steps, pre.stats(), pre.state_dict()["last_refresh"]]


def _assert_untouched(before: list[Any], after: list[Any]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]


def test_input_overwritten_before_the_step_is_refused():
    model, x = mlp(), random(1, N, 3)
    pre = Preconditioner(model, refresh_every=1)
    loss_of(model, x).backward()
    pre.step()
    before = _state(model, pre)
    model.zero_grad()
    loss_of(model, x).backward()
    x.add_(1)
    with pytest.raises(CaptureError, match=r"step\(\): a layer's input was modified .* at layer 0\. Make that"):
        pre.step()
    _assert_untouched(before, _state(model, pre))
    model.zero_grad()
    loss_of(model, x).backward()
    assert pre.step()
    pre.close()


def test_input_overwritten_where_it_is_not_needed_is_accepted():
    class Shifted(nn.Module):
        """Only the bias is trained: autograd lets the input change, too."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.layer.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            x.mul_(0)
            return y + x

    model, x = Shifted().double(), random(1, N, 3)
    check_direction(model, lambda: loss_of(model, x.clone()), N)


class _Windows(nn.Module):
    """Moves positions into dimension 0 for one layer in the middle."""

    def __init__(self):
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.odd(x.flatten(0, 1)).view_as(x).tanh())


def test_layers_that_disagree_about_samples_pass_through_by_name():
    model, x = _Windows().double(), random(1, N, 4, 3)
    pre = Preconditioner(model, estimator="exact", curvature_batch="current", refresh_every=1)
    model(x).square().mean().backward()
    assert model.odd.weight.grad is not None
    plain = model.odd.weight.grad.clone()
    message = rf"keep their plain gradient: odd \(dimension 0 of its input has {4 * N} entries where the batch has {N}"
    with pytest.warns(UserWarning, match=message):
        pre.step()
    assert set(pre.coverage().passed_through) == {"odd.weight", "odd.bias"}
    assert relative_error(model.odd.weight.grad / model.odd.weight.grad.norm(), plain / plain.norm()) <= EXACT
    pre.close()
    check_direction(model, lambda: model(x).square().mean(), N, exclude=["odd"])


def test_layer_that_disagreed_once_is_not_trusted_by_accident():
    model = _Windows().double()
    pre = Preconditioner(model, refresh_every=1)
    for positions in (4, 1):  # with one position sizes agree
        model.zero_grad()
        model(random(1, N, positions, 3)).square().mean().backward()
        pre.step()
        assert set(pre.coverage().passed_through) == {"odd.weight", "odd.bias"}
    pre.close()


class _Experts(nn.Module):
    """Sends rows to one of two experts."""

    def __init__(self, share: int):
        super().__init__()
        self.experts, self.last = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), nn.Linear(3, 2)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        out = torch.cat([self.experts[0](rows[: self.share]), self.experts[1](rows[self.share :])])
        return self.last(out.view_as(x).tanh())


def test_layers_of_a_module_list_are_not_trusted_where_one_of_them_disagrees():
    model = _Experts(share=N).double()  # the first expert sees as many rows as there are samples, but others
    pre = Preconditioner(model, refresh_every=1)
    model(random(1, N, 4, 3)).square().mean().backward()
    with pytest.warns(UserWarning, match=r"experts\.0 \(dimension 0 of the inputs of layers like it"):
        pre.step()
    assert set(pre.coverage().preconditioned) == {"last.weight", "last.bias"}
    pre.close()


def test_forward_passes_of_different_sizes_are_different_samples():
    model, x = mlp(), random(1, N + 4, 3)

    def run() -> None:
        (loss_of(model, x[:N], N + 4) + loss_of(model, x[N:], N + 4)).backward()

    assert_same(directions(model, run), directions(model, lambda: loss_of(model, x).backward()))


def test_step_without_a_captured_layer_is_refused():
    model, x = mlp(), random(1, N, 3)
    loss = loss_of(model, x)
    pre = Preconditioner(model)
    loss.backward()
    with pytest.raises(OrderError, match="no layer was captured: .* Create the optimizer before the forward pass"):
        pre.step()
    pre.close()


# -- what hooks cost ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Whatever dies must die by reference counts."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("view", [True, False])
def test_forward_without_backward_keeps_nothing_alive(view: bool):
    model = nn.Conv2d(2, 3, 2) if view else mlp()
    pre = Preconditioner(model)
    y = model(torch.randn(2, 3, 3) if view else random(1, N, 3))
    assert len(uses()) == len(blocks_of(model))
    del y
    assert not uses()
    pre.close()


@pytest.mark.usefixtures("no_collector")
def test_step_keeps_nothing_of_the_capture_alive():
    model = mlp()
    pre = Preconditioner(model)
    loss_of(model, random(1, N, 3)).backward()
    assert len(uses()) == 3
    pre.step()
    assert not uses()
    pre.close()


def test_hooks_are_idle_between_refreshes():
    model, x = mlp(), random(1, N, 3)
    pre = Preconditioner(model, refresh_every=3)
    seen: list[bool] = []
    handle = model[2].register_forward_hook(
        lambda module, args, output: seen.append(output._backward_hooks is not None)
    )
    for _ in range(7):
        model.zero_grad()
        loss = loss_of(model, x)
        assert bool(uses()) == seen[-1]
        loss.backward()
        pre.step()
    assert seen == [True, False, False, True, False, False, True]
    handle.remove()
    pre.close()


@pytest.mark.parametrize("kind", [SENG, Preconditioner])
def test_close_removes_every_hook(kind: type[SENG | Preconditioner]):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(True), nn.Flatten(), nn.Linear(12, 2))
    x = torch.randn(4, 2, 3, 3)
    opened = kind(model)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 3 + 1  # layers, and the model as a whole
    loss = model(x).square().mean()
    opened.close()
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in model.modules()
    )
    loss.backward()
    with pytest.raises(OrderError, match="no layer was captured"):
        opened.step()
    opened.close()  # once more is harmless


def test_two_preconditioners_on_one_model_do_not_meet():
    model, x = mlp(), random(1, N, 3)
    expected = directions(model, lambda: loss_of(model, x).backward())
    other = Preconditioner(model)
    assert_same(directions(model, lambda: loss_of(model, x).backward()), expected)
    other.close()
