"""Small folders of pictures laid out as ImageNet's, for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n02102040", "n03000684")


def picture(label: int, number: int, size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Image.Image:
    """Return a picture of ``size`` (width, height): waves whose hue tells the class, with some noise.

    Args:
        label: the class.
        number: which of the class's pictures.
        size: width and height in pixels.
        mode: Pillow's name of the pixel format: "RGB", "L", "RGBA", "CMYK" or "P".
    """
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    wave = np.sin(x / (3 + number % 5)) + np.cos(y / (4 + number % 3))
    channels = [110 + 25 * wave + 60 * np.cos(label + 2 * channel) for channel in range(3)]
    noise = np.random.default_rng(1000 * label + number).normal(0, 8, (height, width, 3))
    pixels = (np.stack(channels, axis=2) + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_imagenet(
    folder: Path,
    *,
    classes: tuple[str, ...] = CLASSES,
    train: int = 4,
    val: int = 2,
    size: tuple[int, int] = (80, 60),
) -> Path:
    """Write ``train`` and ``val`` JPEGs a class, as train/<class>/<class>_<number>.JPEG, and the same below val.

    Returns:
        ``folder``.
    """
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                # validation pictures are others than the training ones
                image = picture(label, number if split == "train" else 10_000 + number, size)
                image.save(place / f"{name}_{number}.JPEG", quality=90)
    return folder
