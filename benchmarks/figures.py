"""Renders the figures of README and the recipes' pages from the committed results: none is typed by hand.

python benchmarks/figures.py --write    # replaces what stands between the marks of each page
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from rendered import load, render

COSTS = {
    (
        "autoencoder",
        "exact, power 1, current batch, reweight",
    ): "deep autoencoder, exact at every step, `reweight=True`",
    ("autoencoder", "exact, power 1, current batch"): "the same, weight gradients kept",
    ("autoencoder", "defaults, every 10"): "deep autoencoder, all defaults",
    ("autoencoder", "32 of 256 samples, every 10"): "the same, `curvature_samples=32`",
    ("resnet", "defaults, every 10"): "small ResNet, all defaults",
    ("resnet", "32 of 256 samples, every 10"): "the same, `curvature_samples=32`",
}
NAMES = {"seng": "SENG", "sgd": "SGD", "adamw": "AdamW"}
MEASURED = ("digits", "fashion-autoencoder", "fashion-resnet", "char-gpt")
TUNED = {"fashion-autoencoder": "autoencoder", "fashion-resnet": "resnet", "char-gpt": "char-gpt"}
PAPER = ("cifar10-resnet18", "cifar10-vgg16bn", "imagenet-resnet50")


def readme() -> str:
    """Return the README's section on numbers."""
    cost = load("step_cost")
    where = cost["environment"]
    lines = [
        f"One thread of {where['processor']}, torch {where['torch']}, batch 256. Whole training steps, SGD's in turn"
        " with ours, medians of CPU time; memory is the peak of live tensors:",
        "",
        "| beside one step of SGD | time | between refreshes | peak memory |",
        "|---|---|---|---|",
    ]
    for (task, variant), label in COSTS.items():
        row = cost[task]["variants"][variant]
        between = f"{row['cpu_ratio_between']:.2f}x" if "every 10" in variant else "-"
        lines.append(f"| {label} | {row['cpu_ratio_cycle']:.2f}x | {between} | {row['memory_ratio']:.2f}x |")
    lines += ["", "Recipes, each optimizer with settings of its own (how they were found: each recipe's page):", ""]
    lines += ["| recipe | figure | " + " | ".join(NAMES.values()) + " |", "|---|---|---|---|---|"]
    for recipe in MEASURED:
        figure, cells = _cells(recipe)
        lines.append(f"| [{recipe}](docs/recipes/{recipe}.md) | {figure} | " + " | ".join(cells.values()) + " |")
    lines += ["", "What failed, and how each figure was made: `benchmarks/` and the [lab log](docs/lab-log.md)."]
    return "\n".join(lines)


def recipe_page(recipe: str) -> str:
    """Return a recipe's results: runs of the command line, one after the other."""
    results = load("recipes")
    where = results["environment"]
    rows = results[recipe]
    figure, cells = _cells(recipe)
    keys = ("train_loss",) if figure == "test loss" else ("train_loss", "test_loss")
    lines = [f"Measured with one thread of {where['processor']}, torch {where['torch']}, {where['date']}.", ""]
    lines += [" | ".join(["| optimizer", figure, *(key.replace("_", " ") for key in keys), "steps |"])]
    lines += ["|---" * (3 + len(keys)) + "|"]
    for optimizer, cell in cells.items():
        last = [row["epochs"][-1] for row in rows if row["optimizer"] == optimizer]
        losses = " | ".join(_span([row[key] for row in last], "{:.3f}") for key in keys)
        lines.append(f"| {NAMES[optimizer]} | {cell} | {losses} | {last[0]['step']:,} |")
    seeds = len({row["seed"] for row in rows})
    lines += ["", f"{seeds} seed{'s' if seeds > 1 else ''} after {rows[0]['epochs'][-1]['epoch']} epochs"]
    lines[-1] += "; a span is from the smallest to the largest." if seeds > 1 else "."
    lines += _search(TUNED[recipe]) if recipe in TUNED else _seconds(rows)
    return "\n".join(lines + _cost(recipe))


def _cost(recipe: str) -> list[str]:
    """Return what a step of a recipe takes beside SGD's, where that was measured in turn."""
    results = load("recipe_cost")
    if recipe not in results:
        return []
    cells = []
    for name in ("seng", "adamw"):
        low, high = results[recipe][name]["quartiles"]
        cells.append(f"{NAMES[name]} {results[recipe][name]['ratio']:.2f} (quartiles {low:.2f} and {high:.2f})")
    return ["", f"A step in CPU time beside SGD's, {results[recipe]['sgd_ms']:.0f} ms, in turn: {', '.join(cells)}."]


def _seconds(rows: list[dict[str, Any]]) -> list[str]:
    """Return the time of training, where runs are so short that they met the same load."""
    found = []
    for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
        seconds = [row["epochs"][-1]["seconds"] for row in rows if row["optimizer"] == optimizer]
        found.append(f"{NAMES[optimizer]} {median(seconds):.0f} s")
    return ["", f"Training took {', '.join(found)}, on a machine shared with others."]


def _search(task: str) -> list[str]:
    """Return the best trial of each method, by the loss on training samples that no trial trains on."""
    rows = [row for row in load("tuning")[task]["search"] if row["seed"] == 0]
    lines = ["", "The best trial of each method, by the loss on training data held out:", ""]
    lines += ["| method | trials | best rate | loss held out | CPU seconds a trial |", "|---|---|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        best = min((row for row in own if row["loss"] is not None), key=lambda row: row["loss"])
        seconds = median(row["cpu_seconds"] for row in own if row["loss"] is not None)
        lines.append(f"| {method} | {len(own)} | {best['lr']:g} | {best['loss']:.3f} | {seconds:.0f} |")
    return lines


def paper_page(recipe: str) -> str:
    """Return what a step of one of the paper's networks costs here."""
    results = load("paper_steps")
    where, found = results["environment"], results["recipes"][recipe]
    seconds, shape = found["seconds"], found["shape"]
    cells = [*(f"{seconds[name]:.2f}" for name in ("sgd", "adamw", "seng")), f"{found['seconds_of_refresh']:.2f}"]
    lines = [
        f"CPU seconds of a step of {shape[0]} pictures of {shape[2]} x {shape[3]} pixels, one thread of"
        f" {where['processor']}, torch {where['torch']}, optimizers in turn, medians:",
        "",
        "| SGD | AdamW | SENG between refreshes | SENG with a refresh | curvature held |",
        "|---|---|---|---|---|",
        f"| {' | '.join(cells)} | {found['curvature_mib']:.0f} MiB |",
    ]
    return "\n".join(lines)


def distributed_page() -> str:
    """Return how well steps are foretold here, weak scaling, and ResNet-50 on many GPUs."""
    return "\n".join([*_measured_ranks(), "", *_growing_batches(), "", *_foretold_gpus()])


def _measured_ranks() -> list[str]:
    results = load("ranks")
    where = results["environment"]
    lines = [
        f"Ranks of one thread, {where['cores']} cores of {where['processor']}, torch {where['torch']}, gloo, refreshed"
        f" every {results['steps_between_refreshes']} steps. Milliseconds a step as measured, and how far off the model"
        " is that was given one process's step and its curvature's work, two ranks' all-reduces, and how much slower"
        " the cores become when all of them work:",
        "",
        "| | ranks | plain | local | global | sharded |",
        "|---|---|---|---|---|---|",
    ]
    tasks = {name: found for name, found in results.items() if isinstance(found, dict) and "weak_scaling" in found}
    for name, found in tasks.items():
        alone = [f"{row['one_rank_ms']:.0f}" for row in found["weak_scaling"].values()]
        lines.append(f"| {name} | 1 | {' | '.join(alone)} |")
        for world, rows in found["model"]["ranks"].items():
            cells = [f"{row['measured_ms']:.0f} ({row['error']:+.0%})" for row in rows.values()]
            lines.append(f"| | {world} | {' | '.join(cells)} |")
    lines += ["", "From one rank to two each strategy keeps this share of the efficiency of plain training:", ""]
    for name, found in tasks.items():
        weak = found["weak_scaling"]
        shares = [f"{key} {row['of_plain']:.2f}" for key, row in weak.items() if key != "plain"]
        lines.append(f"- {name}: {', '.join(shares)} (plain training itself: {weak['plain']['efficiency']:.2f}).")
    return lines


def _growing_batches() -> list[str]:
    results = load("batch_scaling")
    tasks = {name: found for name, found in results.items() if name != "environment"}
    batches = list(dict.fromkeys(row["batch"] for found in tasks.values() for row in found["runs"]))
    lines = [
        "Steps until the loss of 2,000 test pictures is reached, the batch growing by ranks of"
        f" {next(iter(tasks.values()))['rank']} samples, each with its own curvature (`local`); one seed, the best of"
        " the rates tried, which are in brackets, the best first:",
        "",
        "| | loss | batch " + " | batch ".join(f"{batch:,}" for batch in batches) + " |",
        "|---|---|" + "---|" * len(batches),
    ]
    for name, found in tasks.items():
        for optimizer, label in NAMES.items():
            runs = [row for row in found["runs"] if row["optimizer"] == optimizer]
            cells = [_fewest([row for row in runs if row["batch"] == batch], found["most"]) for batch in batches]
            lines.append(f"| {name}, {label} | {found['target']:g} | {' | '.join(cells)} |")
    return lines


def _fewest(runs: list[dict[str, Any]], most: int) -> str:
    """Return the fewest steps to the loss, and the rates from the best to the worst."""
    if not runs:
        return "-"
    ordered = sorted(runs, key=lambda row: (row["steps"] or most + 1, row["best_loss"]))
    steps = ordered[0]["steps"]
    rates = ", ".join(f"{row['lr']:g}" for row in ordered)
    return f"{f'over {most}' if steps is None else steps} ({rates})"


def _foretold_gpus() -> list[str]:
    results = load("resnet50_ranks")
    assumed, rows = results["assumed"], results["forecasts"]
    network = assumed["network"]
    lines = [
        f"ResNet-50 with the paper's settings, {assumed['samples_a_rank']} pictures a GPU. Foretold, not measured: a"
        f" step without curvature taken as {assumed['step_seconds'] * 1e3:.0f} ms (the paper's 273 minutes), work at"
        f" {assumed['flops'] / 1e12:.1f} Tflop/s, {network['bandwidth'] / 1e9:.0f} GB/s and"
        f" {network['latency'] * 1e6:.0f} microseconds a message, rings. Milliseconds a step; MiB received a step"
        " beside the gradients' average; GiB held:",
        "",
        "| GPUs | batch | plain | local | sharded | global |",
        "|---|---|---|---|---|---|",
    ]
    for ranks in dict.fromkeys(row["ranks"] for row in rows):
        own = {row["strategy"]: row for row in rows if row["ranks"] == ranks}
        cells = [f"{own['plain']['seconds'] * 1e3:,.0f}"]
        for name in ("local", "sharded", "global"):
            row = own[name]
            moved = (row["step_bytes"] + row["refresh_bytes"] / row["interval"]) / 2**20
            cells.append(f"{row['seconds'] * 1e3:,.0f}; {moved:,.0f}; {row['held'] / 2**30:,.1f}")
        lines.append(f"| {ranks:,} | {ranks * assumed['samples_a_rank']:,} | {' | '.join(cells)} |")
    return lines


def _cells(recipe: str) -> tuple[str, dict[str, str]]:
    """Return what a recipe is judged by, and its value for each optimizer."""
    rows = load("recipes")[recipe]
    accurate = recipe != "char-gpt" and rows[0]["epochs"][-1]["test_accuracy"] is not None
    key, form, scale = ("test_accuracy", "{:.1f}%", 100) if accurate else ("test_loss", "{:.2f}", 1)
    values = {
        name: _span([scale * row["epochs"][-1][key] for row in rows if row["optimizer"] == name], form)
        for name in NAMES
    }
    return "test accuracy" if accurate else "test loss", values


def _span(values: list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


PAGES: dict[str, Callable[[], str]] = {
    "README.md": readme,
    "docs/distributed.md": distributed_page,
    **{f"docs/recipes/{recipe}.md": partial(recipe_page, recipe) for recipe in MEASURED},
    **{f"docs/recipes/{recipe}.md": partial(paper_page, recipe) for recipe in PAPER},
}


if __name__ == "__main__":
    render(PAGES)
