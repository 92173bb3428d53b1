"""Checkpoints: k + k steps through a file equal 2k bit for bit, and what is not this run's state is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seng import BASES, SENG, DenseThenSparse, Exponential, Options, Preconditioner
from seng.errors import StateError
from seng.estimators import ESTIMATORS, Choice
from seng.packed import TYPES, pack, unpack
from seng.per_sample import Shape
from seng.planning import choice as choices
from seng.planning.choice import choose_block
from seng.sketch import SKETCHES

from .runs import backward, batch, frozen, perceptron, snapshot, train
from .unsupported import Slope

K = 3  # refreshed at 0, 2, 4: the checkpoint lies in the middle of an interval


class Small(nn.Module):
    """Embedding, convolution, norm, linear layers and dropout on ids [n, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 6, 3)
        self.norm, self.drop, self.head = nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(self.embed(ids).mT)).relu()).mean(2))


def small(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small()


def advance(model: nn.Module, optimizer: SENG, steps: range) -> None:
    for step in steps:
        ids = torch.randint(0, 9, (8, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(ids).square().sum(1).mean().backward()
        optimizer.step()


def through_a_file(state: Any) -> Any:
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumes_bit_for_bit(**options: Any) -> None:
    lr = None if callable(options.get("base")) else 0.01  # which sets its own
    options = {"lr": lr, "refresh_every": 2, "estimator": "exact", **options}
    torch.manual_seed(7)  # of the dropout
    model = small()
    optimizer = SENG(model, **options)
    advance(model, optimizer, range(K))
    saved = through_a_file(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    )
    advance(model, optimizer, range(K, 2 * K))
    whole = snapshot(model, optimizer)

    other = small(seed=1)
    resumed = SENG(other, **options)
    torch.manual_seed(11)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"])
    advance(other, resumed, range(K, 2 * K))
    assert snapshot(other, resumed) == whole


@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name not in ("exact", "truncated")])
def test_resumed_run_equals_the_whole_one_for_every_estimator_and_sketch(estimator: str, sketch: str) -> None:
    power = 1.0 if estimator == "paper-code" else 0.5
    resumes_bit_for_bit(estimator=estimator, sketch=sketch, sketch_size=5, rank=2, power=power)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"power": 1.0},
        {"estimator": "truncated"},
        {"ema": 0.5},
        {"ema": 0.5, "power": 1.0, "curvature_batch": "current"},
        {"curvature_batch": "current"},
        {"positions": "expand", "sketch_size": 10},
        {"damping": Exponential(0.3, 0.9), "power": 1.0},
        {"estimator": "auto", "refresh_every": DenseThenSparse(1, 4, until=2)},
        {"preset": "paper", "damping": 0.5, "explicit_limit": 50, "sketch_size": 4, "rank": 2},
        {"preset": "paper", "damping": 0.5, "explicit_limit": 50, "sketch_size": 4, "estimator": "paper-code"},
    ],
    ids=str,
)
def test_resumed_run_equals_the_whole_one(options: dict[str, Any]) -> None:
    resumes_bit_for_bit(**options)


def factory(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3, amsgrad=True)


@pytest.mark.parametrize("base", [*BASES, pytest.param(factory, id="factory")])
def test_resumed_run_equals_the_whole_one_for_every_base(base: Any) -> None:
    if base == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is missing")
    resumes_bit_for_bit(base=base)


def test_refreshes_are_planned_for_the_interval_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    # a plan kept from before a checkpoint, made for another interval, would part the resumed run from the whole one
    intervals = []

    def recording(size: Shape, options: Options, step: int) -> Choice:
        intervals.append(options.interval_at(step))
        return choose_block(size, options, step)

    monkeypatch.setattr(choices, "choose_block", recording)
    model = perceptron()
    train(model, SENG(model, refresh_every=DenseThenSparse(1, 3, until=2)), range(5))
    assert intervals == [1, 1, 3, 3]  # both blocks at steps 0 and 4; step 1 has the sizes and interval of step 0


# -- packing ----------------------------------------------------------------------------------------------------------


def saved_run(**options: Any) -> tuple[nn.Sequential, SENG]:
    model = perceptron()
    lr = None if callable(options.get("base")) else 0.05  # which sets its own
    optimizer = SENG(model, lr=lr, refresh_every=2, **options)
    train(model, optimizer, range(K))
    return model, optimizer


def test_state_is_tensors_and_plain_values() -> None:
    _, optimizer = saved_run()

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert isinstance(key, str | int)
                check(item)
        elif isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (int, float, str, bool, Tensor)

    check(optimizer.state_dict())


@pytest.mark.parametrize(
    "options", [{}, {"power": 1.0}, {"estimator": "implicit", "sketch_size": 2}, {"ema": 0.3}], ids=str
)
def test_unpacking_undoes_packing(options: dict[str, Any]) -> None:
    _, optimizer = saved_run(**options)
    for packed in optimizer.preconditioner.state_dict()["curvature"].values():
        again = unpack(through_a_file(packed), torch.device("cpu"))
        assert type(again) is TYPES["Curvature"]
        assert frozen(pack(again)) == frozen(packed)


FORMER = {"Product": "Kronecker", "Rows": "Explicit", "Lookup": "LookupFactor"}


def renamed(value: Any) -> Any:
    """Return a state with the names that classes had before."""
    if isinstance(value, dict):
        return {key: FORMER.get(item, item) if key == "type" else renamed(item) for key, item in value.items()}
    return type(value)(map(renamed, value)) if isinstance(value, tuple | list) else value


def test_curvature_saved_under_former_names_is_loaded() -> None:
    model = small()
    optimizer = SENG(model, lr=0.01, estimator="exact")
    advance(model, optimizer, range(K))
    preconditioner = optimizer.preconditioner
    state = copy.deepcopy(preconditioner.state_dict())
    assert {entry["factor"]["type"] for entry in state["curvature"].values()} == {*FORMER}
    advance(model, optimizer, range(K, 2 * K))
    preconditioner.load_state_dict(renamed(state))
    assert frozen(preconditioner.state_dict()) == frozen(state)


def test_loading_twice_is_loading_once() -> None:
    model, optimizer = saved_run()
    state = through_a_file(optimizer.state_dict())
    optimizer.load_state_dict(state)
    once = snapshot(model, optimizer)
    optimizer.load_state_dict(state)
    assert snapshot(model, optimizer) == once


def test_loaded_state_is_not_shared_with_the_run_that_follows() -> None:
    model, optimizer = saved_run()
    state = through_a_file(optimizer.state_dict())
    before = frozen(state["preconditioner"])
    optimizer.load_state_dict(state)
    train(model, optimizer, range(K, 2 * K))
    assert frozen(state["preconditioner"]) == before


def test_loaded_seed_decides_the_draws_that_follow() -> None:
    model = perceptron()
    first, second = Preconditioner(model, seed=5), Preconditioner(model, seed=6)
    second.load_state_dict(first.state_dict())
    assert second.options.seed == 5


def test_preconditioner_state_stands_alone() -> None:
    model = perceptron()
    pre, other = Preconditioner(model, refresh_every=5), Preconditioner(model, refresh_every=5)
    backward(model, *batch(0))
    pre.step()
    pre.close()
    other.load_state_dict(through_a_file(pre.state_dict()))
    other.close()
    grads = []
    for each in (pre, other):
        backward(model, *batch(1))
        each.step()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(x, y) for x, y in zip(*grads, strict=True))


# -- states that are refused ------------------------------------------------------------------------------------------

Spoil = Callable[[dict[str, Any]], Any]


def pre_of(state: dict[str, Any]) -> dict[str, Any]:
    return state["preconditioner"]


def entry(state: dict[str, Any]) -> dict[str, Any]:
    return pre_of(state)["curvature"]["0"]


SPOILED: dict[str, Spoil] = {
    # truncated
    "empty": lambda s: s.clear(),
    "no bases": lambda s: s.pop("bases"),
    "no preconditioner": lambda s: s.pop("preconditioner"),
    "no version": lambda s: pre_of(s).pop("version"),
    "no layout": lambda s: pre_of(s).pop("layout"),
    "no step": lambda s: pre_of(s).pop("step"),
    "no counters": lambda s: pre_of(s).pop("counters"),
    "no curvature": lambda s: pre_of(s).pop("curvature"),
    "no type": lambda s: entry(s).pop("type"),
    "no factor": lambda s: entry(s).pop("factor"),
    "no tensor in the factor": lambda s: entry(s)["factor"].pop("a"),
    "no group of the base": lambda s: s["bases"][0].pop("param_groups"),
    "no parameters of the base": lambda s: s["bases"][0]["param_groups"][0]["params"].pop(),
    "one base too few": lambda s: s["bases"].clear(),
    # cut short
    "factor of fewer samples": lambda s: entry(s)["factor"].update(g=entry(s)["factor"]["g"][:, :-1]),
    "factor of fewer features": lambda s: entry(s)["factor"].update(a=entry(s)["factor"]["a"][..., :-1]),
    "factor without its bias": lambda s: entry(s)["factor"].update(bias=False),
    "eigenvalues cut": lambda s: entry(s)["state"].update(values=entry(s)["state"]["values"][:-1]),
    "eigenvectors cut": lambda s: entry(s)["state"].update(vectors=entry(s)["state"]["vectors"][:-1]),
    "momentum cut": lambda s: s["bases"][0]["state"][0].update(momentum_buffer=torch.zeros(3)),
    # of another version or model
    "next version": lambda s: pre_of(s).update(version=2),
    "version as text": lambda s: pre_of(s).update(version="1"),
    "another shape": lambda s: pre_of(s)["layout"]["0"].update({"0.weight": [6, 4]}),
    "another layer": lambda s: pre_of(s)["layout"].update({"7": {}}),
    "layer that is not there": lambda s: pre_of(s)["curvature"].update({"7": entry(s)}),
    "curvature of another layer": lambda s: pre_of(s)["curvature"].update({"0": pre_of(s)["curvature"]["2"]}),
    # of the wrong types
    "step as text": lambda s: pre_of(s).update(step="3"),
    "step as tensor": lambda s: pre_of(s).update(step=torch.tensor(3)),
    "seed as float": lambda s: pre_of(s).update(seed=0.5),
    "counters as list": lambda s: pre_of(s).update(counters=[1]),
    "counts as text": lambda s: pre_of(s).update(counters={"skipped_steps": "many"}),
    "layout as tensor": lambda s: pre_of(s).update(layout=torch.zeros(2)),
    "curvature as list": lambda s: pre_of(s).update(curvature=[1, 2]),
    "curvature entry as number": lambda s: pre_of(s)["curvature"].update({"0": 3}),
    "curvature entry of another kind": lambda s: pre_of(s)["curvature"].update({"0": entry(s)["state"]}),
    "type as list": lambda s: entry(s).update(type=["Curvature"]),
    "unknown type": lambda s: entry(s)["factor"].update(type="Hypercube"),
    "factor as text": lambda s: entry(s).update(factor="kronecker"),
    "state as none": lambda s: entry(s).update(state=None),
    "tensor as text": lambda s: entry(s)["factor"].update(a="ones"),
    "tensor of integers": lambda s: entry(s)["factor"].update(a=entry(s)["factor"]["a"].long()),
    "tensor of another precision": lambda s: entry(s)["factor"].update(a=entry(s)["factor"]["a"].float()),
    "scale as text": lambda s: entry(s)["factor"].update(scale="big"),
    "damping as vector": lambda s: entry(s).update(damping=torch.ones(3, dtype=torch.float64)),
    "mean as float": lambda s: entry(s).update(mean=0.1),
    "samples as text": lambda s: entry(s).update(samples="8"),
    # finite, but made by no refresh and no step
    "negative eigenvalues": lambda s: entry(s)["state"].update(values=-entry(s)["state"]["values"]),
    "eigenvalues of another precision": lambda s: entry(s)["state"].update(values=entry(s)["state"]["values"].float()),
    "eigenvectors out of proportion": lambda s: entry(s)["state"].update(vectors=5 * entry(s)["state"]["vectors"]),
    "samples out of proportion": lambda s: entry(s)["factor"].update(g=1e20 * entry(s)["factor"]["g"]),
    "mean above the largest": lambda s: entry(s).update(peak=entry(s)["peak"] / 2),
    "row sums as number": lambda s: entry(s).update(row_sums=3.0),
    "curvature of a later step": lambda s: entry(s).update(step=99),
    "curvature of a step before the first": lambda s: entry(s).update(step=-1),
    "more samples than there are": lambda s: entry(s).update(samples=2**70),
    "bias as number": lambda s: entry(s)["factor"].update(bias=5),
    "scale as flag": lambda s: entry(s)["factor"].update(scale=True),
    "infinite momentum": lambda s: s["bases"][0]["state"][0]["momentum_buffer"].fill_(float("inf")),
    "negative momentum": lambda s: s["bases"][0]["param_groups"][0].update(momentum=-0.5),
    "negative weight decay": lambda s: s["bases"][0]["param_groups"][0].update(weight_decay=-1.0),
    "bases as dict": lambda s: s.update(bases={}),
    "base as number": lambda s: s.update(bases=[3]),
    "base as text": lambda s: s.update(bases=["sgd"]),
    "momentum as text": lambda s: s["bases"][0]["state"][0].update(momentum_buffer="fast"),
    "momentum as list": lambda s: s["bases"][0]["state"][0].update(momentum_buffer=[1.0]),
}


@pytest.mark.parametrize("count", [-1.0, float("inf"), 2.0**70])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_count_of_steps_that_no_run_has_taken_is_refused(count: Any, as_tensor: bool) -> None:
    model, optimizer = saved_run(base="adamw")
    state = copy.deepcopy(optimizer.state_dict())
    state = {key: state[key] for key in ("bases", "preconditioner")}
    state["bases"][0]["state"][0]["step"] = torch.tensor(count) if as_tensor else count
    before = snapshot(model, optimizer)
    with pytest.raises(StateError, match="the base's (count of steps cannot be used|state is not finite)"):
        optimizer.load_state_dict(state)
    assert snapshot(model, optimizer) == before


def test_settings_that_are_none_by_default_may_be_given_and_taken_back() -> None:
    _, optimizer = saved_run(base=lambda params: torch.optim.Adafactor(params, lr=0.01))
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["eps"] = (1e-8, 1e-3)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["eps"] == (None, 1e-3)


@pytest.mark.parametrize("spoiled", SPOILED)
def test_spoiled_state_is_refused_and_changes_nothing(spoiled: str) -> None:
    model, optimizer = saved_run()
    state = copy.deepcopy(optimizer.state_dict())
    SPOILED[spoiled](state)
    train(model, optimizer, range(K, K + 1))  # so that a partial load would show
    before = snapshot(model, optimizer)
    with pytest.raises(
        StateError, match=r"^load_state_dict\(\): .*: expected .*, got .*\. Load the state of this model"
    ):
        optimizer.load_state_dict(state)
    assert snapshot(model, optimizer) == before


FOREIGN: dict[str, Any] = {
    "none": None,
    "number": 3,
    "list": [1, 2],
    "tensor": torch.zeros(3),
    "state of SGD": torch.optim.SGD(perceptron().parameters(), lr=0.1).state_dict(),
    "state of a model": perceptron().state_dict(),
    "integer keys": {1: 2},
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_state_is_refused_and_changes_nothing(foreign: str) -> None:
    model, optimizer = saved_run()
    before = snapshot(model, optimizer)
    for loader in (optimizer, optimizer.preconditioner):
        with pytest.raises(StateError, match=r"not a whole state of seng: expected .*, got"):
            loader.load_state_dict(FOREIGN[foreign])
    assert snapshot(model, optimizer) == before


OTHER_MODELS: dict[str, Callable[[], nn.Module]] = {
    "wider": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(),
    "deeper": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 3)).double(),
    "without bias": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double(),
    "other names": lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double(),
    "more that passes through": lambda: nn.Sequential(nn.Linear(4, 5), Slope(), nn.Linear(5, 3)).double(),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_state_of_another_model_is_refused_and_changes_nothing(kind: str) -> None:
    model = OTHER_MODELS[kind]()
    optimizer = SENG(model, lr=0.05)
    train(model, optimizer, range(1))
    before = snapshot(model, optimizer)
    _, other = saved_run()
    with pytest.raises(
        StateError, match=r"a state of another model|the base optimizer cannot read it|momentum_buffer does not fit"
    ):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(StateError, match="a state of another model"):
        optimizer.preconditioner.load_state_dict(other.preconditioner.state_dict())
    assert snapshot(model, optimizer) == before


def test_state_of_another_base_is_refused_and_changes_nothing() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is missing")
    model, optimizer = saved_run()
    _, other = saved_run(base="muon")
    before = snapshot(model, optimizer)
    with pytest.raises(StateError, match="other base optimizers: expected 1 states, got 2"):
        optimizer.load_state_dict(other.state_dict())
    assert snapshot(model, optimizer) == before


def test_training_goes_on_after_a_refused_state() -> None:
    model, optimizer = saved_run()
    other, undisturbed = saved_run()
    with pytest.raises(StateError, match="not a whole state"):
        optimizer.load_state_dict({})
    train(model, optimizer, range(K, 2 * K))
    train(other, undisturbed, range(K, 2 * K))
    assert snapshot(model, optimizer) == snapshot(other, undisturbed)


# -- any leaf of a state ----------------------------------------------------------------------------------------------

GONE = object()


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of everything in a state, containers included."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return [place for key, item in items for place in ((*path, key), *leaves(item, (*path, key)))]


def replaced(tree: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Return a state with one place changed."""
    if not path:
        return change(tree)
    items = dict(tree) if isinstance(tree, dict) else dict(enumerate(tree))
    items[path[0]] = replaced(items[path[0]], path[1:], change)
    items = {key: item for key, item in items.items() if item is not GONE}
    return items if isinstance(tree, dict) else type(tree)(items.values())


def deep(_: Any) -> Any:
    value: list[Any] = []
    for _ in range(3000):
        value = [value]
    return value


def filled(number: float) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        return torch.full_like(value, number) if isinstance(value, Tensor) and value.is_floating_point() else number

    return change


def grown(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value, value]) if value.dim() else value.expand(2)
    return [*value, *value] if isinstance(value, list | tuple) else [value, value]


def extended(value: Any) -> Any:
    more: dict[type, Any] = {dict: {"more": 1, 99: {}}, list: [7], tuple: (7,)}
    return value | more[dict] if isinstance(value, dict) else value + more.get(type(value), value)


def endless(_: Any) -> Any:
    value: dict[str, Any] = {}
    value["type"] = value
    return value


def doubled(_: Any) -> Any:
    value: list[Any] = [0]
    for _ in range(45):
        value = [value, value]
    return value


CHANGES: dict[str, Callable[[Any], Any]] = {
    "none": lambda _: None,
    "text": lambda _: "x",
    "nan": filled(float("nan")),
    "inf": filled(float("inf")),
    "huge": filled(1e200),
    "tiny": filled(1e-200),
    "minus zero": filled(-0.0),
    "zero": filled(0.0),
    "negative": filled(-1.0),
    "longer": grown,
    "gone": lambda _: GONE,
    "extended": extended,
    "integers": lambda value: value.nan_to_num().long() if isinstance(value, Tensor) else 3,
    "half": lambda value: value.half() if isinstance(value, Tensor) else value,
    "transposed": lambda value: value.mT if isinstance(value, Tensor) and value.dim() > 1 else value,
    "of one": lambda value: value.flatten()[:1] if isinstance(value, Tensor) else value,
    "nested": deep,
    "within itself": endless,
    "nested and doubled": doubled,
    "a large number": lambda _: 10**30,
    "true": lambda _: True,
    "an empty dictionary": lambda _: {},
    "a set": lambda _: {1},
}
FORMS_OF_STATES = {"own": ("bases", "preconditioner"), "torch's": ("state", "param_groups"), "both": ()}


@pytest.mark.parametrize("form", FORMS_OF_STATES)
@pytest.mark.parametrize(
    "options",
    [{}, {"base": "adamw", "power": 1.0}, {"base": torch.optim.Adafactor, "estimator": "implicit", "sketch_size": 3}],
    ids=["sgd", "adamw", "adafactor"],
)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_changed_state_is_refused_or_can_be_stepped_with(
    form: str, options: dict[str, Any], data: st.DataObject
) -> None:
    model, optimizer = saved_run(**options)
    kept = FORMS_OF_STATES[form] or optimizer.state_dict().keys()
    state = {key: value for key, value in optimizer.state_dict().items() if key in kept}
    place = data.draw(st.sampled_from(leaves(state)))
    change = data.draw(st.sampled_from(sorted(CHANGES)))
    try:
        changed = replaced(state, place, CHANGES[change])
    except (TypeError, ValueError, RuntimeError):
        assume(False)
        return
    before = snapshot(model, optimizer)
    try:
        optimizer.load_state_dict(changed)
    except StateError:
        assert snapshot(model, optimizer) == before
    train(model, optimizer, range(K, K + 3))
    assert all(p.isfinite().all() for p in model.parameters())
    optimizer.close()


def test_state_without_what_later_versions_added_is_read() -> None:
    model, optimizer = small(), None
    optimizer = SENG(model)
    advance(model, optimizer, range(K))
    state = optimizer.preconditioner.state_dict()
    for packed in state["curvature"].values():
        del packed["largest"], packed["batch"]
    loaded = Preconditioner(small())
    loaded.load_state_dict(through_a_file(state))
    assert all(own.largest is None and own.batch == 0 for own in loaded._curvature.values())  # pyright: ignore[reportPrivateUsage]
