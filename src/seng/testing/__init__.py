"""Public test tools: the dense oracle, agreement of a model with it, and contract suites for one's own parts."""

from .agreement import (
    EXACT,
    blocks_of,
    captured_rows,
    check_direction,
    check_rows,
    flat_gradient,
    oracle_rows,
    relative_error,
)
from .cases import LAYER_CASES, Case
from .contracts import check_estimator, check_layer, check_layer_type, check_sketch
from .oracle import copy_gradients, dense_direction, loop_gradients

__all__ = [
    "EXACT",
    "LAYER_CASES",
    "Case",
    "blocks_of",
    "captured_rows",
    "check_direction",
    "check_estimator",
    "check_layer",
    "check_layer_type",
    "check_rows",
    "check_sketch",
    "copy_gradients",
    "dense_direction",
    "flat_gradient",
    "loop_gradients",
    "oracle_rows",
    "relative_error",
]
