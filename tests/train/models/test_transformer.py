"""The character transformer looks back only, and all of it is preconditioned."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import seng
from seng.apps.train.config import LossConfig, ModelConfig
from seng.apps.train.data import Signature
from seng.apps.train.losses import build_loss
from seng.apps.train.models import build_model
from seng.apps.train.models.transformer import Attention, CharTransformer
from seng.errors import SengError
from seng.testing import check_rows

CLASSES, LENGTH = 11, 6
CONFIG = ModelConfig("char-transformer", (8, 12, 10), heads=2)


def _model(seed: int = 0, config: ModelConfig = CONFIG) -> CharTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(config, Signature((LENGTH,), CLASSES, texts=True))
    assert isinstance(model, CharTransformer)
    return model


def _texts(n: int = 3) -> Tensor:
    return torch.randint(CLASSES, (n, LENGTH), generator=torch.Generator().manual_seed(n))


def _linear(before: int, after: int) -> int:
    return (before + 1) * after


def test_transformer_has_the_parameters_of_its_layers():
    model, width = _model(), 8
    attention = 2 * width + 4 * _linear(width, width)
    perceptrons = sum(2 * width + _linear(width, hidden) + _linear(hidden, width) for hidden in (12, 10))
    outside = (CLASSES + LENGTH) * width + 2 * width + _linear(width, CLASSES)
    assert sum(p.numel() for p in model.parameters()) == 2 * attention + perceptrons + outside
    assert model(_texts()).shape == (3, CLASSES, LENGTH)


def test_transformer_sees_no_later_character():
    model, texts = _model().double(), _texts()
    changed = texts.clone()
    changed[:, 4] = (changed[:, 4] + 1) % CLASSES
    before, after = model(texts), model(changed)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert (before[:, :, 4:] != after[:, :, 4:]).any(dim=1).all()  # position 5 sees position 4 through attention


def test_transformer_attention_is_that_of_its_formula():
    model, width, heads = _model().double(), 8, 2
    attention = next(m for m in model.modules() if isinstance(m, Attention))
    inputs = torch.randn(1, LENGTH, width, dtype=torch.float64)
    query, key, value = (layer(inputs)[0] for layer in (attention.query, attention.key, attention.value))
    mixed = torch.zeros(LENGTH, width, dtype=torch.float64)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        for place in range(LENGTH):
            scores = key[: place + 1, part] @ query[place, part] / math.sqrt(width / heads)
            mixed[place, part] = scores.softmax(0) @ value[: place + 1, part]
    torch.testing.assert_close(attention(inputs)[0], attention.projection(mixed))


def test_transformer_starts_at_even_odds():
    loss = functional.cross_entropy(_model()(_texts(50)), _texts(50))
    assert loss.item() == pytest.approx(math.log(CLASSES), rel=0.01)  # scores have deviation 0.02 sqrt(8)


def test_transformer_starts_writers_smaller():
    model = _model(config=ModelConfig("char-transformer", (64, 128, 128), heads=2))
    deviations = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.dim() == 2}
    for name, deviation in deviations.items():
        writes = name.endswith(("projection.weight", "perceptron.3.weight"))
        expected = 0.02 / math.sqrt(4) if writes else 0.02
        assert deviation == pytest.approx(expected, rel=0.15), name  # 384 numbers or more: three deviations


def test_transformer_drops_in_training_only():
    model = _model(config=ModelConfig("char-transformer", (8, 12, 10), heads=2, dropout=0.5))
    assert not torch.equal(model(_texts()), model(_texts()))
    model.eval()
    assert torch.equal(model(_texts()), model(_texts()))


def test_transformer_captures_the_oracles_rows():
    model, texts, targets = _model().double(), _texts(4), _texts(4).roll(1, 1)
    loss = build_loss(LossConfig(label_smoothing=0.1))
    check_rows(model, lambda: loss(model(texts), targets), 4)


def test_transformer_is_covered_wholly_and_verified():
    model, texts = _model(), _texts(4)
    report = seng.verify(model, lambda: functional.cross_entropy(model(texts), texts.roll(1, 1)))
    assert report.ok, str(report)
    assert (report.passed_through, report.unused) == ({}, ())


@pytest.mark.parametrize(
    ("config", "data", "match"),
    [
        (ModelConfig("char-transformer", (8, 12), heads=3), Signature((6,), 5, True), "divisor of the width 8, got 3"),
        (ModelConfig("char-transformer", (8, 12)), Signature((6,), 5, True), "heads do not divide.*got 0"),
        (ModelConfig("char-transformer", (8,), 2, dropout=1.0), Signature((6,), 5, True), "dropout is out of range"),
        (ModelConfig("char-transformer", (8,), 2), Signature((1, 8, 8), 5), "the data are no texts"),
        (ModelConfig("char-transformer", (8,), 2), Signature((6,), 5), "the data are no texts"),
        (ModelConfig("vision-transformer", (8,), 2), Signature((1, 6, 8), 5), "patches do not fill the pictures"),
        (ModelConfig("char-transformer", (8,), 2), Signature((6,), None, True), "no classes"),
        (ModelConfig("small-cnn", (8,)), Signature((6,), 5), "the data are no pictures"),
    ],
)
def test_build_model_refuses_what_does_not_fit(config: ModelConfig, data: Signature, match: str):
    with pytest.raises(SengError, match=match):
        build_model(config, data)
