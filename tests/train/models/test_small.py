"""The networks have the shapes and parameter counts that their descriptions say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seng.apps.train.config import ModelConfig
from seng.apps.train.data import Signature
from seng.apps.train.models import VisionTransformer, build_model
from seng.errors import SengError

PICTURES = Signature((1, 28, 28), classes=10)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", [8, 28])
def test_small_cnn_takes_any_picture(size: int):
    model = build_model(ModelConfig("small-cnn", (4, 6)), PICTURES)
    assert model(torch.randn(3, 1, size, size)).shape == (3, 10)
    convolutions = (9 * 1 + 1) * 4 + (9 * 4 + 1) * 6
    assert _parameters(model) == convolutions + (4 * 6 + 1) * 10


def test_small_resnet_has_one_block_a_width():
    model = build_model(ModelConfig("small-resnet", (16, 32, 64)), PICTURES)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 1 + 2 * 3 + 2  # the stem, two a block, a shortcut where the shape changes
    weights = 9 * (16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 16 * 32 + 32 * 64
    norms = 2 * (16 + 2 * 16 + 3 * 32 + 3 * 64)
    assert _parameters(model) == weights + norms + 65 * 10


def test_residual_block_is_the_shortcut_where_its_body_is_zero():
    from seng.apps.train.models import ResidualBlock

    block = ResidualBlock(4, 4, stride=1).eval()
    last = list(block.body.children())[-1]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.zeros_(last.weight)
    inputs = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(inputs), inputs)


def test_deep_autoencoder_mirrors_its_encoder():
    model = build_model(ModelConfig("deep-autoencoder", (784, 500, 250, 100, 30)), PICTURES)
    linear = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert linear == [
        (784, 500), (500, 250), (250, 100), (100, 30), (30, 100), (100, 250), (250, 500), (500, 784)
    ]  # fmt: skip
    assert isinstance(list(model.children())[-1], nn.Linear)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 784)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (ModelConfig("small-cmm", (4,)), "unknown model.*Did you mean 'small-cnn'"),
        (ModelConfig("small-cnn", ()), "bad widths"),
        (ModelConfig("small-cnn", (4, 0)), "bad widths"),
    ],
)
def test_build_model_refuses(config, match):
    with pytest.raises(SengError, match=match):
        build_model(config, PICTURES)


def test_vision_transformer_sees_all_patches_and_their_places() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig("vision-transformer", (8, 16), heads=2), PICTURES)
    assert isinstance(model, VisionTransformer)
    pictures = torch.randn(2, 1, 28, 28, requires_grad=True)
    model(pictures)[:, 0].sum().backward()
    assert pictures.grad is not None
    assert (pictures.grad != 0).all()
    turned = pictures.roll(4, dims=3)  # the same patches elsewhere
    assert not torch.allclose(model(pictures), model(turned), rtol=1e-3)


@pytest.mark.parametrize(("data", "outputs"), [(PICTURES, 10), (Signature((7,), classes=None), 1)])
def test_perceptron_fits_pictures_and_tables(data: Signature, outputs: int) -> None:
    model = build_model(ModelConfig("perceptron", (5, 4)), data)
    assert model(data.inputs(3)).shape == (3, outputs)
