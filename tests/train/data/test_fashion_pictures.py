"""Fashion-MNIST to be reconstructed: each picture is its own target."""

from __future__ import annotations

from pathlib import Path

import torch

from seng.apps.train import data
from seng.apps.train.config import DataConfig

from .fashion_files import images, write_fashion


def test_fashion_pictures_are_their_own_targets(tmp_path: Path):
    config = DataConfig("fashion-pictures", str(write_fashion(tmp_path)))
    inputs, targets = data.load_dataset(config).train.batch(torch.arange(20))
    assert inputs.shape == (20, *data.signature(config).shape)
    assert data.signature(config).classes is None
    assert torch.equal(inputs.flatten(1), targets)
    assert (targets.flatten() * 255).round().byte().tolist() == list(images(20)[16:])
    assert data.data_status(config) == f"found in {tmp_path}"
