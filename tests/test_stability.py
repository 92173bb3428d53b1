"""Held curvature of the previous batch does not make hard networks diverge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import seng
from seng.apps.train.config import DataConfig
from seng.apps.train.data import TensorSplit, load_dataset
from seng.apps.train.data.fashion import find_fashion
from seng.apps.train.models import deep_autoencoder

FASHION = DataConfig("fashion-mnist")
STEPS, BATCH = 120, 256
FAR_BELOW = 0.35  # share of the first loss; measured 0.11 to 0.14, the mean picture alone reaches 0.39
WIDTH, CLASSES = 16, 4
ABOUT_ZERO = 1e-3  # a share of about 1/1000 of the first loss
EXCURSION = 1.5  # the loss may rise this far above its start on the way; measured below 1.05


@pytest.mark.skipif(find_fashion(FASHION) is None, reason="Fashion-MNIST: apt-get install dataset-fashion-mnist")
@pytest.mark.parametrize(("power", "lr", "damping"), [(0.5, 0.1, 0.1), (1.0, 0.03, 0.1), (1.0, 0.03, 0.3)])
def test_autoencoder_does_not_diverge_with_the_previous_batch(power: float, lr: float, damping: float) -> None:
    split = load_dataset(FASHION).train
    assert isinstance(split, TensorSplit)
    pictures = split.inputs[:20_000].flatten(1)
    pictures = (pictures - pictures.min()) / (pictures.max() - pictures.min())
    torch.manual_seed(0)
    model: nn.Module = deep_autoencoder((784, 500, 250, 100, 30))
    optimizer = seng.SENG(model, lr=lr, power=power, damping=damping, weight_decay=0, refresh_every=4)
    losses = []
    for _ in range(STEPS):
        x = pictures[torch.randint(len(pictures), (BATCH,))]
        optimizer.zero_grad()
        loss = 0.5 * (model(x) - x).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) <= EXCURSION * losses[0]
    assert sum(losses[-10:]) / 10 <= FAR_BELOW * losses[0]


class Attention(nn.Module):
    """Attention between linear layers: torch's own, an encoder layer, or one whose projections are linear layers."""

    def __init__(self, kind: str = "torch's") -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        if kind == "encoder":
            self.attention = nn.TransformerEncoderLayer(WIDTH, 4, 32, 0.0, batch_first=True)
        elif kind == "torch's":
            self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        else:
            self.attention = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)])

    def mixed(self, x: Tensor) -> Tensor:
        if isinstance(self.attention, nn.TransformerEncoderLayer):
            return self.attention(x)
        if isinstance(self.attention, nn.MultiheadAttention):
            return x + self.attention(x, x, x, need_weights=False)[0]
        project, out = self.attention
        q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in project(x).chunk(3, 2))
        return x + out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixed(self.first(x))[:, 0])


def constant_rate(
    seed: int, steps: int, make: Callable[[nn.Module], Optimizer], build: Callable[[], nn.Module] = Attention
) -> float:
    """Return the mean loss of the last passes over four batches."""
    torch.manual_seed(seed)
    model = build()
    x = torch.randn(4, 16, 10, WIDTH)
    y = x[:, :, 0, :CLASSES].argmax(-1)
    optimizer, losses = make(model), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[step % 4]), y[step % 4])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


@pytest.mark.filterwarnings("ignore:seng:UserWarning")
@pytest.mark.parametrize("steps", [300, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("seed", [0, 3])  # without equation 20's last term the loss of seed 3 ends at 110
def test_model_that_passes_in_part_ends_no_higher_than_with_sgd_at_a_constant_rate(seed: int, steps: int) -> None:
    reference = constant_rate(
        seed, steps, lambda model: torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
    )
    ours = constant_rate(seed, steps, lambda model: seng.SENG(model, lr=0.1, weight_decay=5e-4, exclude=["attention"]))
    assert ours <= max(reference, ABOUT_ZERO)


@pytest.mark.parametrize(("rate", "steps"), [(0.003, 80), (0.01, 80), (0.1, 300)])
@pytest.mark.parametrize("kind", ["torch's", "encoder", "linear layers"])
def test_attention_ends_no_higher_than_with_sgd_at_a_constant_rate(kind: str, rate: float, steps: int) -> None:
    for seed in (0, 3):
        reference = constant_rate(
            seed, steps, lambda model: torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=5e-4),
            lambda: Attention(kind),
        )  # fmt: skip
        ours = constant_rate(seed, steps, lambda model: seng.SENG(model, lr=rate), lambda: Attention(kind))
        assert ours <= max(reference, ABOUT_ZERO)
