"""Before anything is done in a step, all ranks say that they can, and that they are at the same place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

import torch
from torch import Tensor

from ..errors import RankError
from .communicator import Communicator

PURPOSE = "agreement"


def agree(wire: Communicator, good: Tensor, facts: Mapping[str, str]) -> Callable[[], bool]:
    """Start to agree; return a function that waits, and says whether ``good``, a 0-d bool, holds on all ranks.

    The function raises RankError where a rank has told of an error, or other facts.
    """
    number = _number(facts)
    wait = wire.start_min(good, [wire.world, number, -number], PURPOSE)

    def agreed() -> bool:
        ok, alive, low, high = wait()
        if alive < wire.world:
            raise RankError(
                _call(facts), "another rank could not take this step", expected="no error on any rank",
                got=f"rank {alive}", fix=f"See the error that rank {alive} raised",
            )  # fmt: skip
        if not ok:
            return False
        if low != -high:
            raise _difference(wire, facts)
        return True

    return agreed


def tell_of_error(wire: Communicator, device: torch.device) -> None:
    """Make the other ranks' ``agree`` raise: this one will not go on."""
    wire.start_min(torch.zeros((), dtype=torch.bool, device=device), [wire.rank, 0, 0], PURPOSE)()


def _number(facts: Mapping[str, str]) -> int:
    """Return 62 bits that are alike where facts are."""
    digest = blake2b(repr(sorted(facts.items())).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def _call(facts: Mapping[str, str]) -> str:
    return facts.get("call", "step()")


def _difference(wire: Communicator, facts: Mapping[str, str]) -> RankError:
    everyones = wire.gather(dict(facts))
    name = next(
        key for key in dict.fromkeys(key for own in everyones for key in own)
        if len({own.get(key) for own in everyones}) > 1
    )  # fmt: skip
    got = {rank: own.get(name) for rank, own in enumerate(everyones)}
    return RankError(
        _call(facts), f"ranks differ in {name}", expected="the same on every rank", got=got,
        fix="Start all ranks with the same model and options, and let them take every step together",
    )  # fmt: skip
