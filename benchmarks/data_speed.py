"""Images a second of the loaders: alone, and with the model that uses them.

    python benchmarks/data_speed.py [--rounds 5] [--steps 3]

ImageNet's pictures are stood for by parts of scikit-learn's two photographs, 500 x 375 pixels, as JPEGs of about
100 kB (ImageNet's mean is 110), read from the system's cache. Wall seconds depend on who else uses the cores;
CPU seconds, of the workers too, hardly do, so images a CPU second say how many cores a GPU needs. Worker counts are
measured in turn, rounds over, medians taken. With the model, a step is forward and backward of ResNet-50 at 224 pixels,
batch 8, on one thread.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from environment import save
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from seng.apps.recipes import build_recipe
from seng.apps.train.config import DataConfig
from seng.apps.train.data import Split, load_dataset, prefetched, signature
from seng.apps.train.data.cifar import SCALE
from seng.apps.train.data.pictures import StoredPictures
from seng.apps.train.models import build_model

SIZE, QUALITY, NOISE = (500, 375), 94, 7.0  # together about 100 kB a picture
PICTURES, BATCH = 256, 32
WORKERS = (0, 1, 2)


def write_pictures(folder: Path) -> float:
    """Write the pictures as eight classes of ImageNet's layout; return the mean size of a file in kB."""
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        whole = photographs[number % 2]
        width = int(generator.integers(400, 560))
        left, upper = generator.integers(0, (whole.width - width + 1, whole.height - width * 3 // 4 + 1))
        part = whole.crop((left, upper, left + width, upper + width * 3 // 4)).resize(SIZE, Image.Resampling.LANCZOS)
        noisy = np.asarray(part) + generator.normal(0, NOISE, (SIZE[1], SIZE[0], 3))
        for split in ("train", "val"):
            place = folder / split / f"class{number % 8}"
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            picture.save(place / f"{number}.JPEG", quality=QUALITY)
    files = list((folder / "train").rglob("*.JPEG"))
    return sum(path.stat().st_size for path in files) / len(files) / 1000


def load(split: Split, batches: Sequence[torch.Tensor], workers: int) -> dict[str, float]:
    """Return images a wall second and a CPU second over some batches, the start of the workers not counted."""
    ahead = prefetched(split, batches, draw=1, workers=workers)
    first, _ = next(ahead)
    images = sum(map(len, batches)) - len(first)
    wall, before = time.perf_counter(), _cpu_seconds()
    for _ in ahead:
        pass
    wall = time.perf_counter() - wall
    # workers' CPU time is known once they have ended: it holds the first batch's too
    cpu = (_cpu_seconds() - before) * (1 if workers == 0 else images / (images + len(first)))
    return {"images_per_second": images / wall, "images_per_cpu_second": images / cpu}


def load_and_train(split: Split, workers: int, steps: int) -> dict[str, float]:
    """Return images a second of training steps and the share of the time spent waiting for pictures."""
    config = build_recipe("imagenet-resnet50")
    model = build_model(config.model, signature(config.data))
    ahead = prefetched(split, torch.arange(8 * (steps + 1)).split(8), draw=1, workers=workers)
    waited, began = 0.0, 0.0
    for step in range(steps + 1):  # the first is not counted
        if step == 1:
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        inputs, targets = next(ahead)
        waited += time.perf_counter() - asked
        F.cross_entropy(model(inputs), targets).backward()
        model.zero_grad()
    seconds = time.perf_counter() - began
    return {"images_per_second": 8 * steps / seconds, "waiting_share": waited / seconds}


def in_turn(measure: Callable[[int], dict[str, float]], rounds: int) -> list[dict[str, float]]:
    """Return the medians of a measurement for each number of workers, taken in turn."""
    taken = {workers: [] for workers in WORKERS}
    for _ in range(rounds):
        for workers in WORKERS:
            taken[workers].append(measure(workers))
    return [
        {"workers": workers, **{key: round(median(each[key] for each in results), 4) for key in results[0]}}
        for workers, results in taken.items()
    ]


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"rounds": options.rounds, "size": SIZE, "load_average_before": os.getloadavg()[1]}
    with TemporaryDirectory() as folder:
        result["kilobytes_per_picture"] = round(write_pictures(Path(folder)), 1)
        dataset = load_dataset(DataConfig("imagenet", folder, augment=True))
        batches = torch.arange(PICTURES).split(BATCH)
        result["training"] = in_turn(lambda workers: load(dataset.train, batches, workers), options.rounds)
        result["evaluation"] = in_turn(lambda workers: load(dataset.test, batches, workers), options.rounds)
        result["resnet50"] = in_turn(lambda workers: load_and_train(dataset.train, workers, options.steps), 1)
    pixels = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    cifar = StoredPictures(pixels, torch.zeros(50_000, dtype=torch.long), SCALE, augment=True)
    some = torch.randperm(50_000).split(256)
    result["cifar10"] = in_turn(lambda workers: load(cifar, some, workers), options.rounds)
    print(save("data_speed", result).read_text())


if __name__ == "__main__":
    main()
