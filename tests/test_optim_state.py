"""SENG's state as torch.optim's: its tools carry it over bit for bit, and its hooks are called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from seng import BASES, SENG
from seng.errors import StateError
from seng.optim_state import OWN, merged

from .runs import batch, frozen, perceptron, train

K = 3  # refreshed at 0, 2, 4: the state is taken in the middle of an interval
FACTORIES: dict[str, Any] = {
    "sgd without momentum": lambda params: torch.optim.SGD(params, lr=0.01),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "groups": lambda params: torch.optim.RMSprop([{"params": params[:1], "lr": 0.02}, {"params": params[1:]}], lr=0.01),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
}
bases = pytest.mark.parametrize("base", [*BASES, *FACTORIES])


def made(base: str = "sgd", seed: int = 0, **options: Any) -> tuple[nn.Sequential, SENG]:
    if base == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is missing")
    model = perceptron(seed)
    return model, SENG(model, base=FACTORIES.get(base, base), refresh_every=2, **options)


def held(optimizer: SENG) -> Any:
    """Everything an optimizer holds, for comparison to the bit."""
    return frozen([[base.state_dict() for base in optimizer.bases], optimizer.preconditioner.state_dict()])


def resumes(base: str, carry: Callable[[nn.Module, SENG, nn.Module, SENG], None], **options: Any) -> None:
    model, optimizer = made(base, **options)
    train(model, optimizer, range(K))
    other, resumed = made(base, seed=1, **options)
    carry(model, optimizer, other, resumed)
    assert held(resumed) == held(optimizer)
    for each, own in ((model, optimizer), (other, resumed)):
        train(each, own, range(K, 2 * K))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


# -- torch's own tools ------------------------------------------------------------------------------------------------


@bases
@pytest.mark.parametrize(
    "form", [{}, {"full_state_dict": True, "cpu_offload": True}, {"flatten_optimizer_state_dict": True}], ids=str
)
def test_torchs_readers_carry_the_state_over(base: str, form: dict[str, bool]) -> None:
    def carry(model: nn.Module, optimizer: SENG, other: nn.Module, resumed: SENG) -> None:
        options = StateDictOptions(**form)  # pyright: ignore[reportArgumentType]
        weights, state = copy.deepcopy(get_state_dict(model, optimizer, options=options))
        set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=state, options=options)

    resumes(base, carry)


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "implicit", "sketch_size": 2, "rank": 1},
        {"estimator": "explicit", "sketch_size": 3},
        {"power": 1.0, "ema": 0.5},
        {"exclude": ["0"]},
    ],
    ids=str,
)
def test_torchs_readers_carry_every_curvature(options: dict[str, Any]) -> None:
    def carry(model: nn.Module, optimizer: SENG, other: nn.Module, resumed: SENG) -> None:
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        set_optimizer_state_dict(other, resumed, copy.deepcopy(get_optimizer_state_dict(model, optimizer)))

    resumes("sgd", carry, **options)


@bases
def test_state_and_groups_alone_carry_everything(base: str) -> None:
    def carry(model: nn.Module, optimizer: SENG, other: nn.Module, resumed: SENG) -> None:
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        state = copy.deepcopy(optimizer.state_dict())
        resumed.load_state_dict({key: state[key] for key in ("state", "param_groups")})

    resumes(base, carry)


@bases
def test_bases_and_preconditioner_alone_carry_everything(base: str) -> None:  # as older states are
    def carry(model: nn.Module, optimizer: SENG, other: nn.Module, resumed: SENG) -> None:
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        resumed.load_state_dict(
            {
                "bases": [copy.deepcopy(own.state_dict()) for own in optimizer.bases],
                "preconditioner": copy.deepcopy(optimizer.preconditioner.state_dict()),
            }
        )

    resumes(base, carry)


@bases
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_checkpoint_read_into_a_new_optimizer_lacks_curvature_only(base: str, tmp_path: Path) -> None:
    model, optimizer = made(base)
    train(model, optimizer, range(K))
    state_dict_saver.save(
        {"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=str(tmp_path), no_dist=True
    )
    other, resumed = made(base)
    state = get_optimizer_state_dict(other, resumed)  # has room for what a new optimizer holds
    state_dict_loader.load({"optimizer": state}, checkpoint_id=str(tmp_path), no_dist=True)
    set_optimizer_state_dict(other, resumed, state)
    assert frozen([own.state_dict() for own in resumed.bases]) == frozen([own.state_dict() for own in optimizer.bases])
    train(other, resumed, range(K, K + 1))
    assert resumed.stats()["0"].refresh_age == 0


@bases
def test_reading_the_state_of_a_new_optimizer_is_no_step(base: str) -> None:
    model, optimizer = made(base, weight_decay=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    get_optimizer_state_dict(model, optimizer)
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), before, strict=True))
    assert optimizer.preconditioner.steps == 0
    assert not optimizer.counters
    train(model, optimizer, range(1))
    assert optimizer.stats()["0"].samples == 8


CPU = torch.device("cpu")
NAMES = [f"encoder.layers.{k}.linear" for k in range(12)]


@settings(deadline=None, max_examples=40)
@given(step=st.integers(0, 2**63 - 1), counts=st.lists(st.integers(0, 2**40), max_size=12), world=st.integers(1, 2**16))
def test_new_optimizer_has_room_for_every_later_state(step: int, counts: list[int], world: int) -> None:
    place = {"type": "Place", "strategy": "sharded", "rank": world - 1, "world": world}
    place |= {"owners": [[name, world - 1] for name in NAMES], "apart": NAMES, "thin": NAMES}
    parts = {"version": 1, "layout": {}, "seed": 0, "curvature": {}, "carriers": {}}
    new = {**parts, "step": 0, "last_refresh": -1, "counters": {}, "place": {**place, "owners": [], "apart": []}}
    counters = {f"some_counted_event_{k}": count for k, count in enumerate(counts)}
    later = {**parts, "step": step, "last_refresh": step, "counters": counters, "place": place}
    bases = [{"state": {}, "param_groups": [{"params": list(range(len(NAMES)))}]}]
    shapes = [
        [
            own[OWN]["plain"].shape
            for own in merged(bases, state, {name: (k, CPU) for k, name in enumerate(NAMES)})["state"].values()
        ]
        for state in (new, later)
    ]
    assert shapes[0] == shapes[1]


def test_plain_values_take_a_kilobyte_a_block() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(30)))
    optimizer = SENG(model)
    model(torch.randn(4, 3)).square().sum(1).mean().backward()
    optimizer.step()
    entries = [own[OWN] for own in optimizer.state_dict()["state"].values() if OWN in own]
    assert len(entries) == 30
    assert sum(x.nbytes for own in entries for x in own.values() if x.dtype == torch.uint8) < 2**13 + 30 * 2**10


# -- torch's contract -------------------------------------------------------------------------------------------------


@bases
def test_state_is_that_of_the_bases_numbered_over_all_groups(base: str) -> None:
    model, optimizer = made(base)
    train(model, optimizer, range(K))
    state, parameters = optimizer.state_dict(), [p for group in optimizer.param_groups for p in group["params"]]
    assert [key for group in state["param_groups"] for key in group["params"]] == list(range(len(parameters)))
    assert len(state["param_groups"]) == len(optimizer.param_groups)
    assert sorted(state["state"]) == list(range(len(parameters)))
    assert {id(p) for p in optimizer.state} <= {id(p) for p in parameters}
    for key, p in enumerate(parameters):
        [own] = [
            each.state.get(p, {})
            for each in optimizer.bases
            if any(p is q for g in each.param_groups for q in g["params"])
        ]
        seen = {name: value for name, value in state["state"][key].items() if name != OWN}
        assert frozen(seen) == frozen(own)
        assert frozen({name: value for name, value in optimizer.state[p].items() if name != OWN}) == frozen(own)
        assert set(optimizer.state[p]) == set(state["state"][key])


def test_changes_of_the_state_reach_the_bases() -> None:
    model, optimizer = made()
    assert not optimizer.state
    train(model, optimizer, range(1))
    p, q = (parameter for _, parameter in model[0].named_parameters())
    last: Tensor = list(model.parameters())[-1]
    optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
    optimizer.state[q] = {"momentum_buffer": torch.zeros_like(q)}
    del optimizer.state[last]
    own = optimizer.bases[0].state
    assert torch.equal(own[p]["momentum_buffer"], torch.ones_like(p))
    assert torch.equal(own[q]["momentum_buffer"], torch.zeros_like(q))
    assert last not in own
    optimizer.state = {}
    assert not optimizer.bases[0].state
    train(model, optimizer, range(1, 2))


@pytest.mark.parametrize("form", [("bases", "preconditioner"), ("state", "param_groups"), ()])
def test_edited_rate_is_loaded_from_either_form(form: tuple[str, ...]) -> None:
    model, optimizer = made()
    train(model, optimizer, range(K))
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["lr"] = 0.5
    optimizer.load_state_dict({key: state[key] for key in form or state})
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_forms_that_differ_are_refused() -> None:
    model, optimizer = made()
    train(model, optimizer, range(K))
    state, before = copy.deepcopy(optimizer.state_dict()), held(optimizer)
    state["state"][1]["momentum_buffer"] = torch.zeros(5, dtype=torch.float64)
    state["state"] = {key: dict(own) for key, own in state["state"].items()}
    state["bases"][0]["state"] = copy.deepcopy(state["bases"][0]["state"])
    state["bases"][0]["state"][1]["momentum_buffer"] = torch.ones(5, dtype=torch.float64)
    with pytest.raises(StateError, match="its two forms differ"):
        optimizer.load_state_dict(state)
    assert held(optimizer) == before


def test_hooks_of_torch_are_called() -> None:
    model, optimizer = made()
    train(model, optimizer, range(K))
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda own: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda own, state: {**state, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda own, state: {k: v for k, v in state.items() if k != "note"})
    optimizer.register_load_state_dict_post_hook(lambda own: seen.append("after loading"))
    state = optimizer.state_dict()
    assert state["note"] == 1
    before = held(optimizer)
    optimizer.load_state_dict(state)
    assert seen == ["before saving", "after loading"]
    assert held(optimizer) == before


def test_state_without_curvature_resumes_with_a_refresh() -> None:
    model, optimizer = made()
    train(model, optimizer, range(K))
    state = optimizer.state_dict(curvature=False)
    assert {key for own in state["state"].values() for key in own.get(OWN, {})} == {"plain"}
    assert state["preconditioner"]["curvature"] == {}
    other, resumed = made()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(state))
    assert resumed.preconditioner.steps == K
    train(other, resumed, range(K, K + 1))
    assert resumed.stats()["0"].refresh_age == 0
    train(model, optimizer, range(K, K + 1))
    assert optimizer.stats()["0"].refresh_age == 1


class Wrapped(torch.optim.Optimizer):
    """An optimizer whose state dict has a form of its own."""

    def __init__(self, params: list[nn.Parameter]):
        self.inner = torch.optim.Adam(params, lr=0.01)
        super().__init__(params, {"lr": 0.01})
        self.param_groups = self.inner.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups


def test_base_with_a_form_of_its_own_is_saved_and_loaded_as_it_wants() -> None:
    FACTORIES["wrapped"] = Wrapped

    def carry(model: nn.Module, optimizer: SENG, other: nn.Module, resumed: SENG) -> None:
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    try:
        resumes("wrapped", carry)
    finally:
        del FACTORIES["wrapped"]


def test_late_parameters_have_no_state_and_none_is_made_up() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "first": nn.Linear(4, 3), "second": nn.Linear(4, 3)}).double()

    def step(own: nn.ModuleDict, optimizer: SENG, head: str) -> None:
        x, y = batch(0)
        optimizer.zero_grad()
        (own[head](own["body"](x).tanh()) - y).square().sum(1).mean().backward()
        optimizer.step()

    optimizer = SENG(model)
    step(model, optimizer, "first")
    other = copy.deepcopy({name: p.detach() for name, p in model.state_dict().items()})
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=flat))
    optimizer.close()
    model.load_state_dict(other)
    model.zero_grad()
    resumed = SENG(model)
    set_optimizer_state_dict(model, resumed, state, options=flat)
    assert held(resumed) == held(optimizer)
    step(model, resumed, "second")
    assert all(p.isfinite().all() for p in model.parameters())
