"""Curvature of all ranks' samples, each layer's on its owner alone."""

from __future__ import annotations

from .dealt import Dealt


class Sharded(Dealt):
    """Owners write the directions of their layers and hand them on: 1/M of the curvature and of its work a rank."""

    name = "sharded"
    everywhere = False
