"""What the README and docs/layers.md say cannot be done, or counts differently, is so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seng
from seng.errors import BatchError, ModelError, OptionError
from seng.testing import relative_error

N = 6


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def images(n: int = N) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def samples(model: nn.Module, run: Any) -> set[int]:
    """Run, step, and return the number of samples behind each block's curvature."""
    pre = seng.Preconditioner(model)
    run()
    pre.step()
    pre.close()
    return {stats.samples for stats in pre.stats().values()}


def test_samples_outside_dimension_0_pass_through():
    model = nn.Sequential(nn.Linear(4, 4), nn.Flatten(0, 1), nn.Linear(4, 2)).double()
    pre = seng.Preconditioner(model)
    model(images().reshape(2, 3, 4)).square().mean().backward()
    with pytest.warns(UserWarning, match="dimension 0 of its input has 6 entries where the batch has 2 samples"):
        pre.step()
    assert set(pre.coverage().passed_through) == {"2.weight", "2.bias"}


def test_data_parallel_is_refused():
    with pytest.raises(ModelError, match="DistributedDataParallel"):
        seng.SENG(nn.DataParallel(network()))


def test_two_forward_passes_before_one_backward_pass_are_two_uses_of_the_same_samples():
    model, x = network(), images()
    assert samples(model, lambda: (model(x) + model(-x)).square().mean().backward()) == {N}
    model.zero_grad()
    other = lambda: (model(x).square().mean() + model(x[:3]).square().mean()).backward()  # noqa: E731
    assert samples(model, other) == {N + 3}


def test_backward_between_forward_passes_starts_a_micro_batch():
    model, x = network(), images()

    def run() -> None:
        for _ in range(2):
            model(x).square().mean().backward()

    assert samples(model, run) == {2 * N}


def test_losses_that_contain_gradients_are_found_by_verify():
    model, x = network(), images().requires_grad_()

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return slope.square().mean()

    assert not seng.verify(model, penalty).ok
    assert seng.verify(model, lambda: model(x).square().mean()).ok


def test_weights_used_outside_their_layer_are_found_by_verify():
    model, x = network(), images()
    report = seng.verify(model, lambda: (model(x) @ model[2].weight).square().mean())  # type: ignore[operator]
    assert [name for name, error in report.errors.items() if error > report.tolerance] == ["2"]


def test_batch_norm_in_evaluation_mode_is_read_with_the_statistics_at_the_step():
    directions = []
    for disturb in (False, True):
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double().eval()
        nn.utils.vector_to_parameters(torch.linspace(-1, 1, 53).double(), model.parameters())
        pre = seng.Preconditioner(model, curvature_batch="current")
        model(images()).square().sum(1).mean().backward()
        if disturb:
            with torch.no_grad():
                model.train()(100 * images(3))
        pre.step()
        directions.append(torch.cat([p.grad.flatten() for p in model[1].parameters() if p.grad is not None]))
        pre.close()
    assert relative_error(directions[1], directions[0]) > 1e-3


def test_attention_with_a_forward_of_its_own_passes_through_and_is_reported():
    class Patched(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model.self_attn = Patched(4, 2, batch_first=True)
    pre = seng.Preconditioner(model)
    model(torch.randn(3, 5, 4)).square().mean().backward()
    pre.step()
    passed = pre.coverage().passed_through
    assert set(passed) == {name for name, _ in model.named_parameters() if name.startswith("self_attn")}
    assert all("MultiheadAttention" in reason for reason in passed.values())


def test_only_the_strategies_of_the_page_exist():
    with pytest.raises(OptionError, match="unknown distributed"):
        seng.SENG(network(), distributed="ring")  # type: ignore[arg-type]


def test_clipping_before_a_reweighted_step_does_nothing():
    after = []
    for clip in (False, True):
        model = nn.Sequential(*network(), nn.LayerNorm(3, dtype=torch.float64))
        options = {"reweight": True, "refresh_every": 1, "curvature_batch": "current", "estimator": "exact"}
        optimizer = seng.SENG(model, distributed="none", **options)
        model(images()).square().mean().backward()
        if clip:
            linear = [p for layer in model if isinstance(layer, nn.Linear) for p in layer.parameters()]
            assert float(nn.utils.clip_grad_norm_(linear, 1e-6)) == 0  # there is nothing to clip
        optimizer.step()
        after.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(after[0], after[1])


def test_batch_of_one_sample_gives_no_curvature():
    model = network()
    pre = seng.Preconditioner(model)
    model(images(1)).square().mean().backward()
    with pytest.raises(BatchError, match="at least 2 samples"):
        pre.step()
