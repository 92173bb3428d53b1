"""What ranks compute: functions of rank and world, named in jobs. In float64 where they are compared."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, product
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

from seng import SENG, Preconditioner
from seng.distributed.plan import Rates
from seng.samples import ALWAYS
from seng.subsets import Subset, count_drawn
from seng.testing import blocks_of, dense_direction, flat_gradient, loop_gradients, relative_error

SAMPLES = 10
STEPS = 4
RATE = 0.05
BYTES_ALONE = Rates(flops=1e18, bandwidth=1.0)  # what saves bytes is worth any work: thin factors travel
SPLITS = {1: [10], 2: [7, 3], 3: [6, 0, 4], 4: [5, 1, 0, 4]}  # uneven, and empty, and a single sample

# every way to curvature that is exact; each equals one process
EXACT: dict[str, dict[str, Any]] = {
    "defaults": {"refresh_every": 2},
    "power 1, held": {"power": 1.0, "refresh_every": 2},
    "power 1, every step": {"power": 1.0, "curvature_batch": "current", "refresh_every": 1},
    "absolute, natural": {"damping_mode": "absolute", "scale": "natural", "power": 1.0, "refresh_every": 3},
    "moving average": {"ema": 0.5, "refresh_every": 2},
    "truncated": {"estimator": "truncated", "refresh_every": 2},
    "sum": {"loss_reduction": "sum", "refresh_every": 2, "trust": 0.3},
    "positions": {"positions": "expand", "sketch_size": 10_000, "refresh_every": 2},
}


class Net(nn.Module):
    """An embedding, a linear layer with positions, a convolution, a norm, a head, and a parameter no layer covers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = nn.Embedding(7, 4)
            self.mix = nn.Linear(4, 5)
            self.conv = nn.Conv1d(5, 6, 3, padding=1)
            self.norm = nn.LayerNorm(6)
            self.head = nn.Linear(6, 3)
            self.gain = nn.Parameter(torch.ones(3))
            self.double()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.mix(self.table(ids)).tanh()
        x = self.norm(self.conv(x.mT).tanh().mean(2))
        return self.head(x) * self.gain


class Rms(nn.Module):
    """A normalisation that is recognised by what it computes."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(d)), 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.gain


class Every(nn.Module):
    """Layers that give several parts, products with a bias apart, computed weights and rows of any name."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table, self.bag = nn.Embedding(7, 4), nn.EmbeddingBag(7, 3)
            self.recurrent = nn.LSTM(4, 4, batch_first=True, bidirectional=True, proj_size=2)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
            self.norm, self.slope = Rms(4), nn.PReLU()
            self.up = nn.ConvTranspose1d(4, 3, 3, stride=2)
            self.pairs = nn.Bilinear(3, 3, 4)
            self.head = parametrizations.weight_norm(nn.Linear(4, 3))
            self.double()

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.recurrent(self.table(ids))
        memory = self.norm(x)
        x = x + self.attention(x, memory[:, :2], memory[:, :2], need_weights=False)[0]
        return self.head(self.slope(self.pairs(self.up(x.mT).tanh().mean(2), self.bag(ids))))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return ids and targets of all ranks together."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(7, (SAMPLES, 4), generator=generator)
    return ids, torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)


def share(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    start, count = sum(SPLITS[world][:rank]), SPLITS[world][rank]
    ids, y = batch(step)
    return ids[start : start + count], y[start : start + count]


def losses(model: nn.Module, ids: Tensor, y: Tensor) -> Tensor:
    return (model(ids) - y).square().sum(1)


def average(model: nn.Module, world: int) -> None:
    """Do what DistributedDataParallel does, for ranks without samples, too."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        dist.all_reduce(p.grad)
        p.grad /= world


def backward(model: nn.Module, step: int, rank: int, world: int, reduction: str = "mean") -> None:
    """Leave in ``.grad`` the gradient of the mean (or 1 / world of the sum) over the samples of all ranks."""
    model.zero_grad()
    ids, y = share(step, rank, world)
    if len(ids):
        weight = world / SAMPLES if reduction == "mean" else 1.0
        (losses(model, ids, y).sum() * weight).backward()
    average(model, world)


@torch.no_grad()
def descend(model: nn.Module, rate: float = RATE) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p -= rate * p.grad


def directions(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])  # type: ignore[union-attr]


def alone(options: dict[str, Any], make: Callable[[], nn.Module] = Net) -> list[Tensor]:
    """Return the directions of one process on the same global batches."""
    model, seen = make(), []
    pre = Preconditioner(model, distributed="none", **options)
    mean = options.get("loss_reduction", "mean") == "mean"
    for step in range(STEPS):
        model.zero_grad()
        own = losses(model, *batch(step))
        (own.mean() if mean else own.sum()).backward()
        pre.step()
        seen.append(directions(model))
        descend(model, RATE if mean else RATE / SAMPLES)
    return seen


def together(
    strategy: str,
    options: dict[str, Any],
    rank: int,
    world: int,
    watch: Callable[[Preconditioner], None] | None = None,
    make: Callable[[], nn.Module] = Net,
) -> list[Tensor]:
    """Return the directions of all ranks together, at each step."""
    model, seen = make(), []
    pre = Preconditioner(model, distributed=strategy, **options)  # type: ignore[arg-type]
    pre.strategy.given_rates = BYTES_ALONE
    mean = options.get("loss_reduction", "mean") == "mean"
    for step in range(STEPS):
        backward(model, step, rank, world, "mean" if mean else "sum")
        assert pre.step()
        seen.append(directions(model))
        descend(model, RATE if mean else RATE * world / SAMPLES)
        if watch is not None:
            watch(pre)
    pre.close()
    return seen


def exact(rank: int, world: int) -> dict[str, float]:
    """Largest relative difference from one process, by setting and strategy."""
    found = {}
    for setting, options in EXACT.items():
        reference = alone(options) if rank == 0 else []
        for strategy in ("global", "sharded"):
            got = together(strategy, options, rank, world)
            scale = 1.0 if options.get("loss_reduction", "mean") == "mean" else world  # the mean of the ranks' sums
            found[f"{strategy}: {setting}"] = max(
                (float((a * scale - b).norm() / b.norm()) for a, b in zip(got, reference, strict=rank == 0)),
                default=0.0,
            )
    return found


def some_samples(rank: int, world: int) -> dict[str, float]:
    """Largest relative error of directions beside the dense oracle of the samples that all ranks draw."""
    found = {}
    for strategy, reduction, trust in product(("global", "sharded"), ("mean", "sum"), (None, 0.3)):
        model = Net()
        blocks = blocks_of(model)
        rows = {name: loop_gradients(partial(loss_at, model), b.parameters, SAMPLES) for name, b in blocks.items()}
        pre = Preconditioner(
            model, distributed=strategy, curvature_samples=0.5, curvature_batch="current", trust=trust,  # type: ignore[arg-type]
            loss_reduction=reduction,  # type: ignore[arg-type]
        )  # fmt: skip
        backward(model, 0, rank, world, reduction)
        before = {name: flat_gradient(block) for name, block in blocks.items()}
        pre.step()
        kept, weights = drawn(world)
        summed = 1 if reduction == "mean" else SAMPLES / world
        errors = []
        for name, block in blocks.items():
            own = rows[name][kept] * weights[:, None]
            expected = summed * dense_direction(
                own, before[name] / summed, damping=0.1, power=0.5, natural=True, trust=trust
            )
            errors.append(relative_error(flat_gradient(block), expected))
        found[f"{strategy}: {reduction}, trust {trust}"] = max(errors)
        pre.close()
    return found


def cleared_on_one(rank: int, world: int) -> dict[str, list[str]]:
    """Layers that keep their plain gradient where one rank alone has backward passes whose gradients it cleared."""
    found = {}
    for strategy, samples in product(("local", "global", "sharded"), (None, 2)):
        model, refused = Net(), set()
        pre = Preconditioner(model, distributed=strategy, curvature_samples=samples, refresh_every=1)  # type: ignore[arg-type]
        for step in range(STEPS + 2):
            if rank == 0 and step >= ALWAYS:
                losses(model, *batch(step + 1)).mean().backward()
            backward(model, step, rank, world)
            pre.step()
            refused |= pre._samples.refused.keys()
        found[f"{strategy}: {samples}"] = sorted(refused)
        pre.close()
    return found


def loss_at(model: nn.Module, i: int) -> Tensor:
    """Return the loss of one sample of the first batch."""
    return losses(model, *(x[i : i + 1] for x in batch(0))).sum()


def drawn(world: int) -> tuple[Tensor, Tensor]:
    """Return the samples of all ranks that half of each rank's are, and what makes their mean that of the batch."""
    kept, weights = [], []
    for start, n in zip(accumulate([0, *SPLITS[world]]), SPLITS[world], strict=False):
        count = count_drawn(0.5, n)
        kept.append(start + Subset(0.5, 0, 0).first(0, n, count))
        weights += [n / count] * count if count else []
    index = torch.cat(kept)
    return index, (torch.tensor(weights, dtype=torch.float64) * len(index) / SAMPLES).sqrt()


def mean_of_ranks(options: dict[str, Any], world: int, make: Callable[[], nn.Module] = Net) -> list[Tensor]:
    """Return the mean of the directions that ranks with samples take one by one, each step from the same place."""
    models = [make() for _ in range(world)]
    options = {**options, "gradient_check": False}  # samples of one rank beside gradients of all
    everyone = [Preconditioner(model, distributed="none", **options) for model in models]
    seen = []
    for step in range(STEPS):
        able = [rank for rank in range(world) if SPLITS[world][rank] >= 2]
        for rank, model in enumerate(models):
            model.zero_grad()
            ids, y = share(step, rank, world)
            if len(ids):
                (losses(model, ids, y).sum() * world / SAMPLES).backward()
        _average_in_process(models, range(world))
        for rank in able:
            everyone[rank].step()
        _average_in_process(models, able)
        seen.append(directions(models[0]))
        for model in models:
            descend(model)
    return seen


def _average_in_process(models: Sequence[nn.Module], counted: Any) -> None:
    for same in zip(*(model.parameters() for model in models), strict=True):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
        mean = torch.stack([grads[k] for k in counted]).mean(0)
        for p in same:
            p.grad = mean.clone()


LOCAL: dict[str, dict[str, Any]] = {
    "defaults": {"refresh_every": 2},
    "power 1, every step": {"power": 1.0, "curvature_batch": "current", "refresh_every": 1},
    "moving average": {"ema": 0.5, "refresh_every": 2},
    "thin": {"estimator": "implicit", "rank": 1, "sketch_size": 100, "refresh_every": 4},
    "some samples": {"curvature_samples": 2, "refresh_every": 1},
}


EVERY: dict[str, dict[str, Any]] = {
    "defaults": {"refresh_every": 2},
    "implicit": {"estimator": "implicit", "rank": 8, "sketch_size": 1000, "refresh_every": 2},
}


def every_layer(rank: int, world: int) -> dict[str, float]:
    """The same of a model with all kinds of parts, beside one process and beside the ranks one by one."""
    found = {}
    for setting, options in EVERY.items():
        for strategy in ("global", "sharded", "local"):
            got = together(strategy, options, rank, world, make=Every)
            reference = []
            if rank == 0:
                reference = mean_of_ranks(options, world, Every) if strategy == "local" else alone(options, Every)
            pairs = zip(got, reference, strict=rank == 0)
            found[f"{strategy}: {setting}"] = max((float((a - b).norm() / b.norm()) for a, b in pairs), default=0.0)
    return found


def averaged(rank: int, world: int) -> dict[str, float]:
    """Largest relative difference of "local" from the ranks computed one by one, by setting."""
    found = {}
    for setting, options in LOCAL.items():
        got = together("local", options, rank, world)
        reference = mean_of_ranks(options, world) if rank == 0 else []
        pairs = zip(got, reference, strict=rank == 0)
        found[setting] = max((float((a - b).norm() / b.norm()) for a, b in pairs), default=0.0)
    return found


def few_exact(rank: int, world: int) -> dict[str, float]:
    """The same for one setting: the number of ranks alone is of interest."""
    reference = alone(EXACT["defaults"]) if rank == 0 else []
    found = {}
    for strategy in ("global", "sharded"):
        pairs = zip(together(strategy, EXACT["defaults"], rank, world), reference, strict=rank == 0)
        found[strategy] = max((float((a - b).norm() / b.norm()) for a, b in pairs), default=0.0)
    return found


NEVER_THIN = Rates(flops=1.0, bandwidth=1e18)  # bytes cost nothing: corrections travel whole
PLANS: dict[str, tuple[Callable[[int, int], int], Any]] = {  # samples by step and rank, and refresh_every
    "thin at last": (lambda step, rank: 5 + rank, lambda step: 1 if step < 4 else 6),
    "thin at first": (lambda step, rank: 5 + rank, lambda step: 20 if step < 4 else 1),
    "sizes": (lambda step, rank: (2, 12, 3, 4)[step // 4 % 4] + rank, 4),
}


def plans_change(rank: int, world: int) -> dict[str, Any]:
    """Blocks whose thin factors travel for a while: difference from corrections that travel whole, and hashes."""
    found: dict[str, Any] = {}
    for (name, (count, every)), batches in product(PLANS.items(), ("previous", "current")):
        ends = []
        for rates in (BYTES_ALONE, NEVER_THIN):
            model, counts = Net(), set[int]()
            options = {**LOCAL["thin"], "refresh_every": every, "curvature_batch": batches}
            pre = Preconditioner(model, distributed="local", **options)
            pre.strategy.given_rates = rates
            for step in range(16):
                model.zero_grad()
                n, total = count(step, rank), sum(count(step, other) for other in range(world))
                generator = torch.Generator().manual_seed(100 * step + rank)
                ids = torch.randint(7, (n, 4), generator=generator)
                y = torch.randn(n, 3, generator=generator, dtype=torch.float64)
                (losses(model, ids, y).sum() * world / total).backward()
                average(model, world)
                pre.step()
                descend(model)
                counts.add(len(pre.plan.thin))
            pre.close()
            ends.append(
                (torch.cat([p.detach().reshape(-1) for p in model.parameters()]), hashed(model), sorted(counts))
            )
        (thin, digest, counts), (whole, _, none) = ends
        found[f"{name}, {batches}"] = [float((thin - whole).norm() / whole.norm()), digest, counts, none]
    return found


class Small(nn.Module):
    """Two layers and a parameter in another precision that no layer covers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
            self.gain = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.gain


def small_loss(model: nn.Module, rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    x, y = torch.randn(6, 4, generator=generator), torch.randn(6, 3, generator=generator)
    return (model(x) - y).square().sum(1).mean()


def hashed(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for p in model.parameters():
        digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()


REPLICAS: dict[str, dict[str, Any]] = {
    "local": {"distributed": "local"},
    "local, thin": {"distributed": "local", "estimator": "implicit", "refresh_every": 20},
    "global": {"distributed": "global"},
    "sharded": {"distributed": "sharded"},
    "local, rounded": {"distributed": "local", "wire_dtype": "bfloat16"},
    "global, rounded": {"distributed": "global", "wire_dtype": "bfloat16"},
    "sharded, rounded": {"distributed": "sharded", "wire_dtype": "bfloat16"},
}


def replicas(rank: int, world: int) -> dict[str, list[str]]:
    """Hashes before and after 100 steps (rounded: 20) behind DistributedDataParallel, with one rank slow once."""
    found = {}
    for setting, options in REPLICAS.items():
        inner = Small()
        optimizer = SENG(inner, lr=0.05, **{"refresh_every": 7, **options})  # type: ignore[arg-type]
        optimizer.preconditioner.strategy.given_rates = BYTES_ALONE
        model, start = DistributedDataParallel(inner), hashed(inner)
        for step in range(20 if "rounded" in setting else 100):
            optimizer.zero_grad()
            small_loss(model, rank, step).backward()
            if step == 10 and rank == 0:
                time.sleep(0.3)
            optimizer.step()
        found[setting] = [start, hashed(inner)]
        optimizer.close()
    return found


def rounding(rank: int, world: int) -> dict[str, float]:
    """Relative difference that bfloat16 on the wire makes to the first direction."""
    found = {}
    for strategy in ("local", "global", "sharded"):
        exactly, rounded = (
            together(strategy, {**EXACT["defaults"], "wire_dtype": dtype}, rank, world)[0]
            for dtype in (None, "bfloat16")
        )
        found[strategy] = float((exactly - rounded).norm() / exactly.norm())
    return found


class Branches(nn.Module):
    """Each sample goes one way; a rank whose samples all go the other leaves a layer unused."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Linear(4, 5)
            self.ways = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])
            self.double()

    def forward(self, x: Tensor, way: int) -> Tensor:
        return self.ways[way](self.stem(x).tanh())


def branches(rank: int, world: int) -> dict[str, float]:
    """Difference from one process that takes the ways as micro-batches."""

    def data(step: int, way: int) -> Tensor:
        return torch.randn(5, 4, generator=torch.Generator().manual_seed(2 * step + way), dtype=torch.float64)

    found = {}
    for strategy in ("global", "sharded"):
        model, single, error = Branches(), Branches(), 0.0
        pre = Preconditioner(model, distributed=strategy, refresh_every=2)
        reference = Preconditioner(single, distributed="none", refresh_every=2)
        for step in range(STEPS):
            model.zero_grad()
            model(data(step, rank % 2), rank % 2).square().sum(1).mean().backward()
            average(model, world)
            single.zero_grad()
            for other in range(world):
                (single(data(step, other % 2), other % 2).square().sum(1).mean() / world).backward()
            assert pre.step()
            assert reference.step()
            a, b = directions(model), directions(single)
            error = max(error, float((a - b).norm() / b.norm()))
            descend(model)
            descend(single)
        found[strategy] = error
    return found
