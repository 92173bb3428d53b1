"""Public test tools: the dense oracle."""

from .oracle import copy_gradients, dense_direction, loop_gradients

__all__ = ["copy_gradients", "dense_direction", "loop_gradients"]
