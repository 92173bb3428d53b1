"""Picture files read, cut and resized to the bytes of one sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import DataError

if TYPE_CHECKING:
    from PIL import Image

TRIES = 10
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random cut: its share of the picture, and width to height
NUMBERS = 2 * TRIES + 3  # random numbers that a random cut and its mirror take
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")  # formats whose grey levels of more than 8 bits Pillow may give as "I"
MARGIN = 224 / 256  # share of the shorter side that an evaluation looks at


@dataclass(frozen=True)
class Cut:
    """A part of a picture, in pixels from its upper left corner; right and lower are the first outside."""

    left: float
    upper: float
    right: float
    lower: float
    mirrored: bool = False


def random_cut(width: int, height: int, random: Float[Tensor, " k"]) -> Cut:
    """Return a random part of a picture, of random shape and from 8% of its area to all.

    Ten parts are tried for one that fits; else it is the middle, as far as the ratio of its sides is allowed.

    Args:
        width: of the picture, in pixels.
        height: likewise.
        random: ``NUMBERS`` numbers in [0, 1).

    Source: Szegedy et al., Going Deeper with Convolutions, 2015, section 6, as now usual for ResNet-50.
    """
    numbers = random.tolist()
    mirrored = numbers[-1] >= 0.5
    for area, shape in zip(numbers[:TRIES], numbers[TRIES : 2 * TRIES], strict=True):
        target = width * height * _between(AREA, area)
        ratio = math.exp(_between((math.log(RATIO[0]), math.log(RATIO[1])), shape))
        across, down = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, upper = int(numbers[-3] * (width - across + 1)), int(numbers[-2] * (height - down + 1))
            return Cut(left, upper, left + across, upper + down, mirrored)
    across, down = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, upper = (width - across) // 2, (height - down) // 2
    return Cut(left, upper, left + across, upper + down, mirrored)


def middle_cut(width: int, height: int) -> Cut:
    """Return the square in the middle of a picture, with 224/256 of its shorter side.

    Resized to 224 pixels it is what is left of the picture resized to 256 after cutting the middle out.
    """
    side = min(width, height) * MARGIN
    left, upper = (width - side) / 2, (height - side) / 2
    return Cut(left, upper, left + side, upper + side)


def read_picture(path: str, size: int, random: Float[Tensor, " k"] | None) -> UInt8[np.ndarray, "size size 3"]:
    """Read a picture file, cut a part out, and resize it to a square of RGB bytes.

    A JPEG that is at least twice too large is decoded at a half, quarter or eighth of its size, which is quicker.

    Args:
        path: the file, of any format that Pillow reads.
        size: height and width of the result.
        random: ``NUMBERS`` numbers in [0, 1) for a random part; None: the middle.

    Raises:
        DataError: the file is not there, cut, no picture, or one of too many pixels; it is named.
    """
    from PIL import Image  # only those who read pictures need it

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {Image.MAX_IMAGE_PIXELS}")
            cut = middle_cut(width, height) if random is None else random_cut(width, height, random)
            return np.asarray(_resized(picture, cut, size))
    except Exception as error:  # decoders fail in many ways
        raise DataError(
            "read_picture",
            f"{path} cannot be read",
            expected="a whole picture",
            got=f"{type(error).__name__}: {error}",
            fix="Fetch it again, or remove it: the rest of its class is used without it",
        ) from error


def _resized(picture: Image.Image, cut: Cut, size: int) -> Image.Image:
    from PIL import Image

    width, height = picture.size
    excess = min(cut.right - cut.left, cut.lower - cut.upper) / size
    drafted = picture.draft(picture.mode, (int(width / excess), int(height / excess))) if excess >= 2 else None
    share = drafted[1][2] / width if drafted else 1.0  # draft() says how much of each side is left
    box = (cut.left * share, cut.upper * share, cut.right * share, cut.lower * share)
    resized = _as_rgb(picture).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if cut.mirrored else resized


def _as_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture as RGB bytes: of 16 bits the upper eight, as Pillow itself takes of colours; no transparency.

    Raises:
        ValueError: the levels are of no known range.
    """
    from PIL import Image

    picture.load()
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in SIXTEEN_BITS):
        levels = np.asarray(picture).astype(np.int64).clip(0, 2**16 - 1)
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):  # Pillow keeps the levels of a picture in 8 bits as they are
        low, high = np.asarray(picture).min(), np.asarray(picture).max()
        if not (low >= 0 and (high == 0 or 1 < high <= 255)):
            raise ValueError(f"levels from {low} to {high} in mode {picture.mode}, of which 0 to 255 is known")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # of which a palette makes no warning
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _between(bounds: tuple[float, float], part: float) -> float:
    return bounds[0] + part * (bounds[1] - bounds[0])
