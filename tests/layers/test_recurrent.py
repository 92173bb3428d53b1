"""Recurrent layers against autograd sample by sample: layers, directions, projections, states, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seng import Preconditioner
from seng.testing import check_direction

from .draws import examples, option_sets, seeds, sizes
from .samples import check_samples

KINDS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
N = 4


class Read(nn.Module):
    """A recurrent layer, of which outputs or last states are used; its samples are in dimension 0 of what it gets."""

    def __init__(self, kind: str, used: str, *sizes: int, **options: Any):
        super().__init__()
        self.inner, self.used = KINDS[kind](*sizes, **options), used

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> Tensor:
        x = x if self.inner.batch_first else x.transpose(0, 1)
        given = state if state is None or isinstance(self.inner, nn.LSTM) else state[0]
        y, last = self.inner(x, given)
        y = y if self.inner.batch_first else y.transpose(0, 1)
        ends = [s.transpose(0, 1).flatten(1) for s in (last if isinstance(last, tuple) else (last,))]
        parts = {"outputs": [y.flatten(1)], "states": ends, "cells": ends[-1:], "all": [y.flatten(1), *ends]}
        return torch.cat(parts[self.used], 1).tanh().square().sum(1)


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_have_the_gradients_of_single_samples(kind: str):
    @examples(15)
    @given(data=st.data(), s=st.integers(1, 3), d=sizes, h=st.integers(2, 3), seed=seeds)
    def law(data: st.DataObject, s: int, d: int, h: int, seed: int):
        flag = st.booleans()
        options: dict[str, Any] = {key: data.draw(flag) for key in ("bias", "batch_first", "bidirectional")}
        options |= {"dropout": data.draw(st.sampled_from([0.0, 0.4]))}
        options |= {"nonlinearity": data.draw(st.sampled_from(["tanh", "relu"]))} if kind == "rnn" else {}
        options |= {"proj_size": 1} if kind == "lstm" and data.draw(flag) else {}
        layers = data.draw(st.integers(1, 2))
        options["dropout"] *= layers > 1
        torch.manual_seed(seed)
        used = data.draw(st.sampled_from(["outputs", "states", "cells", "all"]))
        model = Read(kind, used, d, h, layers, **options).double()
        for p in model.parameters():
            nn.init.normal_(p, std=0.5)
        x = torch.randn(N, s, d, dtype=torch.float64)
        many = layers * (1 + options["bidirectional"])
        widths = (options.get("proj_size") or h, h)
        given = tuple(torch.randn(many, N, width, dtype=torch.float64) for width in widths)
        state = given if data.draw(flag) else None
        check_samples(model, lambda: model(x, state))

    law()


@examples(6)
@given(options=option_sets(), kind=st.sampled_from(list(KINDS)), seed=seeds)
def test_recurrent_directions_match_oracle(options: dict[str, Any], kind: str, seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(KINDS[kind](2, 3, batch_first=True), _First(), nn.Linear(3, 2)).double()
    x = torch.randn(N, 3, 2, dtype=torch.float64)

    def loss() -> Tensor:
        total = model(x).tanh().square().sum()
        return total / N if options["loss_reduction"] == "mean" else total

    check_direction(model, loss, N, **options)


class _First(nn.Module):
    def forward(self, outputs: tuple[Tensor, Any]) -> Tensor:
        return outputs[0]


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0", "weight_hr_l0"])
def test_recurrent_layers_match_autograd_with_a_frozen_parameter(frozen: str):
    torch.manual_seed(0)
    model = Read("lstm", "all", 2, 3, 1, batch_first=True, proj_size=2).double()
    model.inner.get_parameter(frozen).requires_grad_(False)
    x = torch.randn(N, 3, 2, dtype=torch.float64)
    check_samples(model, lambda: model(x))


def test_unbatched_inputs_are_one_sample():
    torch.manual_seed(0)
    layer, x = nn.LSTM(2, 3).double(), torch.randn(4, 2, dtype=torch.float64)
    check_samples(layer, lambda: layer(x)[0].square().sum()[None])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([3, 3, 2, 1]), batch_first=True)
        return self.head(pad_packed_sequence(self.inner(packed)[0], batch_first=True)[0])


def test_packed_sequences_pass_through_with_their_reason():
    torch.manual_seed(0)
    model = Packed()
    pre = Preconditioner(model)
    model(torch.randn(N, 3, 2)).square().mean().backward()
    before = [p.grad.clone() for p in model.inner.parameters() if p.grad is not None]
    with pytest.warns(UserWarning, match="its output holds a PackedSequence"):
        pre.step()
    after = [p.grad for p in model.inner.parameters() if p.grad is not None]
    assert len(before) == 4
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old)
    reason = "its output holds a PackedSequence, whose gradient is not seen"
    assert pre.coverage().passed_through["inner.weight_hh_l0"] == reason
    pre.close()
