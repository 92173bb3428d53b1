"""Per-sample gradients by autograd, from the loss of each sample in one graph; random numbers are the same for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seng import verify
from seng.testing import EXACT, blocks_of, captured_rows, relative_error


def check_samples(model: nn.Module, losses: Callable[[], Tensor], tolerance: float = EXACT, **selection: Any) -> None:
    """Assert that captured gradients are those of each sample's loss, block by block, in float64.

    Args:
        model: Its blocks are compared; every trainable parameter has to be in one.
        losses: Computes each sample's loss [n]; draws its random numbers from torch's global generator.
        tolerance: Largest relative error.
        **selection: As for ``seng.SENG``.
    """
    blocks = blocks_of(model, **selection)
    held = {p for block in blocks.values() for p in block.parameters}
    assert held == {p for p in model.parameters() if p.requires_grad}
    state = torch.get_rng_state()
    rows = captured_rows(model, lambda: losses().sum(), **selection)
    torch.set_rng_state(state)
    each = losses()
    for name, block in blocks.items():
        grads = [torch.autograd.grad(one, block.parameters, retain_graph=True, allow_unused=True) for one in each]
        expected = torch.stack(
            [
                torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs])
                for pairs in (zip(own, block.parameters, strict=True) for own in grads)
            ]
        )
        got = rows.get(name, torch.zeros_like(expected))
        assert got.shape == expected.shape, f"{name}: {len(got)} rows, {len(expected)} samples"
        assert relative_error(got, expected) <= tolerance, f"{name}: {relative_error(got, expected):.2g}"


def check_verified(model: nn.Module, loss: Callable[[], Tensor], **options: Any) -> None:
    """Assert that ``seng.verify`` finds the capture right."""
    report = verify(model, loss, **options)
    assert report.ok, str(report)
