"""The colours, as seen with any colour vision."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from seng.apps.report.palette import DARK, LIGHT, Palette, along

# Linear RGB as seen without one kind of cone, after Machado, Oliveira and Fernandes (2009), severity 1.
VISION = {
    "full": np.eye(3),
    "no red cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no blue cones": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of linear sRGB
WHITE = XYZ @ np.ones(3)
APART = 10.0  # CIELAB units between thin lines; 2.3 is just noticeable between large patches
READABLE = 4.5  # contrast of text, by the web's accessibility guidelines
VISIBLE = 2.2  # contrast of lines, less than the guidelines' 3: Okabe and Ito's orange and sky blue are light
GROUNDS = pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])


def _linear(colour: str) -> np.ndarray:
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(colour: str, vision: np.ndarray) -> np.ndarray:
    ratios = XYZ @ np.clip(vision @ _linear(colour), 0, 1) / WHITE
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _contrast(one: str, other: str) -> float:
    low, high = sorted(float(XYZ[1] @ _linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@GROUNDS
@pytest.mark.parametrize("vision", VISION)
def test_palette_tells_runs_apart_with_any_colour_vision(palette: Palette, vision: str):
    for one, other in combinations(palette.runs, 2):
        distance = np.linalg.norm(_lab(one, VISION[vision]) - _lab(other, VISION[vision]))
        assert distance > APART, f"{one} and {other} with {vision}"


@GROUNDS
@pytest.mark.parametrize("vision", VISION)
def test_palette_tells_neighbouring_parts_apart_with_any_colour_vision(palette: Palette, vision: str):
    for one, other in zip(palette.parts, palette.parts[1:], strict=False):
        assert np.linalg.norm(_lab(one, VISION[vision]) - _lab(other, VISION[vision])) > APART, f"{one} and {other}"


@GROUNDS
def test_palette_is_readable_on_its_ground(palette: Palette):
    for ground in (palette.ground, palette.card):
        assert _contrast(palette.ink, ground) > READABLE
        assert _contrast(palette.faint, ground) > READABLE
    for colour in palette.runs:
        assert _contrast(colour, palette.card) > VISIBLE, colour


@GROUNDS
def test_palette_depth_gets_lighter_layer_by_layer(palette: Palette):
    lightness = [_lab(colour, VISION["full"])[0] for colour in palette.depth]
    assert all(before < after for before, after in pairwise(lightness))


def test_along_reaches_both_ends():
    assert along(LIGHT.depth, 0.0) == LIGHT.depth[0]
    assert along(LIGHT.depth, 1.0) == LIGHT.depth[-1]
