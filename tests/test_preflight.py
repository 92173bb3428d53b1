"""verify says whether captured gradients are the true ones; plan says what curvature will hold and cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seng import Exponential, Preconditioner, plan, verify
from seng.errors import MemoryBudgetError, ModelError, OptionError, OrderError
from seng.planning.report import COLUMNS
from seng.sketch import Sketch

from .unsupported import Slope

N = 16
PRINTED = 0.005  # largest rounding of a share as printed, in percent
HELD = 0.1  # share by which planned and held bytes may differ: eigenvalues and 0-d tensors are left out


def _net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(True), nn.Dropout(0.3), nn.Flatten(),
            nn.Linear(36, 8), nn.LayerNorm(8), nn.Linear(8, 3),
        )  # fmt: skip


def _images() -> Tensor:
    return torch.randn(N, 2, 5, 5, generator=torch.Generator().manual_seed(1))


class _Reader(nn.Module):
    """Embeds, reads with a layer that is used twice, and predicts with the embedding's own weight."""

    def __init__(self, tied: bool = True):
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.twice = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.twice(self.embed(ids)).tanh()
        return self.head(self.norm(self.twice(x)))


def _ids() -> Tensor:
    return torch.randint(11, (N, 5), generator=torch.Generator().manual_seed(1))


class _Leaky(nn.Module):
    """Reads the weight of its second layer once more, beside the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).tanh())
        return self.third(F.linear(x, self.second.weight))


# -- verify -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_verify_accepts_models_that_are_captured_rightly(dtype: torch.dtype, training: bool, reduction: str):
    model, x = _net().to(dtype).train(training), _images().to(dtype)
    labels = torch.arange(N) % 3
    report = verify(model, lambda: F.cross_entropy(model(x), labels, reduction=reduction))
    assert report.ok, str(report)
    assert set(report.errors) == {"0", "1", "5", "6", "7"}
    assert max(report.errors.values()) <= report.tolerance == 1e3 * torch.finfo(dtype).eps
    assert str(report).endswith("capture is right")


@pytest.mark.parametrize("tied", [True, False])
def test_verify_accepts_shared_and_tied_parameters(tied: bool):
    model, ids = _Reader(tied).double(), _ids()
    report = verify(model, lambda: F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()))
    assert report.ok, str(report)
    assert set(report.errors) == {"embed", "twice", "norm"} | (set() if tied else {"head"})


def test_verify_names_the_layer_whose_weight_is_read_elsewhere():
    torch.manual_seed(0)
    model, x = _Leaky().double(), torch.randn(N, 3, dtype=torch.float64)
    report = verify(model, lambda: model(x).square().sum(1).mean())
    assert not report.ok
    assert {name for name, error in report.errors.items() if error > report.tolerance} == {"second"}
    assert "second: " in str(report)
    assert [line.endswith("WRONG") for line in str(report).splitlines() if line.startswith("second:")] == [True]
    assert str(report).endswith("capture is WRONG: exclude the layers marked")
    repaired = verify(model, lambda: model(x).square().sum(1).mean(), exclude=["second"])
    assert repaired.ok
    assert repaired.passed_through == {"second.weight": "excluded", "second.bias": "excluded"}


@pytest.mark.parametrize("penalty", [torch.square, torch.abs])
def test_verify_tells_penalties_on_the_weights_from_wrong_captures(penalty: Callable[[Tensor], Tensor]):
    model, x = nn.Linear(3, 2).double(), torch.randn(N, 3, dtype=torch.float64)
    report = verify(model, lambda: model(x).square().mean() + penalty(model.weight).sum())
    assert report.ok
    assert list(report.errors) == [""]
    assert report.remarks == (": a penalty on weight is part of the loss, which does no harm",)


class _TimeFirst(nn.Module):
    """Reads [time, batch, features] and answers by batch."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)).cumsum(0)[-1])


def test_verify_finds_samples_outside_dimension_0_where_sizes_agree():
    model, x = _TimeFirst().double(), torch.randn(N, N, 4, dtype=torch.float64)
    report = verify(model, lambda: model(x).square().sum(1).mean())
    assert not report.ok
    assert all(error <= report.tolerance for error in report.errors.values())
    assert report.apart["body"] > report.apart_tolerance
    assert "body: " in str(report)


class _Mixing(nn.Module):
    """Routes the samples of a batch to experts, as many to each as there are samples."""

    def __init__(self):
        super().__init__()
        self.gate, self.expert = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.tanh(self.gate(x))  # [n, s, 4]
        chosen = tokens.transpose(0, 1).reshape(-1, 4)[: len(x)]  # the first token of every sample, in another order
        return self.expert(chosen.flip(0))


def test_verify_runs_all_samples_alone_where_asked():
    model, x = _Mixing().double(), torch.randn(N, 2, 4, dtype=torch.float64)
    report = verify(model, lambda: model(x).square().sum(1).mean(), per_sample=True)
    assert not report.ok
    assert report.apart["expert"] > report.apart_tolerance


def test_verify_says_where_samples_cannot_be_run_alone():
    model, x = nn.Linear(3, 2).double(), torch.randn(N, 3, dtype=torch.float64)
    report = verify(model, lambda: model(x).square().mean() + model(-x).square().mean())
    assert report.ok
    assert report.remarks == ("samples were not run alone: the closure calls the model 2 times",)


def test_verify_tells_what_is_not_reached_and_what_passes_through():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2), "slope": Slope()})
    report = verify(model, lambda: model["slope"](model["used"](torch.randn(N, 3))).square().mean())
    assert report.ok
    assert report.unused == ("idle",)
    assert report.passed_through == {"slope.weight": "Slope is not supported"}
    assert "idle: not reached" in str(report)
    assert "slope.weight: passes through, Slope is not supported" in str(report)


def test_verify_is_not_content_with_nothing():
    model = nn.ModuleDict({"used": Slope(), "idle": nn.Linear(3, 2)})
    report = verify(model, lambda: model["used"](torch.randn(N, 3)).square().mean())
    assert report.unused == ("idle",)
    assert not report.ok


def test_verify_accepts_gradients_that_cancel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))  # the first bias has no effect at all
    x = torch.randn(64, 3)
    report = verify(model, lambda: model(x).square().mean())
    assert report.ok, str(report)


def _everything(model: nn.Module) -> dict[str, Any]:
    return {
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "random": torch.get_rng_state(),
        "modes": [module.training for module in model.modules()],
    }


def _assert_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert all(after["grads"][name] is grad for name, grad in before["grads"].items())
    assert all(torch.equal(after["values"][name], value) for name, value in before["values"].items())
    assert before["hooks"] == after["hooks"]
    assert before["modes"] == after["modes"]
    assert torch.equal(before["random"], after["random"])


ASKED: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "verify": lambda model, x: verify(model, lambda: model(x).square().mean()),
    "plan": lambda model, x: plan(model, x),
}


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("question", ASKED)
def test_questions_leave_everything_as_it_was(question: str, held: bool):
    model, x = _net(), _images()
    if held:
        model(x).square().mean().backward()
    kept = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before = _everything(model)
    ASKED[question](model, x)
    _assert_untouched(before, _everything(model))
    for name, p in model.named_parameters():
        assert (p.grad is not None) == held
        assert p.grad is None or torch.equal(p.grad, kept[name])


@pytest.mark.parametrize("question", ASKED)
def test_questions_that_fail_leave_everything_as_it_was(question: str):
    model, x = _net(), _images()
    before = _everything(model)
    with pytest.raises(RuntimeError, match="expected input"):
        ASKED[question](model, x[:, :1])
    _assert_untouched(before, _everything(model))


@pytest.mark.parametrize("question", ASKED)
def test_questions_do_not_disturb_training(question: str):
    results = []
    for asked in (True, False):
        model, x = _net().eval(), _images()
        pre = Preconditioner(model, refresh_every=1)
        for _ in range(2):
            if asked:
                ASKED[question](model, torch.cat([x, x]))
            model.zero_grad()
            model(x).square().mean().backward()
            if asked:
                ASKED["plan"](model, x)
            pre.step()
        assert {stats.samples for stats in pre.stats().values()} == {N}
        results.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        pre.close()
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("loss", [None, 1.0, torch.ones(())])
def test_verify_refuses_closures_without_a_loss(loss: Any):
    with pytest.raises(OrderError, match=r"verify\(\): the closure gave no loss: .* without calling backward"):
        verify(_net(), lambda: loss)


@pytest.mark.parametrize("question", ASKED)
def test_questions_refuse_what_training_refuses(question: str):
    call = rf"{question}\(\)"
    with pytest.raises(ModelError, match=f"{call}: no supported layer"):
        ASKED[question](Slope(), _images())
    asked: Any = verify if question == "verify" else plan
    with pytest.raises(OptionError, match=f"{call}: unknown option: .* Did you mean 'exclude'"):
        asked(_net(), lambda: None, excluded=["0"])
    with pytest.raises(OptionError, match=f"{call}: a selector of exclude matches no module"):
        asked(_net(), lambda: None, exclude=["9"])
    for option in ("estimator", "sketch", "distributed"):
        with pytest.raises(OptionError, match=f"{call}: unknown {option}: .* got 'loca'"):
            asked(_net(), lambda: None, **{option: "loca"})


# -- plan ---------------------------------------------------------------------------------------------------------


def _bytes(value: Any) -> int:
    if isinstance(value, Sketch):  # rows that are drawn, not data
        return 0
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    if is_dataclass(value) and not isinstance(value, type):
        return sum(_bytes(getattr(value, field.name)) for field in fields(value))
    return 0


def _trained(model: nn.Module, x: Any, **options: Any) -> Preconditioner:
    pre = Preconditioner(model, **options)
    model(x).square().mean().backward()
    pre.step()
    pre.close()
    return pre


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "images": (_net, _images),
    "tokens": (lambda: _Reader(tied=False), _ids),
}
OPTIONS: list[dict[str, Any]] = [
    {}, {"estimator": "exact"}, {"estimator": "explicit", "sketch_size": 20}, {"estimator": "truncated"},
    {"estimator": "implicit", "rank": 2, "sketch_size": 4}, {"estimator": "paper-code", "power": 1.0},
    {"power": 1.0}, {"preset": "paper", "explicit_limit": 100}, {"refresh_every": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_plan_is_what_training_does_and_holds(case: str, options: dict[str, Any]):
    make, batch = CASES[case]
    planned = plan(make(), batch(), **options)
    pre = _trained(make(), batch(), **options)
    assert {row.name: row.choice for row in planned.rows} == pre._sharing.choices
    assert {row.name for row in planned.rows} == set(pre.stats())
    for row in planned.rows:
        curvature = pre._curvature[row.name]
        held = _bytes(curvature.factor) + _bytes(curvature.state)
        if row.choice.form.name == "truncated":  # how many columns remain is known only then: a bound
            assert held <= (1 + HELD) * row.choice.nbytes, row.name
        else:
            assert held == pytest.approx(row.choice.nbytes, rel=HELD), row.name
    assert planned.nbytes == sum(row.choice.nbytes for row in planned.rows)


def test_plan_names_tied_blocks_as_training_does():
    planned, pre = plan(_Reader(), _ids()), _trained(_Reader(), _ids())
    assert {row.name: row.choice for row in planned.rows} == pre._sharing.choices
    assert {row.name for row in planned.rows} == {"embed", "twice", "norm"}


@pytest.mark.parametrize("form", ["tensor", "sequence", "mapping"])
def test_plan_takes_inputs_as_the_model_does(form: str):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return self.a(x) if y is None else self.a(x) + self.b(input=y)

    x = torch.randn(N, 3)
    inputs: dict[str, Tensor | list[Tensor] | Mapping[str, Tensor]] = {
        "tensor": x, "sequence": [x, x], "mapping": {"y": x, "x": x}
    }  # fmt: skip
    planned = plan(Two(), inputs[form])
    assert [row.name for row in planned.rows] == (["a"] if form == "tensor" else ["a", "b"])
    assert {row.size.n for row in planned.rows} == {N}


def test_plan_reads_as_a_table():
    planned = plan(_net(), _images(), refresh_every=7)
    lines = str(planned).splitlines()
    assert tuple(lines[0].split()) == COLUMNS
    layers = ["Conv2d", "BatchNorm2d", "Linear", "LayerNorm", "Linear"]
    assert [line.split()[:2] for line in lines[1:6]] == [list(pair) for pair in zip("01567", layers, strict=True)]
    assert "n 16, s 9, 9 -> 2, 2 groups" in lines[1]
    assert "n 16, p 8" in lines[2]
    assert f"MiB of curvature, {planned.nbytes / planned.parameter_bytes:.2f} times the parameters" in lines[-2]
    assert f"every 7: {planned.share(7):.1%}" in lines[-1]
    assert planned.share(1) > planned.share(10) > planned.share(100) > 0
    assert planned.share() == planned.share(7)
    mixed = str(plan(nn.Sequential(nn.Linear(3, 3), Slope()), torch.randn(N, 3)))
    assert "1.weight  passes through: Slope is not supported" in mixed


def test_plan_shares_add_up():
    planned = plan(_net(), _images(), refresh_every=7)
    assert planned.parameter_bytes == sum(p.numel() * p.element_size() for p in _net().parameters())
    assert list(planned.shares((100, 1))) == [1, 7, 100]
    told = json.loads(json.dumps(planned.to_dict((1, 100))))
    assert told["shares"].keys() == {"1", "7", "100"}
    for interval, share in told["shares"].items():
        work = sum(row["apply_flops"] + row["refresh_flops"] / int(interval) for row in told["rows"])
        assert share == pytest.approx(work / sum(row["backward_flops"] for row in told["rows"]))
    assert told["nbytes"] == sum(row["nbytes"] for row in told["rows"])
    assert [row["name"] for row in told["rows"]] == list("01567")
    assert told["rows"][0]["dimensions"] == {"n": N, "s": 9, "c": 2, "d_in": 9, "d_out": 2}
    cells = planned.cells()
    refreshes = sum(float(cell[COLUMNS.index("refresh")].rstrip("%")) for cell in cells)
    assert refreshes == pytest.approx(100 * (planned.share(1) - planned.share(10)) / 0.9, abs=PRINTED * len(cells))


@pytest.mark.parametrize("options", [*OPTIONS, {"positions": "expand"}, {"ema": 0.5}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_plan_needs_shapes_alone(case: str, options: dict[str, Any]):
    make, batch = CASES[case]
    assert plan(make().to("meta"), batch().to("meta"), **options) == plan(make(), batch(), **options)


def test_plan_names_what_the_inputs_do_not_reach():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    model.forward = lambda x: model["used"](x)
    planned = plan(model, torch.randn(N, 3))
    assert planned.unused == ("idle",)
    assert "idle  is not reached by these inputs" in str(planned)
    model.forward = lambda x: x
    with pytest.raises(OrderError, match=r"plan\(\): no layer was reached"):
        plan(model, torch.randn(N, 3))


@pytest.mark.parametrize("kind", ["linear", "mixed"])
def test_plan_knows_reweighted_layers(kind: str):
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.LayerNorm(50) if kind == "mixed" else nn.Linear(50, 50))

    options: dict[str, Any] = {
        "reweight": True, "power": 1.0, "estimator": "exact", "refresh_every": 1, "curvature_batch": "current",
        "distributed": "none",
    }  # fmt: skip
    x = torch.randn(N, 6)
    planned, pre = plan(net(), x, **options), _trained(net(), x, **options)
    assert {row.name: row.choice for row in planned.rows} == pre._sharing.choices
    assert "takes the place of the weight gradient" in {row.choice.reason for row in planned.rows}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("order", ["current", "previous"])
@pytest.mark.parametrize("damping", [0.1, Exponential(0.1, 0.9, every=5)], ids=["fixed", "schedule"])
@pytest.mark.parametrize("estimator", ["exact", "truncated", "paper-code"])
def test_plan_knows_how_the_system_is_solved(estimator: str, damping: Any, order: str, every: int):
    options = {
        "estimator": estimator, "damping": damping, "curvature_batch": order, "refresh_every": every, "power": 1.0,
    }  # fmt: skip
    model, x = nn.Linear(3, 20), torch.randn(N, 3)
    planned, pre = plan(model, x, **options), _trained(model, x, **options)
    assert type(pre._curvature[""].state) is planned.rows[0].choice.solver


def test_plan_obeys_the_budget_or_says_what_it_needs():
    def reader() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))

    x = torch.randn(N, 40, 12)
    free = plan(reader(), x)
    assert {row.choice.form.name for row in free.rows} <= {"operator", "rows"}
    budget = free.nbytes * 3 // 4
    tight = plan(reader(), x, memory_budget=budget)
    assert tight.nbytes <= budget
    assert {row.choice.reason for row in tight.rows} == {"to fit the memory budget", "exact is affordable"}
    pre = _trained(reader(), x, memory_budget=budget)
    assert sum(_bytes(held.factor) + _bytes(held.state) for held in pre._curvature.values()) <= (1 + HELD) * budget
    with pytest.raises(MemoryBudgetError, match=r"plan\(\): no plan fits memory_budget: expected at least \d+ bytes"):
        plan(reader(), x, memory_budget=9)
    with pytest.raises(MemoryBudgetError, match=r"step\(\): no plan fits memory_budget"):
        _trained(reader(), x, memory_budget=9)
