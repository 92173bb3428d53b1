"""Gradients that no curvature reaches: plain, or amplified to the pace of the preconditioned layers.

    python benchmarks/passthrough.py [--seeds 5] [--steps 80]

Small models are trained with SGD and, at the same rate, momentum and weight decay, with SENG. "curvature" is the
library as it is: all supported layers have curvature of their own. In the other columns a part of the model is
excluded, under three rules for the passing part: "library" is equation 20 of docs/theory.md, no amplification and a
joint norm of at most 1; "plain" is that without its last term, and "pace" multiplies by lambda^-power. Numbers are
mean losses of the last four steps, medians and worst of the seeds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import fmean, median
from typing import Any

import torch
from environment import save
from torch import Tensor, nn
from torch.nn import functional as F

import seng

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
CLASSES, POSITIONS, WIDTH, BATCH, BATCHES = 4, 10, 16, 16, 4
PASSING = (nn.MultiheadAttention, nn.RNNBase, nn.PReLU, nn.ConvTranspose1d)  # where a part passes through
MOMENTUM, DECAY = 0.9, 5e-4


class Encoder(nn.Module):
    """Two of torch's transformer layers; attention and what it projects pass through."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, 0])


class Attention(nn.Module):
    """One MultiheadAttention between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


class Recurrent(nn.Module):
    """A recurrent layer, all of which passes through, and a linear head."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.body, self.head = kind(WIDTH, 24, batch_first=True), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flip(1))[0][:, -1])


class Token(nn.Module):
    """A class token and position table in front of attention whose projections are linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.table = nn.Parameter(0.02 * torch.randn(1, POSITIONS + 1, WIDTH))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), 1, WIDTH), self.first(x)], 1) + self.table
        return self.head((x + self.out(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))))[:, 0])


def _prelu() -> nn.Module:
    layers = [nn.Linear(POSITIONS * WIDTH, 32), nn.PReLU(), nn.Linear(32, WIDTH), nn.PReLU(), nn.Linear(WIDTH, CLASSES)]
    return nn.Sequential(nn.Flatten(), *layers)


def _transposed() -> nn.Module:
    layers = [nn.Conv1d(POSITIONS, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose1d(8, 8, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * WIDTH, CLASSES))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "TransformerEncoder": Encoder,
    "MultiheadAttention": Attention,
    "GRU": lambda: Recurrent(nn.GRU),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "PReLU": _prelu,
    "ConvTranspose1d": _transposed,
    "class token": Token,
}


def final_loss(name: str, rate: float, rule: str | None, seed: int, steps: int) -> float:
    """Return the mean loss of the last passes over all batches; infinite where it is not a number."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    x = torch.randn(BATCHES, BATCH, POSITIONS, WIDTH)
    y = x[:, :, 0, :CLASSES].argmax(-1)
    sgd = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=DECAY)
    kinds = {type(module) for module in model.modules() if rule != "curvature" and isinstance(module, PASSING)}
    pre = seng.Preconditioner(model, exclude=sorted(kinds, key=str)) if rule else None
    passing = [model.get_parameter(key) for key in pre.coverage().passed_through] if pre else []
    losses = []
    for step in range(steps):
        sgd.zero_grad()
        loss = F.cross_entropy(model(x[step % BATCHES]), y[step % BATCHES])
        loss.backward()
        before = [p.grad.clone() for p in passing if p.grad is not None]
        taken = pre.step() if pre else bool(loss.isfinite())
        if pre and taken and rule in ("plain", "pace"):
            pace = fmean(stats.damping for stats in pre.stats().values()) ** -pre.options.power
            for parameter, gradient in zip(passing, before, strict=True):
                parameter.grad = gradient * (pace if rule == "pace" else min(1.0, pace))
        if taken:
            sgd.step()
        losses.append(float(loss.detach()))
    last = sum(losses[-BATCHES:]) / BATCHES
    return last if math.isfinite(last) else math.inf


def _summary(losses: list[float]) -> dict[str, Any]:
    shown = [float(f"{x:.2e}") if math.isfinite(x) else None for x in (median(losses), max(losses))]
    return {"median": shown[0], "worst": shown[1]}


def main() -> None:
    """Train all and write results/passthrough.json; null stands for a loss that is not finite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=80)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name in MODELS:
        rows[name] = {}
        for rate in RATES:
            rules = {"SGD": None} | {rule: rule for rule in ("curvature", "library", "plain", "pace")}
            rows[name][str(rate)] = {
                key: _summary([final_loss(name, rate, rule, seed, chosen.steps) for seed in range(chosen.seeds)])
                for key, rule in rules.items()
            }
            print(name, rate, rows[name][str(rate)], flush=True)
    print(save("passthrough", {"seeds": chosen.seeds, "steps": chosen.steps, "models": rows}))


if __name__ == "__main__":
    main()
