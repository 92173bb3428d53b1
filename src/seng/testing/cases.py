"""A few cases of every layer in the table, for the contract suite. A layer of one's own is a line here, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


class Case(NamedTuple):
    """How to make a module and its input [n, ...], or several by position or keyword; both may draw random numbers."""

    make_module: Callable[[], nn.Module]
    make_input: Callable[[], Inputs]


def _input(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def _drawn(module: nn.Module) -> nn.Module:
    """Replace ones and zeros of a fresh normalisation by random numbers, running statistics included."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0)
    return module


LAYER_CASES: dict[type[nn.Module], tuple[Case, ...]] = {
    nn.Linear: (
        Case(lambda: nn.Linear(4, 3), _input(5, 4)),
        Case(lambda: nn.Linear(3, 4, bias=False), _input(3, 2, 4, 3)),
    ),
    nn.Conv1d: (
        Case(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), _input(3, 4, 7)),
        Case(lambda: nn.Conv1d(2, 3, 2, padding="same", padding_mode="circular", bias=False), _input(3, 2, 6)),
    ),
    nn.Conv2d: (
        Case(lambda: nn.Conv2d(2, 4, 3, padding="valid"), _input(3, 2, 5, 4)),
        Case(lambda: nn.Conv2d(2, 2, (2, 3), dilation=(2, 1), padding=1, padding_mode="reflect"), _input(3, 2, 5, 4)),
    ),
    nn.Conv3d: (Case(lambda: nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=1, groups=2), _input(3, 2, 3, 3, 2)),),
    nn.ConvTranspose1d: (
        Case(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), _input(3, 4, 5)),
        Case(lambda: nn.ConvTranspose1d(2, 3, 2, dilation=2, bias=False), _input(3, 2, 4)),
    ),
    nn.ConvTranspose2d: (
        Case(lambda: nn.ConvTranspose2d(2, 3, (2, 3), stride=(2, 1), padding=(0, 1)), _input(3, 2, 3, 4)),
    ),
    nn.ConvTranspose3d: (Case(lambda: nn.ConvTranspose3d(2, 2, 2, stride=(1, 2, 1), groups=2), _input(3, 2, 2, 3, 2)),),
    nn.Bilinear: (
        Case(lambda: nn.Bilinear(2, 3, 4), lambda: (torch.randn(5, 2), torch.randn(5, 3))),
        Case(lambda: nn.Bilinear(3, 2, 2, bias=False), lambda: (torch.randn(4, 3, 3), torch.randn(4, 3, 2))),
    ),
    nn.Embedding: (
        Case(lambda: nn.Embedding(7, 3), lambda: torch.randint(7, (4,))),
        Case(lambda: nn.Embedding(7, 3, padding_idx=1), lambda: torch.randint(3, (4, 5))),
    ),
    nn.EmbeddingBag: (
        Case(lambda: nn.EmbeddingBag(7, 3, padding_idx=1), lambda: torch.randint(7, (4, 5))),
        Case(
            lambda: nn.EmbeddingBag(7, 3, mode="sum"),
            lambda: {"input": torch.randint(7, (4, 5)), "per_sample_weights": torch.randn(4, 5)},
        ),
        Case(lambda: nn.EmbeddingBag(7, 3, mode="max"), lambda: torch.randint(7, (4, 5))),
    ),
    nn.BatchNorm1d: (
        Case(lambda: _drawn(nn.BatchNorm1d(3)), _input(5, 3)),
        Case(lambda: _drawn(nn.BatchNorm1d(3)).eval(), _input(5, 3, 4)),
    ),
    nn.BatchNorm2d: (Case(lambda: _drawn(nn.BatchNorm2d(3, track_running_stats=False)), _input(4, 3, 2, 3)),),
    nn.BatchNorm3d: (Case(lambda: _drawn(nn.BatchNorm3d(2)), _input(4, 2, 2, 3, 2)),),
    nn.LayerNorm: (
        Case(lambda: _drawn(nn.LayerNorm(4)), _input(3, 5, 4)),
        Case(lambda: _drawn(nn.LayerNorm([2, 3], bias=False)), _input(3, 2, 3)),
    ),
    nn.GroupNorm: (Case(lambda: _drawn(nn.GroupNorm(2, 4)), _input(3, 4, 5)),),
    nn.InstanceNorm1d: (Case(lambda: _drawn(nn.InstanceNorm1d(3, affine=True)), _input(4, 3, 5)),),
    nn.InstanceNorm2d: (
        Case(lambda: _drawn(nn.InstanceNorm2d(3, affine=True, track_running_stats=True)).eval(), _input(4, 3, 2, 3)),
    ),
    nn.InstanceNorm3d: (Case(lambda: _drawn(nn.InstanceNorm3d(2, affine=True)), _input(3, 2, 2, 3, 2)),),
    nn.RMSNorm: (Case(lambda: _drawn(nn.RMSNorm([2, 3])), _input(3, 4, 2, 3)),),
    nn.MultiheadAttention: (
        Case(lambda: nn.MultiheadAttention(4, 2, batch_first=True), lambda: (torch.randn(4, 3, 4),) * 3),
        Case(
            lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True, batch_first=True),
            lambda: tuple(torch.randn(4, s, d) for s, d in ((2, 4), (3, 3), (3, 5))),
        ),
    ),
    nn.LSTM: (
        Case(lambda: nn.LSTM(2, 3, 2, batch_first=True, bidirectional=True), _input(4, 3, 2)),
        Case(lambda: nn.LSTM(2, 3, proj_size=2, batch_first=True), _input(4, 3, 2)),
    ),
    nn.GRU: (Case(lambda: nn.GRU(2, 3, 2, batch_first=True), _input(4, 3, 2)),),
    nn.RNN: (Case(lambda: nn.RNN(2, 3, bidirectional=True, batch_first=True), _input(4, 3, 2)),),
    nn.PReLU: (Case(nn.PReLU, _input(5, 2)), Case(lambda: nn.PReLU(3), _input(4, 3, 2))),
}
