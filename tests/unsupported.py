"""Modules that no layer covers: their forward pass is their own."""

from __future__ import annotations

from torch import Tensor, nn


class Slope(nn.PReLU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


class Pairs(nn.Bilinear):
    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return super().forward(input1, input2)


class Upwards(nn.ConvTranspose1d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(input, output_size)
