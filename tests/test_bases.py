"""Base optimizers: who gets which parameter, and that bases see matrices but share storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from seng import BASES, SENG
from seng.bases import AUXILIARY_LR, LEARNING_RATES, BaseSettings, hidden_matrices
from seng.errors import OptionError

from .runs import batch, loss_of, perceptron, snapshot

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is missing")
SAME = 1e-12  # float64, the same operations on views of other shapes


class Everything(nn.Module):
    """One of each kind of parameter Muon treats differently."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.conv(self.embed(ids).mT).mT)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.hidden(x).tanh().mean(1))


def everything() -> Everything:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Everything().double()


def step_once(model: nn.Module, optimizer: Optimizer) -> None:
    ids = torch.randint(0, 11, (5, 4), generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    model(ids).square().mean().backward()
    optimizer.step()


def owners(model: nn.Module, optimizer: SENG) -> dict[str, str]:
    kinds = {id(p): type(b).__name__ for b in optimizer.bases for group in b.param_groups for p in group["params"]}
    return {name: kinds[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("base", BASES)
def test_every_parameter_belongs_to_one_base(base: str) -> None:
    if base == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is missing")
    model = everything()
    optimizer = SENG(model, base=base)
    held = [id(p) for b in optimizer.bases for group in b.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    step_once(model, optimizer)
    assert all(p.isfinite().all() for p in model.parameters())
    assert sum(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)) > 10


@pytest.mark.parametrize(
    ("base", "reference"),
    [
        ("sgd", lambda params: SGD(params, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01)),
        ("adamw", lambda params: AdamW(params, lr=0.05, weight_decay=0.01)),
    ],
)
def test_base_steps_along_the_preconditioned_gradient(base: str, reference: Callable[[Any], Optimizer]) -> None:
    ours, theirs = perceptron(), perceptron()
    optimizer = SENG(ours, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01, base=base)
    plain = reference(theirs.parameters())
    for step in range(3):
        optimizer.zero_grad()
        loss_of(ours, *batch(step)).backward()
        optimizer.step()
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert q.grad is not None
            p.grad = q.grad.clone()
        plain.step()
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=SAME, atol=SAME)


def test_factory_gets_the_trainable_parameters() -> None:
    model = perceptron()
    model[0].bias.requires_grad_(False)
    seen: list[list[nn.Parameter]] = []

    def factory(params: list[nn.Parameter]) -> Optimizer:
        seen.append(params)
        return torch.optim.RMSprop(params, lr=0.3)

    optimizer = SENG(model, base=factory)
    assert [id(p) for p in seen[0]] == [id(p) for p in model.parameters() if p.requires_grad]
    assert [group["lr"] for group in optimizer.param_groups] == [0.3]
    assert isinstance(optimizer.bases[0], torch.optim.RMSprop)


def test_rate_beside_a_factory_is_refused() -> None:
    with pytest.raises(OptionError, match=r"lr does not go with a factory: expected None, got 99.0\. Give it to the"):
        SENG(perceptron(), lr=99.0, base=lambda params: torch.optim.RMSprop(params, lr=0.3))


def test_factory_that_returns_no_optimizer_is_refused() -> None:
    with pytest.raises(OptionError, match=r"base factory out of range: expected a torch.optim.Optimizer, got 'list'"):
        SENG(perceptron(), base=lambda params: params)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("base", ["sgdd", "", 3, None])
def test_unknown_base_is_refused(base: Any) -> None:
    with pytest.raises(OptionError, match=r"^SENG\(\): unknown base: expected 'sgd' \| 'adamw' \| 'muon', got"):
        SENG(perceptron(), base=base)


@pytest.mark.parametrize(
    ("base", "options"), [("sgd", {"betas": (0.9, 0.9)}), ("adamw", {"betas": (2.0, 0.9)}), ("sgd", {"lr": 0.1})]
)
def test_base_options_that_do_not_fit_are_refused(base: str, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=rf"base '{base}' does not take base_options: expected .*, got {{"):
        SENG(perceptron(), base=base, base_options=options)


def test_base_options_reach_the_base() -> None:
    optimizer = SENG(perceptron(), base="adamw", base_options={"betas": (0.5, 0.6), "eps": 1e-4})
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    assert optimizer.param_groups[0]["eps"] == 1e-4


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_bases_are_fused_unless_another_form_is_asked_for(base: str) -> None:
    assert SENG(perceptron(), base=base).param_groups[0]["fused"] is True
    for form in ({"foreach": True}, {"fused": False}):
        group = SENG(perceptron(), base=base, base_options=form).param_groups[0]
        assert not group["fused"]
        assert group["foreach"] is form.get("foreach")


def test_schedulers_act_on_the_groups_of_every_base() -> None:
    bases = ["sgd", "adamw"] + (["muon"] if hasattr(torch.optim, "Muon") else [])
    for base in bases:
        model = everything()
        optimizer = SENG(model, lr=0.4, base=base)
        before = [group["lr"] for b in optimizer.bases for group in b.param_groups]
        schedule = LambdaLR(optimizer, lambda epoch: 0.5**epoch)
        for _ in range(2):
            step_once(model, optimizer)
            schedule.step()
        assert [group["lr"] for b in optimizer.bases for group in b.param_groups] == [lr / 4 for lr in before]


def test_groups_added_later_belong_to_the_last_base() -> None:
    model = perceptron()
    optimizer = SENG(model, lr=0.4)
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 0.01})
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.01]
    (loss_of(model, *batch(0)) + extra.sum()).backward()
    optimizer.step()
    torch.testing.assert_close(extra.detach(), torch.full_like(extra, 0.99), rtol=1e-4, atol=0)  # plain, but for decay


# -- what is trained later ----------------------------------------------------------------------------------------

named_bases = pytest.mark.parametrize("base", ["sgd", "adamw", pytest.param("muon", marks=needs_muon)])


def _frozen(base: str, *frozen: str) -> tuple[Everything, SENG]:
    """A model with some modules frozen when the optimizer is made, and a step behind it."""
    model = everything()
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    optimizer = SENG(model, base=base)
    step_once(model, optimizer)
    return model, optimizer


@named_bases
@pytest.mark.parametrize("name", ["embed", "conv", "norm", "attention", "hidden", "head"])
def test_what_thaws_moves_as_if_it_had_never_been_frozen(base: str, name: str) -> None:
    model, optimizer = _frozen(base, name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    model.get_submodule(name).requires_grad_(True)
    step_once(model, optimizer)
    for key, p in model.get_submodule(name).named_parameters():
        if p.grad is not None and p.grad.any():
            assert not torch.equal(p, before[f"{name}.{key}"]), key
    assert owners(model, optimizer) == owners(*_frozen(base))


@named_bases
@pytest.mark.parametrize("name", ["embed", "conv", "hidden", "head"])
def test_what_thaws_can_have_a_group_of_its_own(base: str, name: str) -> None:
    model, optimizer = _frozen(base, name)
    module = model.get_submodule(name).requires_grad_(True)
    optimizer.add_param_group({"params": module.parameters(), "lr": 0.25})
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(rates[id(p)] == 0.25 for p in module.parameters())
    assert owners(model, optimizer) == owners(*_frozen(base))
    step_once(model, optimizer)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": module.parameters()})


@named_bases
def test_group_that_is_refused_leaves_groups_as_they_were(base: str) -> None:
    model, optimizer = _frozen(base, "conv")
    before = [[*map(id, group["params"])] for group in optimizer.param_groups]
    for group in ([*model.conv.parameters(), *model.head.parameters()], [*model.conv.parameters(), "weight"]):
        with pytest.raises((ValueError, TypeError), match="more than one parameter group|can only optimize Tensors"):
            optimizer.add_param_group({"params": group})
    assert [[*map(id, group["params"])] for group in optimizer.param_groups] == before


@named_bases
def test_new_modules_go_where_they_would_have_been(base: str) -> None:
    model, optimizer = _frozen(base)
    model.add_module("hidden", nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 8)).double())
    optimizer.add_param_group({"params": model.hidden.parameters()})
    kinds = {id(p): type(b).__name__ for b in optimizer.bases for group in b.param_groups for p in group["params"]}
    new = SENG(model, base=base)
    assert owners(model, new) == {name: kinds[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("base", ["sgd", lambda p: torch.optim.Adam(p, lr=0.01)])
def test_new_modules_in_no_group_are_named(base: Any) -> None:
    model = everything()
    optimizer = SENG(model, base=base, refresh_every=1)
    step_once(model, optimizer)
    model.head = nn.Linear(8, 3).double()
    with pytest.warns(UserWarning, match=r"in no group of the optimizer, and not moved: head.weight, head.bias\. Give"):
        step_once(model, optimizer)
    optimizer.add_param_group({"params": model.head.parameters()})
    before = model.head.weight.detach().clone()
    step_once(model, optimizer)
    assert not torch.equal(model.head.weight, before)


# -- Muon -------------------------------------------------------------------------------------------------------------


@needs_muon
def test_muon_takes_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    model = everything()
    optimizer = SENG(model, lr=0.02, base="muon", weight_decay=0.1)
    matrices = {name for name, kind in owners(model, optimizer).items() if kind == "MatrixMuon"}
    assert matrices == {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "hidden.weight"}
    assert set(owners(model, optimizer).values()) == {"MatrixMuon", "FusedAdamW"}
    rates = {type(base).__name__: base.param_groups[0]["lr"] for base in optimizer.bases}
    assert rates == {"MatrixMuon": 0.02, "FusedAdamW": pytest.approx(0.02 * AUXILIARY_LR)}
    assert all(group["weight_decay"] == 0.1 for group in optimizer.param_groups)


@needs_muon
def test_muon_options_reach_both_bases() -> None:
    options = {"aux_lr": 0.007, "momentum": 0.5, "nesterov": False}
    muon, adamw = SENG(everything(), base="muon", base_options=options).bases
    assert (muon.param_groups[0]["momentum"], muon.param_groups[0]["nesterov"]) == (0.5, False)
    assert adamw.param_groups[0]["lr"] == 0.007


@needs_muon
def test_muon_sees_kernels_as_matrices() -> None:
    model = everything()
    optimizer = SENG(model, lr=0.02, base="muon")
    weight = model.conv.weight.detach().clone()
    storage = model.conv.weight.data_ptr()
    step_once(model, optimizer)
    assert model.conv.weight.grad is not None
    matrix = nn.Parameter(weight.flatten(1))
    matrix.grad = model.conv.weight.grad.flatten(1).clone()
    settings = {k: v for k, v in optimizer.bases[0].param_groups[0].items() if k not in ("params", "initial_lr")}
    reference = torch.optim.Muon([matrix], **settings)
    reference.step()
    assert model.conv.weight.shape == weight.shape
    assert model.conv.weight.data_ptr() == storage
    torch.testing.assert_close(model.conv.weight.detach().flatten(1), matrix.detach(), rtol=SAME, atol=SAME)


@needs_muon
def test_muon_moves_kernels_whose_layout_cannot_be_viewed_as_a_matrix() -> None:
    def run(layout: torch.memory_format) -> tuple[Tensor, bool]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).double()
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = SENG(model, lr=0.1, base="muon")
        x = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return model[0].weight.detach(), model[0].weight.is_contiguous(memory_format=layout)

    (plain, kept_plain), (last, kept_last) = run(torch.contiguous_format), run(torch.channels_last)
    assert kept_plain
    assert kept_last
    torch.testing.assert_close(last.contiguous(), plain, rtol=1e-6, atol=1e-9)  # Muon iterates in bfloat16


@needs_muon
def test_muon_puts_parameters_back_when_a_step_fails() -> None:
    model = everything()
    optimizer = SENG(model, base="muon")
    shape = model.conv.weight.shape
    with pytest.raises(RuntimeError, match="broken closure"):
        optimizer.bases[0].step(_broken)
    assert model.conv.weight.shape == shape


def _broken() -> float:
    raise RuntimeError("broken closure")


def test_hidden_matrices_leave_out_the_head_and_embeddings_even_when_tied() -> None:
    model = everything()
    embed, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embed.weight
    tied = nn.Sequential(embed, nn.Linear(4, 4), head, nn.Linear(5, 2))
    assert [id(p) for p in hidden_matrices(tied)] == [id(tied[1].weight)]
    model.hidden.weight.requires_grad_(False)  # it may thaw
    assert any(p is model.hidden.weight for p in hidden_matrices(model))
    assert hidden_matrices(nn.Sequential(nn.LayerNorm(3))) == []


def test_missing_muon_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(OptionError, match=r"base 'muon' needs torch.optim.Muon: expected torch >= 2.9, got .*Upgrade"):
        SENG(perceptron(), base="muon")


# -- fused steps ------------------------------------------------------------------------------------------------------


def laid_out(values: Tensor, layout: str) -> Tensor:
    """Return the values in another order in memory, or with gaps."""
    if layout == "channels last":
        return values.to(memory_format=torch.channels_last) if values.dim() == 4 else values.mT.contiguous().mT
    if layout == "with gaps":
        return torch.stack([values, values], -1)[..., 0]
    return values[:1].expand(values.shape) if layout == "expanded" else values.clone()


@given(
    st.sampled_from(["sgd", "adamw"]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.lists(st.sampled_from(["plain", "channels last", "with gaps"]), min_size=3, max_size=3),
    st.lists(
        st.lists(st.sampled_from([None, "plain", "channels last", "with gaps", "expanded"]), min_size=3, max_size=3),
        min_size=3,
        max_size=4,
    ),
    st.sampled_from([0.0, 0.9]),
)
@settings(max_examples=60, deadline=None)
def test_fused_bases_step_as_the_plain_ones_do_whatever_has_a_gradient_and_however_it_lies_in_memory(
    base: str, dtype: torch.dtype, layouts: list[str], steps: list[list[str | None]], momentum: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 3, 3, 2), (3, 5), (0, 4))]

    def run(fused: bool) -> list[Tensor]:
        parameters = [nn.Parameter(laid_out(x.to(dtype), how)) for x, how in zip(draws, layouts, strict=True)]
        model = nn.ParameterList(parameters)
        [optimizer] = BASES[base](model, BaseSettings(0.1, momentum, False, 0.01, {} if fused else {"fused": False}))
        for k, forms in enumerate(steps):
            for p, x, form in zip(parameters, draws, forms, strict=True):
                p.grad = None if form is None else laid_out(((k + 1) * x).to(dtype), form)
            optimizer.step()
        return [p.detach().double() for p in parameters]

    loose = SAME if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 0.05  # of how far a step goes
    for fused, plain in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(fused, plain, rtol=loose, atol=loose)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_fused_form_is_kept_for_the_next_step(base: str) -> None:
    model = everything()
    optimizer = SENG(model, base=base, exclude=["head"])
    model.head.requires_grad_(False)
    step_once(model, optimizer)
    model.head.requires_grad_(True)
    step_once(model, optimizer)  # the head begins, the rest goes on
    assert [group["fused"] for group in optimizer.param_groups] == [True]


# -- what cannot work -------------------------------------------------------------------------------------------------


class NeedsMore(SGD):
    def step(self, closure: Any, *, loss: float) -> None:  # type: ignore[override]
        raise AssertionError


FACTORIES: dict[str, tuple[Any, str]] = {
    "a closure": (torch.optim.LBFGS, r"cannot step alone: .*, got 'step\(closure\)'"),
    "more arguments": (lambda p: NeedsMore(p, lr=0.1), r"cannot step alone: .*, got 'step\(closure, loss\)'"),
    "sparse gradients": (torch.optim.SparseAdam, "cannot take a step: .* does not support dense gradients"),
    "differentiable": (lambda p: SGD(p, lr=0.1, differentiable=True), "cannot take a step: .*"),
    "capturable": (lambda p: torch.optim.Adam(p, capturable=True), "cannot take a step: .*capturable"),
    "rate of another type": (lambda p: torch.optim.RMSprop(p, momentum="0.9"), "base factory failed: .*"),  # type: ignore[arg-type]
    "no argument": (lambda: SGD([], lr=0.1), "base factory failed: .* positional argument"),
    "other parameters": (lambda p: SGD([nn.Parameter(torch.ones(2))], lr=0.1), "base factory out of range"),
}


@pytest.mark.parametrize("kind", FACTORIES)
def test_factory_whose_optimizer_cannot_step_is_refused(kind: str) -> None:
    factory, match = FACTORIES[kind]
    model = perceptron()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(OptionError, match=rf"^SENG\(\): (the )?(base )?.*{match}"):
        SENG(model, base=factory)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("sgd", {"differentiable": True}),
        ("sgd", {"fused": True, "foreach": True}),
        ("sgd", {"dampening": "much"}),
        ("sgd", {"dampening": float("nan")}),
        ("sgd", {1: 2}),
        ("adamw", {"capturable": True}),
        ("adamw", {"betas": 0.9}),
        ("adamw", {"eps": None}),
        ("adamw", {"differentiable": True}),
        pytest.param("muon", {"ns_steps": 10**6}, marks=needs_muon),
        pytest.param("muon", {"aux_lr": "fast"}, marks=needs_muon),
        pytest.param("muon", {"aux_lr": float("inf")}, marks=needs_muon),
    ],
    ids=str,
)
def test_base_options_that_fail_at_a_step_are_refused_at_once(base: str, options: dict[Any, Any]) -> None:
    with pytest.raises(OptionError, match=r"^SENG\(\): base .* (does not take base_options|cannot take a step)"):
        SENG(everything(), base=base, base_options=options)


def test_base_options_beside_a_factory_are_refused() -> None:
    with pytest.raises(OptionError, match=r"base_options do not go with a factory: expected None, got \['eps'\]"):
        SENG(perceptron(), base=lambda p: torch.optim.Adam(p), base_options={"eps": 1e-3})


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.Adagrad, torch.optim.ASGD, torch.optim.Rprop])
def test_optimizers_of_torch_serve_as_bases(kind: Callable[[list[nn.Parameter]], Optimizer]) -> None:
    model = perceptron()
    optimizer = SENG(model, base=kind)
    before = [p.detach().clone() for p in model.parameters()]
    loss_of(model, *batch(0)).backward()
    optimizer.step()
    assert all(p.isfinite().all() and not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# -- learning rates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_each_base_has_a_learning_rate_of_its_own(base: str) -> None:
    if base == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is missing")
    assert SENG(everything(), base=base).param_groups[0]["lr"] == LEARNING_RATES[base]
    assert set(LEARNING_RATES) == set(BASES)
    assert f'{LEARNING_RATES[base]} for "{base}"' in " ".join((SENG.__doc__ or "").split())


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("form", [{}, {"foreach": False}])
def test_learning_rate_may_be_a_tensor(base: str, form: dict[str, Any]) -> None:
    def run(lr: Any) -> list[Tensor]:
        model = perceptron()
        optimizer = SENG(model, lr=lr, base=base, base_options=form)
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, *batch(step)).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    for p, q in zip(run(torch.tensor(0.125, dtype=torch.float64)), run(0.125), strict=True):
        torch.testing.assert_close(p, q, rtol=SAME, atol=SAME)


# -- a base that raises -----------------------------------------------------------------------------------------------


class Breaking(SGD):
    """Raises at a step, before it or with half of it done."""

    def __init__(self, params: Any, at: int, late: bool):
        super().__init__(params, lr=0.05, momentum=0.9)
        self.at, self.late, self.taken = at, late, 0

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        if self.taken == self.at and self.late:
            super().step()
            self.param_groups[0]["lr"] = 7.0
        if self.taken == self.at:
            raise RuntimeError("broken")
        return super().step()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"curvature_batch": "current", "power": 1.0}, {"ema": 0.5}], ids=str)
def test_step_whose_base_raises_has_changed_nothing(late: bool, at: int, options: dict[str, Any]) -> None:
    def run(breaking: bool) -> list[Tensor]:
        model = perceptron()
        optimizer = SENG(model, base=lambda p: Breaking(p, at if breaking else -1, late), refresh_every=2, **options)
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, *batch(step)).backward()
            if breaking and step == at - 1:
                before = snapshot(model, optimizer), optimizer.stats().keys()
                grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
                with pytest.raises(RuntimeError, match="broken"):
                    optimizer.step()
                assert (snapshot(model, optimizer), optimizer.stats().keys()) == before
                for p, grad in zip(model.parameters(), grads, strict=True):
                    assert p.grad is not None
                    assert grad is not None
                    assert torch.equal(p.grad, grad)
                optimizer.zero_grad()
                loss_of(model, *batch(step)).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(p, q) for p, q in zip(run(True), run(False), strict=True))
