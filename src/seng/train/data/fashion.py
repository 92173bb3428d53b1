"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28 pixels, in 10 classes."""

from __future__ import annotations

from pathlib import Path

from .idx_pictures import idx_place, idx_source

PLACE = idx_place(
    "Fashion-MNIST",
    ("fashion-mnist", "FashionMNIST/raw"),
    get="apt-get install dataset-fashion-mnist",
    system=Path("/usr/share/datasets/fashion-mnist"),
)
find_fashion = PLACE.find

FASHION = idx_source(PLACE)
