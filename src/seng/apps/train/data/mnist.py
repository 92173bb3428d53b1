"""MNIST: 70,000 handwritten digits, 28 x 28 grey pixels; its four IDX files have the names of Fashion-MNIST's."""

from __future__ import annotations

from .idx_pictures import idx_place, idx_source

GET_MNIST = "put its four files train- and t10k-{images-idx3,labels-idx1}-ubyte[.gz] into a folder mnist"
PLACE = idx_place("MNIST", ("mnist", "MNIST/raw"), GET_MNIST)

MNIST = idx_source(PLACE)
