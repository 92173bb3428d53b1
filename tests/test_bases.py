"""Base optimizers: who gets which parameter, and that bases see matrices but share storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from seng import BASES, SENG
from seng.bases import AUXILIARY_LR, hidden_matrices
from seng.errors import OptionError

from .runs import batch, loss_of, perceptron

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

    optimizer = SENG(model, lr=99.0, base=factory)
    assert [id(p) for p in seen[0]] == [id(p) for p in model.parameters() if p.requires_grad]
    assert [group["lr"] for group in optimizer.param_groups] == [0.3]
    assert isinstance(optimizer.bases[0], torch.optim.RMSprop)


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


# -- Muon -------------------------------------------------------------------------------------------------------------


@needs_muon
def test_muon_takes_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    model = everything()
    optimizer = SENG(model, lr=0.02, base="muon", weight_decay=0.1)
    matrices = {name for name, kind in owners(model, optimizer).items() if kind == "MatrixMuon"}
    assert matrices == {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "hidden.weight"}
    assert set(owners(model, optimizer).values()) == {"MatrixMuon", "AdamW"}
    rates = {type(base).__name__: base.param_groups[0]["lr"] for base in optimizer.bases}
    assert rates == {"MatrixMuon": 0.02, "AdamW": pytest.approx(0.02 * AUXILIARY_LR)}
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
    model.hidden.weight.requires_grad_(False)
    assert all(p is not model.hidden.weight for p in hidden_matrices(model))
    assert hidden_matrices(nn.Sequential(nn.LayerNorm(3))) == []


def test_missing_muon_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(OptionError, match=r"base 'muon' needs torch.optim.Muon: expected torch >= 2.9, got .*Upgrade"):
        SENG(perceptron(), base="muon")
