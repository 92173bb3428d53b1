"""Random numbers that a layer drew in its call, drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .contract import UnsupportedCall


@dataclass(frozen=True)
class RandomState:
    """State of the random generator of a device.

    Args:
        device: The device.
        state: The state.
    """

    device: torch.device
    state: Tensor

    @staticmethod
    def before(inputs: Any) -> RandomState | None:
        """Return the state of the generator of the device that a call's inputs are on."""
        device = next((x.device for x in tree_leaves(inputs) if isinstance(x, Tensor)), None)
        if device is None or device.type not in ("cpu", "cuda"):
            return None
        return RandomState(device, torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device))


@contextmanager
def drawn_again(random: RandomState | None, needed: bool) -> Iterator[None]:
    """Let random numbers be those that follow a state; put the generators back on exit.

    Args:
        random: The state, or None where there is none.
        needed: Whether random numbers are drawn at all.

    Raises:
        UnsupportedCall: They are, and there is no state: the call was part of a compiled graph.
    """
    if not needed:
        yield
        return
    if random is None:
        raise UnsupportedCall("its dropout is part of a compiled graph and cannot be drawn again")
    with torch.random.fork_rng([random.device] if random.device.type == "cuda" else []):
        if random.device.type == "cuda":
            torch.cuda.set_rng_state(random.state, random.device)
        else:
            torch.set_rng_state(random.state)
        yield
