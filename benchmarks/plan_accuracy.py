"""Is the plan right? Its shares of the backward pass beside measured ratios of CPU time: one thread, interleaved.

    python benchmarks/plan_accuracy.py [--cycles 6] [--only RECIPE]

Each recipe's network, batch and options, on made-up samples. A cycle is as many steps as lie between refreshes. At
each step the backward pass of a twin without hooks is timed, then the preconditioner's step; what a refresh takes is
the refreshing step less the median of the others. Times are CPU seconds of the process; shares are medians of the
ratios to the neighbouring backward pass.

The plan counts products alone. Activations, norms and attention make the backward pass longer than planned; the some
forty calls a block, and what is bound by memory, make the curvature longer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from environment import save
from torch import Tensor

from seng import Preconditioner
from seng.apps.cli.plan import plan_run
from seng.apps.recipes import build_recipe
from seng.apps.train.config import RunConfig, SengConfig
from seng.apps.train.data import signature
from seng.apps.train.models import build_model
from seng.apps.train.optimizers import seng_options

RECIPES = ("digits", "fashion-autoencoder", "fashion-resnet", "char-gpt")


def held_interval(config: RunConfig) -> RunConfig:
    """Leave out the dense refreshes at the start, which the plan's interval leaves out too."""
    seng = replace(config.optimizer.seng or SengConfig(), refresh_always_until=0, reweight=False)
    return replace(config, optimizer=replace(config.optimizer, seng=seng))


def measure(name: str, cycles: int) -> dict[str, Any]:
    """Plan a recipe, then time it."""
    config = held_interval(build_recipe(name))
    planned = plan_run(config)
    refresh = sum(row.choice.refresh_flops for row in planned.rows) / planned.backward_flops
    apply = sum(row.choice.apply_flops for row in planned.rows) / planned.backward_flops
    predicted = {"refresh": round(refresh, 4), "apply": round(apply, 4), "step": round(planned.share(), 4)}
    measured, backward = _timed(config, planned.interval, cycles)
    return {
        "batch": config.batch_size,
        "interval": planned.interval,
        "backward_gflop": round(planned.backward_flops / 1e9, 3),
        "backward_cpu_ms": round(1e3 * backward, 2),
        "predicted": predicted,
        "measured": measured,
        "measured_over_predicted": {key: round(measured[key] / share, 2) for key, share in predicted.items()},
    }


def _timed(config: RunConfig, interval: int, cycles: int) -> tuple[dict[str, float], float]:
    data = signature(config.data)
    torch.manual_seed(config.seed)
    model, twin = build_model(config.model, data), build_model(config.model, data)
    assert config.optimizer.seng is not None
    options = seng_options(config.optimizer.seng, steps_per_epoch=1)
    preconditioner = Preconditioner(model, **options)
    x = data.inputs(config.batch_size)
    refreshes, applications, passes = [], [], []
    for step in range((cycles + 1) * interval):
        twin.zero_grad()
        model.zero_grad()
        backward = _seconds(_loss(twin(x)).backward)
        _loss(model(x)).backward()
        ours = _seconds(preconditioner.step)
        if step < interval:  # warming up
            continue
        passes.append(backward)
        (refreshes if step % interval == 0 else applications).append(ours / backward)
    apply = median(applications)
    refresh = median(refreshes) - apply
    measured = {"refresh": refresh, "apply": apply, "step": apply + refresh / interval}
    return {key: round(share, 4) for key, share in measured.items()}, median(passes)


def _loss(outputs: Tensor) -> Tensor:
    return outputs.square().flatten(1).sum(1).mean()


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure the recipes and write results/plan_accuracy.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cycles", type=int, default=6)
    parser.add_argument("--only", choices=RECIPES)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result = {name: measure(name, chosen.cycles) for name in RECIPES if chosen.only in (None, name)}
    for name, row in result.items():
        print(name, row)
    if chosen.only is None:
        print(save("plan_accuracy", {"cycles": chosen.cycles, "recipes": result}))


if __name__ == "__main__":
    main()
