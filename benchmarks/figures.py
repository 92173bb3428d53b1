"""Renders the README's first numbers from the committed results, so that no figure is typed by hand.

python benchmarks/figures.py --write    # replaces what stands between the marks in README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"
COSTS = {
    (
        "autoencoder",
        "exact, power 1, current batch, reweight",
    ): "deep autoencoder, exact at every step, `reweight=True`",
    ("autoencoder", "exact, power 1, current batch"): "the same, weight gradients kept",
    ("autoencoder", "defaults, every 10"): "deep autoencoder, all defaults",
    ("resnet", "defaults, every 10"): "small ResNet, all defaults",
}


def render() -> str:
    """Return the README's section on numbers."""
    cost, training = _load("step_cost"), _load("training")
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
    digits = [100 * row["test_accuracy"] for row in training["digits"]]
    fashion = training["fashion-resnet"][0]
    lines += [
        "",
        f"Test accuracy with all defaults: `digits` {min(digits):.1f} to {max(digits):.1f}% over {len(digits)} seeds"
        f" after {training['digits'][0]['epoch']} epochs; `fashion-resnet` {100 * fashion['test_accuracy']:.1f}% after"
        f" {fashion['epoch']} epochs. Other settings, what failed, and how each figure was made: `benchmarks/` and the"
        " [lab log](docs/lab-log.md).",
    ]
    return "\n".join(lines)


def section(readme: str) -> str:
    """Return what stands between the marks of a README."""
    return readme.split(BEGIN)[1].split(END)[0].strip()


def _load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def main() -> None:
    """Print the section, or write it into README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print(render())
        return
    path = ROOT / "README.md"
    before, after = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{render()}\n\n{END}{after.split(END)[-1]}")


if __name__ == "__main__":
    main()
