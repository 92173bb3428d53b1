"""ResNet-18, ResNet-50 and VGG-16 have the layers and the parameters of their publications, and are covered wholly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import seng
from seng.apps.train.config import ModelConfig
from seng.apps.train.data import Signature
from seng.apps.train.models import ResidualBlock, build_model, cifar_resnet18, cifar_vgg16bn, imagenet_resnet50
from seng.errors import SengError

BUILDERS = {
    "cifar-resnet18": cifar_resnet18,
    "cifar-vgg16bn": cifar_vgg16bn,
    "imagenet-resnet50": imagenet_resnet50,
}
PUBLISHED = {"cifar-resnet18": 11_173_962, "cifar-vgg16bn": 14_728_266, "imagenet-resnet50": 25_557_032}
SMALL = {
    "cifar-resnet18": (4, 4, 8, 8),
    "cifar-vgg16bn": (4, 4, 8, 8, 8),
    "imagenet-resnet50": (8, 8, 16, 16),
}
Kernel = tuple[int, int, int]  # channels out, channels in, size


def _resnet18_kernels() -> Iterator[Kernel]:
    yield 64, 3, 3
    before = 64
    for width in (64, 128, 256, 512):
        yield from ((width, before, 3), (width, width, 3))
        if width != before:
            yield width, before, 1
        yield from ((width, width, 3), (width, width, 3))
        before = width


def _resnet50_kernels() -> Iterator[Kernel]:
    yield 64, 3, 7
    before = 64
    for narrow, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(depth):
            yield from ((narrow, before, 1), (narrow, narrow, 3), (4 * narrow, narrow, 1))
            if block == 0:
                yield 4 * narrow, before, 1
            before = 4 * narrow


def _vgg16_kernels() -> Iterator[Kernel]:
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    yield from ((after, before, 3) for before, after in itertools.pairwise(widths))


KERNELS = {
    "cifar-resnet18": (_resnet18_kernels, False, (512, 10)),
    "cifar-vgg16bn": (_vgg16_kernels, True, (512, 10)),
    "imagenet-resnet50": (_resnet50_kernels, False, (2048, 1000)),
}


def _meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return BUILDERS[name]()


@pytest.mark.parametrize("name", PUBLISHED)
def test_deep_network_has_the_published_kernels(name: str):
    kernels, biases, (features, classes) = KERNELS[name]
    convolutions = [m for m in _meta(name).modules() if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.in_channels, *m.kernel_size) for m in convolutions] == [
        (after, before, size, size) for after, before, size in kernels()
    ]
    weights = sum(after * before * size * size for after, before, size in kernels())
    channels = sum(after for after, _, _ in kernels())
    total = weights + (3 if biases else 2) * channels + (features + 1) * classes  # norms have a scale and a shift
    assert total == PUBLISHED[name]
    assert sum(p.numel() for p in _meta(name).parameters()) == total


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("cifar-resnet18", 32, [32, 16, 8, 4]),
        ("cifar-vgg16bn", 32, [32, 16, 8, 4, 2]),
        ("imagenet-resnet50", 224, [112, 56, 28, 14, 7]),
    ],
)
def test_deep_network_halves_the_picture_where_its_table_says(name: str, size: int, maps: list[int]):
    model, found = _meta(name), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.register_forward_hook(lambda _, __, output: found.append(output.shape[-1]))
    outputs = model(torch.empty(2, 3, size, size, device="meta"))
    assert outputs.shape == (2, KERNELS[name][2][1])
    assert list(dict.fromkeys(found)) == maps


def test_bottleneck_strides_in_its_3x3_convolution():
    block = ResidualBlock(16, 32, stride=2, bottleneck=True)
    strides = {m.kernel_size: m.stride for m in block.body.modules() if isinstance(m, nn.Conv2d)}
    assert strides == {(1, 1): (1, 1), (3, 3): (2, 2)}


def test_convolutions_start_as_he_et_al_say():
    torch.manual_seed(0)
    for model in (cifar_resnet18((16, 16, 32, 32)), cifar_vgg16bn((16, 16, 32, 32, 32)), imagenet_resnet50((64,) * 4)):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                spread = 5 / math.sqrt(2 * module.weight.numel())  # five deviations of a sample's deviation
                assert module.weight.detach().std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=spread)
                assert module.bias is None or not module.bias.any()
            if isinstance(module, nn.BatchNorm2d):
                assert bool((module.weight == 1).all())


def _closure(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name, SMALL[name]), Signature((3, 32, 32), 10))
    return model, torch.randn(4, 3, 32, 32)


@pytest.mark.parametrize("name", SMALL)
def test_deep_network_is_covered_wholly_and_verified(name: str):
    model, inputs = _closure(name)
    targets = torch.arange(4)
    report = seng.verify(model, lambda: functional.cross_entropy(model(inputs), targets))
    assert report.ok, str(report)
    assert (report.passed_through, report.unused) == ({}, ())


@pytest.mark.parametrize("name", SMALL)
def test_deep_network_takes_channels_last(name: str):
    model, inputs = _closure(name)
    model, inputs = model.double(), inputs.double()
    expected = model(inputs)
    last = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    found = {}
    convolutions = [m for m in last.modules() if isinstance(m, nn.Conv2d)]
    convolutions[-1].register_forward_hook(lambda _, __, out: found.update(shape=out))
    outputs = last(inputs.to(memory_format=torch.channels_last))
    torch.testing.assert_close(outputs, expected)
    assert found["shape"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (ModelConfig("cifar-resnet18", (4, 4, 8)), "expected 4 numbers, got \\(4, 4, 8\\)"),
        (ModelConfig("cifar-vgg16bn", (4,) * 6), "expected 5 numbers"),
        (ModelConfig("imagenet-resnet50", (4, 6, 8, 8)), "expected 4 numbers, multiples of 4"),
    ],
)
def test_build_model_refuses_other_stages(config: ModelConfig, match: str):
    with pytest.raises(SengError, match=match):
        build_model(config, Signature((3, 32, 32), 10))
