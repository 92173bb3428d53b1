"""States saved and loaded by several ranks: functions of rank and world, named in jobs."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import torch
from scenarios import BYTES_ALONE, REPLICAS, Net, backward, descend, hashed

from seng import Preconditioner


def resumed(rank: int, world: int) -> dict[str, bool]:
    """Whether three steps, a state and three more steps are six steps, bit for bit, and what another world makes."""
    found = {}
    for setting in ("local", "local, thin", "global", "sharded", "auto"):
        options = {**REPLICAS.get(setting, {"distributed": setting}), "refresh_every": 4}
        runs = []
        for stop in (None, 3):
            model = Net()
            pre = Preconditioner(model, **options)
            pre.strategy.given_rates = BYTES_ALONE
            for step in range(6):
                if step == stop:
                    file = BytesIO()
                    torch.save(pre.state_dict(), file)
                    file.seek(0)
                    pre.close()
                    pre = Preconditioner(model, **options)
                    pre.strategy.given_rates = BYTES_ALONE
                    pre.load_state_dict(torch.load(file, weights_only=True))
                backward(model, step, rank, world)
                assert pre.step()
                descend(model)
            runs.append(hashed(model))
            pre.close()
        found[setting] = runs[0] == runs[1]
    return found


def moved(rank: int, world: int) -> dict[str, Any]:
    """What becomes of a state of "sharded" on another number of ranks."""
    model, options = Net(), {"distributed": "sharded", "refresh_every": 4}
    pre = Preconditioner(model, **options)
    backward(model, 0, rank, world)
    pre.step()
    state = pre.state_dict()
    other = Preconditioner(model, **options)
    elsewhere = {**state, "place": {**state["place"], "world": world + 1}}
    other.load_state_dict(elsewhere)
    backward(model, 1, rank, world)
    other.step()
    refreshed = all(own.refresh_age == 0 for own in other.stats().values())
    return {"refreshed": refreshed, "steps": other.steps}
