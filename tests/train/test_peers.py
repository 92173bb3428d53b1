"""The optimizers that SENG is compared with, behind ``seng train --optimizer``."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seng.apps.recipes import RECIPES, build_recipe
from seng.apps.recipes.peers import PEERS as DEFAULTS
from seng.apps.train import build_session, evaluate
from seng.apps.train import peers as builders
from seng.apps.train.config import OptimizerName, RunConfig
from seng.apps.train.errors import ConfigError
from seng.apps.train.peers import PEERS
from seng.apps.train.session import Session
from seng.apps.train.settings import from_dict, override, to_dict

OF_LIBRARY = ("soap", "shampoo", "kron", "schedule-free")
FAST = {"muon": "0.1", "kron": "0.01", "schedule-free": "0.03", "soap": "0.03"}  # rates at which few steps show


def small(name: str) -> RunConfig:
    if name in OF_LIBRARY:
        pytest.importorskip("pytorch_optimizer")
        pytest.importorskip("opt_einsum")
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch without Muon")
    changes = {"model.widths": "4,8", "batch_size": "128", "lr": FAST.get(name, str(DEFAULTS[name].lr))}
    return override(build_recipe("digits", name), changes)


def steps(session: Session, first: int, last: int) -> None:
    for k in range(first, last):
        inputs, targets = session.data.train.batch((torch.arange(128) + 32 * k) % 1347)
        session.optimizer.zero_grad()
        session.loss(session.answer(session.forward, inputs), targets).backward()
        session.optimizer.step()


def values(session: Session) -> list[Tensor]:
    return [p.detach().clone() for p in session.model.parameters()]


def test_tables_have_the_same_names() -> None:
    assert list(PEERS) == list(DEFAULTS)
    assert list(get_args(OptimizerName)) == ["seng", "sgd", "adamw", *PEERS]
    assert all(config.name == name for name, config in DEFAULTS.items())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", PEERS)
def test_every_recipe_takes_every_peer(recipe: str, name: str) -> None:
    config = build_recipe(recipe, name)
    assert config.optimizer.lr == DEFAULTS[name].lr
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("name", PEERS)
def test_peer_moves_every_parameter_and_lowers_the_loss(name: str) -> None:
    session = build_session(small(name))
    before, start = values(session), evaluate(session)
    steps(session, 0, 30)
    assert not any(torch.equal(old, new) for old, new in zip(before, values(session), strict=True))
    end = evaluate(session)
    assert start is not None
    assert end is not None
    assert end.loss < 0.95 * start.loss


@pytest.mark.parametrize("name", [name for name in PEERS if name != "kron"])  # Kron draws numbers of its own
def test_peer_resumes_bit_for_bit(name: str) -> None:
    whole, first, second = (build_session(small(name)) for _ in range(3))
    steps(whole, 0, 14)
    steps(first, 0, 7)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    steps(second, 7, 14)
    assert all(torch.equal(a, b) for a, b in zip(values(whole), values(second), strict=True))


def on_norms_too(name: str) -> tuple[nn.Module, Optimizer]:
    small(name)  # skips where there is none
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    return model, PEERS[name](model, replace(DEFAULTS[name], aux_lr=0.5))


@pytest.mark.parametrize("name", ["muon", "kfac"])
def test_schedules_and_auxiliary_rates_reach_all_parts(name: str) -> None:
    model, optimizer = on_norms_too(name)
    assert {group["lr"] for group in optimizer.param_groups} == {DEFAULTS[name].lr, 0.5}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_auxiliary_rate_reaches_muon_behind_seng() -> None:
    small("muon")  # skips where there is none
    config = override(build_recipe("digits"), {"base": "muon", "aux_lr": "0.5", "model.widths": "4,8"})
    assert [group["lr"] for group in build_session(config).optimizer.param_groups] == [config.optimizer.lr, 0.5]


def test_evaluation_sees_averaged_parameters_and_restores_those_of_training() -> None:
    session = build_session(small("schedule-free"))
    steps(session, 0, 5)
    before = values(session)
    session.optimizer.eval()  # type: ignore[attr-defined]
    averaged = values(session)
    session.optimizer.train()  # type: ignore[attr-defined]
    evaluate(session)
    restored = values(session)
    assert max(float((a - b).abs().max()) for a, b in zip(before, averaged, strict=True)) > 1e-4
    for old, new in zip(before, restored, strict=True):
        torch.testing.assert_close(old, new, rtol=1e-5, atol=1e-6)  # there and back is one rounding


def test_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(builders, "import_module", absent)
    with pytest.raises(ConfigError, match=r"soap needs a package that is not installed.*pip install 'seng\[bench\]'"):
        build_session(override(build_recipe("digits", "soap"), {"model.widths": "4,8"}))


@pytest.mark.parametrize("name", ["seng", "kfac"])
def test_options_go_with_their_optimizer_alone(name: str) -> None:
    data = to_dict(build_recipe("digits", name))
    data["optimizer"][name] = None
    with pytest.raises(ConfigError, match=f"the options of {name} with {name} and with no other"):
        from_dict(data)
