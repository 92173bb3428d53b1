"""Captured samples are compared with gradients: what disagrees is found, what does no harm is let be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seng import Preconditioner
from seng.gradient_check import common_ratio
from seng.testing import blocks_of, dense_direction, flat_gradient, oracle_rows, relative_error

N = 8
EXACT = 1e-9
OPTIONS: dict[str, Any] = {
    "power": 1.0, "damping": 0.1, "damping_mode": "absolute", "scale": "natural", "trust": None, "refresh_every": 1,
    "curvature_batch": "current", "estimator": "exact",
}  # fmt: skip


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)
    ).double()


def _inputs() -> Tensor:
    return torch.randn(N, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _loss(model: nn.Module) -> Tensor:
    return (model(_inputs()) - 1).square().sum(1).mean()


def _step(model: nn.Module, backward: Callable[[nn.Module], None], **options: Any) -> dict[str, str]:
    """Take a step without a warning of disagreement, and return what passes through."""
    pre = Preconditioner(model, **{**OPTIONS, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backward(model)
        pre.step()
    passed = pre.coverage().passed_through
    pre.close()
    return passed


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "mask": lambda g: g * (torch.arange(g.numel()).view_as(g) % 3 > 0),
    "noise": lambda g: g + 0.01 * torch.randn_like(g),
    "clamp": lambda g: g.clamp(-0.01, 0.01),
    "sign": torch.sign,
}


@pytest.mark.parametrize("layer", ["0", "1", "4", "6"])
@pytest.mark.parametrize("change", CHANGES)
def test_gradient_changed_by_a_hook_passes_through_as_it_is(layer: str, change: str):
    model, seen = _model(), []

    def hook(grad: Tensor) -> Tensor:
        seen.append(CHANGES[change](grad))
        return seen[-1]

    weight = model.get_submodule(layer).weight
    assert isinstance(weight, nn.Parameter)
    weight.register_hook(hook)
    assert set(_step(model, lambda model: _loss(model).backward())) == {f"{layer}.weight", f"{layer}.bias"}
    assert weight.grad is not None
    cosine = torch.cosine_similarity(weight.grad.flatten(), seen[-1].flatten(), 0)
    assert abs(float(cosine) - 1) < EXACT


PENALTIES: dict[str, Callable[[nn.Module], Tensor]] = {
    "squares": lambda model: sum((p.square().sum() for p in model.parameters()), torch.zeros(())),
    "absolute values": lambda model: sum((p.abs().sum() for p in model.parameters()), torch.zeros(())),
    "both": lambda model: sum((p.abs().sum() + p.square().sum() for p in model.parameters()), torch.zeros(())),
    "norm": lambda model: sum((p.norm() for p in model.parameters()), torch.zeros(())),
}


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_on_the_weights_do_no_harm(penalty: str):
    model = _model()
    rows, n = oracle_rows(model, lambda: _loss(model), N), N
    (_loss(model) + 0.1 * PENALTIES[penalty](model)).backward()
    expected = {
        name: dense_direction(rows[name] * n, flat_gradient(block), damping=0.1, relative=False, natural=True)
        for name, block in blocks_of(model).items()
    }
    model.zero_grad()
    assert _step(model, lambda model: (_loss(model) + 0.1 * PENALTIES[penalty](model)).backward()) == {}
    for name, block in blocks_of(model).items():
        assert relative_error(flat_gradient(block), expected[name]) < EXACT


@pytest.mark.parametrize("scale", [2.0**16, 1000.0, 3.0, 0.25, 12345.678])
def test_loss_scales_are_taken_out(scale: float):
    model, other = _model(), _model()
    _step(other, lambda model: _loss(model).backward())

    def scaled(model: nn.Module) -> None:
        (_loss(model) * scale).backward()
        for p in model.parameters():
            assert p.grad is not None
            p.grad /= scale

    assert _step(model, scaled) == {}
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert relative_error(p.grad, q.grad) < EXACT


def test_loss_scale_is_told_of_once():
    model = _model()
    pre = Preconditioner(model, **OPTIONS)
    (_loss(model) * 8).backward()
    for p in model.parameters():
        assert p.grad is not None
        p.grad /= 8
    with pytest.warns(UserWarning, match=r"captured gradients are 8 times those in \.grad, .* Pass grad_scaler"):
        pre.step()
    pre.close()


@pytest.mark.parametrize("largest", [0.7, 0.013])
def test_clipping_shortens_the_direction_and_leaves_curvature_alone(largest: float):
    model, other = _model(), _model()
    _step(other, lambda model: _loss(model).backward())

    def clipped(model: nn.Module) -> None:
        _loss(model).backward()
        ratios.append(largest / float(nn.utils.clip_grad_norm_(model.parameters(), largest)))

    ratios: list[float] = []
    assert _step(model, clipped) == {}
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert relative_error(p.grad, q.grad * ratios[0]) < 1e-5  # clipping adds 1e-6 to the norm


def test_gradients_changed_on_purpose_are_preconditioned_where_asked():
    model = _model()
    for p in model.parameters():
        p.register_hook(torch.sign)
    assert len(_step(model, lambda model: _loss(model).backward())) == len(list(model.parameters()))
    assert _step(model, lambda model: _loss(model).backward(), gradient_check=False) == {}


def test_full_batches_at_a_minimum_do_not_disagree():
    torch.manual_seed(0)
    x, y = torch.randn(64, 5), torch.randn(64, 2)
    model = nn.Linear(5, 2)
    pre = Preconditioner(model, refresh_every=1)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(64, 1)], 1), y).solution
    with torch.no_grad(), warnings.catch_warnings():
        model.weight.copy_(solution[:5].T)
        model.bias.copy_(solution[5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(12):
            model.zero_grad()
            (model(x) - y).square().sum(1).mean().backward()
            pre.step()
    assert pre.coverage().passed_through == {}
    pre.close()


def test_disagreement_is_found_later_and_ends():
    model, on = _model(), [False]
    weight = model.get_submodule("4").weight
    assert isinstance(weight, nn.Parameter)
    weight.register_hook(lambda g: CHANGES["mask"](g) if on[0] else g)
    pre = Preconditioner(model, **OPTIONS)
    passed = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(30):
            on[0] = 5 <= step < 20
            model.zero_grad()
            _loss(model).backward()
            pre.step()
            passed.append("4.weight" in pre.coverage().passed_through)
    assert not any(passed[:5])
    assert all(passed[12:20])  # each block is compared again within eight refreshes
    assert not any(passed[21:])
    pre.close()


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [({"a": 2.0**-16, "b": 2.0**-16}, 2.0**-16), ({"a": 0.37, "b": 0.37}, 1.0), ({"a": 0.5, "b": 1.0}, 1.0),
     ({"a": float("nan")}, 7.0), ({"a": 1.0 + 1e-7}, 1.0), ({"a": 1e-4 / 3, "b": 1e-4 / 3}, 1 / 30000)],
)  # fmt: skip
def test_common_ratio_is_that_of_a_scale(ratios: dict[str, float], expected: float):
    assert common_ratio(ratios, last=7.0) == pytest.approx(expected)


def test_gradients_of_all_ranks_are_not_compared_with_the_samples_of_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("seng.samples.several_ranks", lambda: True)
    model = _model()
    for p in model.parameters():
        p.register_hook(lambda g: g + torch.randn_like(g))  # as the mean with another rank's gradients would be
    assert _step(model, lambda model: _loss(model).backward(), distributed="none") == {}
