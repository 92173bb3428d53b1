"""How much of a model is preconditioned: nearly all of the families that people train most."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from torch import Generator, nn

import seng

from .library import LIBRARY
from .networks import NETWORKS
from .sequence_networks import SEQUENCE_NETWORKS, Last

FAMILIES = {**LIBRARY, **NETWORKS, **SEQUENCE_NETWORKS}

SHARES = {"gpt2": 0.999, "llama": 1.0, "qwen2": 1.0, "bert": 0.99, "unet": 1.0, "lstm": 0.95, "gru": 0.95,
          "lstm-language": 0.95, "transformer": 0.98, "embedding-bag": 1.0, "prelu": 1.0, "t5": 0.98}  # fmt: skip


NAMED = {"vit": (1.0, ["*token", "*embeddings"]), "dinov2": (0.99, ["*token", "*embeddings", "*.lambda1"]),
         "transformer-encoder": (1.0, ["first", "positions"]), "latents": (1.0, ["queries"])}  # fmt: skip


def share_of(model: nn.Module, losses: object, batch: tuple[object, ...], **options: Any) -> float:
    """Return the share of the parameters that is preconditioned after a step."""
    pre = seng.Preconditioner(model, **options)
    losses(model, *batch).mean().backward()  # type: ignore[operator]
    pre.step()
    share = pre.coverage().share
    pre.close()
    return share


@pytest.mark.parametrize("name", SHARES)
def test_family_is_covered(name: str) -> None:
    family = FAMILIES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        share = share_of(family.made(0), family.players[""], family.task(6, Generator().manual_seed(0)))
    assert share >= SHARES[name], f"{name}: {share:.4f}"


@pytest.mark.parametrize("name", NAMED)
def test_family_is_covered_where_its_bare_parameters_are_named(name: str) -> None:
    (share, names), family = NAMED[name], FAMILIES[name]
    batch = family.task(6, Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = share_of(family.made(0), family.players[""], batch, bare_parameters=names)
    assert got >= share, f"{name}: {got:.4f}"


def test_transformer_encoder_is_covered_whole() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    pre = seng.Preconditioner(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    assert pre.coverage().share == 1.0
    pre.close()


def test_lstm_classifier_is_covered_but_for_nothing() -> None:
    pre = seng.Preconditioner(Last(nn.LSTM))
    assert pre.coverage().share == 1.0
    pre.close()
