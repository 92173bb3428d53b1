"""Capture under mixed precision, scaled losses, DistributedDataParallel and torch.compile."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from seng import SENG, Preconditioner, verify
from seng.testing import blocks_of, flat_gradient, relative_error

N = 6
SAME = 1e-12  # float64 rounding of sums in another order
SCALED = 1e-5  # float32 rounding through eigenvalues: scales are powers of two, but sums are taken anew
SECONDS = 60  # for a process group of one to come up


def _model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(True), nn.Flatten(), nn.Linear(12, 4), nn.LayerNorm(4),
            nn.ReLU(True), nn.Linear(4, 2),
        ).to(dtype)  # fmt: skip


def _images(seed: int = 1, n: int = N, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _loss(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (model(x) - torch.arange(len(x), device=x.device)[:, None]).square().sum(1).mean()


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: flat_gradient(block) for name, block in blocks_of(model).items()}


def _directions(model: nn.Module, call: Callable[[Tensor], Tensor], batches: list[Tensor], **options: Any) -> list[Any]:
    """Return what is left in ``.grad`` after a step on each batch."""
    options = {"estimator": "exact", "refresh_every": 2, **options}
    pre, results = Preconditioner(model, **options), []
    for x in batches:
        model.zero_grad()
        _loss(call, x).backward()
        pre.step()
        results.append(_gradients(model))
    pre.close()
    return results


def _assert_same(got: list[dict[str, Tensor]], expected: list[dict[str, Tensor]], tolerance: float = SAME) -> None:
    for step, (some, others) in enumerate(zip(got, expected, strict=True)):
        assert set(some) == set(others)
        for name, value in others.items():
            assert relative_error(some[name], value) <= tolerance, (step, name)


# -- mixed precision ----------------------------------------------------------------------------------------------


def test_autocast_captures_to_half_precision():
    model, x = _model(torch.float32), _images(dtype=torch.float32)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        return _loss(lambda _: y.float(), x)

    report = verify(model, loss)
    assert report.ok, str(report)
    assert max(report.errors.values()) > 1e-5  # float32 alone would be under this
    assert set(report.errors) == set(blocks_of(model))


@pytest.mark.parametrize("whole", [True, False])
def test_half_precision_does_not_excuse_a_weight_read_elsewhere(whole: bool):
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.second(self.first(x)), self.second.weight)

    torch.manual_seed(0)
    model, x = Leaky().to(torch.bfloat16 if whole else torch.float32), torch.randn(32, 3)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
            y = model(x.bfloat16() if whole else x)
        return y.float().sub(x).square().sum(1).mean()

    report = verify(model, loss)
    assert report.tolerance < 0.2
    assert {name for name, error in report.errors.items() if error > report.tolerance} == {"second"}


def test_autocast_lets_inputs_change_that_it_copied():
    class Reusing(nn.Module):
        """Autograd saves what autocast made of the input, and lets the input change."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            x.zero_()
            return y + x

    model, x = Reusing(), torch.randn(N, 3, generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x.clone())
        return y.float().square().sum(1).mean()

    report = verify(model, loss)
    assert report.ok, str(report)


def test_autocast_direction_is_near_that_of_full_precision():
    directions = []
    for half in (True, False):
        model, x = _model(torch.float32), _images(dtype=torch.float32)
        pre = Preconditioner(model, estimator="exact")
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = model(x)
        _loss(lambda _, y=y: y.float(), x).backward()
        pre.step()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        directions.append(torch.cat(list(_gradients(model).values())))
        pre.close()
    assert 1e-5 < relative_error(directions[0], directions[1]) < 0.2  # half precision, through an ill posed inverse


def test_bfloat16_models_keep_curvature_in_float32():
    model, x = _model(torch.bfloat16), _images(dtype=torch.bfloat16)
    pre = Preconditioner(model)
    _loss(model, x).backward()
    assert pre.step()
    held = pre.state_dict()["curvature"]["7"]
    assert held["mean"].dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())
    pre.close()


# -- scaled losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"power": 1.0}, {"preset": "paper"}, {"loss_reduction": "sum"}], ids=str)
def test_scaled_loss_gives_the_direction_of_the_loss(options: dict[str, Any]):
    results = []
    for scaled in (True, False):
        model = _model(torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        pre = Preconditioner(model, estimator="exact", refresh_every=2, grad_scaler=scaler, **options)
        steps = []
        for seed in range(3):
            optimizer.zero_grad()
            scaler.scale(_loss(model, _images(seed, dtype=torch.float32))).backward()
            scaler.unscale_(optimizer)
            pre.step()
            steps.append(_gradients(model))
            scaler.step(optimizer)
            scaler.update(2.0 ** (10 + seed))  # another scale for every batch
        results.append(steps)
        pre.close()
    _assert_same(results[0], results[1], SCALED)


def test_scaler_drives_seng_as_any_optimizer():
    results = []
    for scaled in (True, False):
        model = _model(torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        optimizer = SENG(model, lr=0.05, estimator="exact", refresh_every=2, grad_scaler=scaler)
        for seed in range(4):
            optimizer.zero_grad()
            scaler.scale(_loss(model, _images(seed, dtype=torch.float32))).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        optimizer.close()
    assert relative_error(results[0], results[1]) <= 10 * SCALED  # four steps, one after the other


@pytest.mark.parametrize("set_to_none", [True, False])
def test_step_skipped_by_the_scaler_leaves_no_records(set_to_none: bool):
    results = []
    for overflow in (True, False):
        model = _model(torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        base = torch.optim.SGD(model.parameters(), lr=0.0)
        pre = Preconditioner(model, estimator="exact", grad_scaler=scaler)

        class Stepping(torch.optim.SGD):
            """Preconditions inside its step, which the scaler leaves out."""

            pre: Preconditioner

            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                self.pre.step()

        optimizer = Stepping(model.parameters(), lr=0.0)
        optimizer.pre = pre
        if overflow:
            x = _images(5, 4, torch.float32)
            x[0, 0, 0, 0] = float("inf")
            scaler.scale(_loss(model, x)).backward()
            scaler.step(optimizer)
            scaler.update()
            assert pre.steps == 0
            model.load_state_dict(_model(torch.float32).state_dict())  # batch norm saw the inf, too
        base.zero_grad(set_to_none)
        scaler.scale(_loss(model, _images(dtype=torch.float32))).backward()
        scaler.step(optimizer)
        assert {stats.samples for stats in pre.stats().values()} == {N}
        results.append([_gradients(model)])
        pre.close()
    _assert_same(results[0], results[1], SCALED)


# -- DistributedDataParallel --------------------------------------------------------------------------------------


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of one, on this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, patience = f"tcp://127.0.0.1:{port}", timedelta(seconds=SECONDS)
    distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1, timeout=patience)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("wrap_first", [True, False])
@pytest.mark.parametrize("strategy", ["auto", "none", "local"])
def test_ddp_changes_nothing_on_one_rank(wrap_first: bool, strategy: str):
    batches = [_images(seed) for seed in range(3)]
    plain = _model()
    expected = _directions(plain, plain, batches)
    model = _model()
    wrapped = DistributedDataParallel(model)
    got = _directions(wrapped if wrap_first else model, wrapped, batches, distributed=strategy)
    _assert_same(got, expected)


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.usefixtures("one_rank")
def test_ddp_accumulates_without_synchronisation():
    x, plain, model = _images(), _model().eval(), _model().eval()
    expected = _directions(plain, plain, [x])
    wrapped = DistributedDataParallel(model)
    pre = Preconditioner(wrapped, estimator="exact")
    with wrapped.no_sync():
        (_sum(wrapped, x, slice(0, 4)) / N).backward()
    (_sum(wrapped, x, slice(4, N)) / N).backward()
    pre.step()
    assert {stats.samples for stats in pre.stats().values()} == {N}
    _assert_same([_gradients(model)], expected)
    pre.close()


def _sum(model: nn.Module, x: Tensor, part: slice) -> Tensor:
    return (model(x[part]) - torch.arange(len(x))[part, None]).square().sum()


# -- torch.compile ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_capture_what_eager_ones_do(backend: str, whole: bool):
    batches = [_images(seed) for seed in range(4)]
    plain = _model()
    expected = _directions(plain, plain, batches)
    model = _model()
    pre = Preconditioner(model, estimator="exact", refresh_every=2)
    if whole:
        compiled: Any = torch.compile(model, backend=backend)
    else:
        compiled = model
        for layer in model:
            layer.compile(backend=backend)
    got = []
    for x in batches:
        model.zero_grad()
        _loss(compiled, x).backward()
        pre.step()
        got.append(_gradients(model))
    pre.close()
    _assert_same(got, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_idle_hooks_break_no_graph():
    model, x = _model(), _images()
    pre = Preconditioner(model, refresh_every=100)
    _loss(model, x).backward()
    pre.step()  # from here on the hooks are idle
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)  # raises where a graph breaks
    for _ in range(3):
        model.zero_grad()
        _loss(compiled, x).backward()
        pre.step()
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    assert {stats.refresh_age for stats in pre.stats().values()} == {3}
    pre.close()


@pytest.mark.usefixtures("fresh_compiler")
def test_refreshes_compile_once_each_way():
    model, x = _model(), _images()
    pre = Preconditioner(model, refresh_every=2)
    compiled: Any = torch.compile(model, backend="aot_eager")
    graphs = []
    for _ in range(8):
        model.zero_grad()
        _loss(compiled, x).backward()
        pre.step()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[2:] == [graphs[2]] * 6  # once with the hooks at work, once with them idle
    pre.close()


def test_compiled_wrapper_is_looked_through():
    model = _model()
    compiled: Any = torch.compile(model, backend="eager")
    assert set(blocks_of(compiled)) == set(blocks_of(model))
    inner = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"), nn.Linear(2, 2))  # type: ignore[arg-type]
    assert set(blocks_of(inner)) == {"0", "1"}
    assert blocks_of(inner)["0"].parameter_names == ("0.weight", "0.bias")


def test_exported_programs_hold_nothing_of_the_capture():
    model, x = _model().eval(), _images()
    expected = model(x)
    pre = Preconditioner(model)  # its hooks are armed
    program = torch.export.export(model, (x,), strict=False)
    pre.close()
    assert "seng" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), expected)
