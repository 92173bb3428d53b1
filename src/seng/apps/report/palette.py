"""The colours of runs, layers and parts of a step, on white and on dark ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.colors import to_hex


@dataclass(frozen=True)
class Palette:
    """Colours on one ground, as ``#rrggbb``.

    Attributes:
        runs: told apart by people with any colour vision; further runs begin again, with dashes.
        parts: of a step: data, forward, backward, optimizer, refresh, in that order, from cold to warm.
        depth: from the first layer to the last, evenly spaced on a scale of even lightness steps.
        ground: behind the page; ``card`` behind a panel.
        ink: text; ``faint`` for what is less important, ``rule`` for lines of a grid.
    """

    runs: tuple[str, ...]
    parts: tuple[str, ...]
    depth: tuple[str, ...]
    ground: str
    card: str
    ink: str
    faint: str
    rule: str


def _depth(first: float, last: float, count: int = 9) -> tuple[str, ...]:
    return tuple(to_hex(colormaps["viridis"](first + (last - first) * k / (count - 1))) for k in range(count))


# Colours of runs after Okabe and Ito's set for all kinds of colour vision, without its yellow, and lighter on dark.
LIGHT = Palette(
    runs=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    parts=("#a8b3c2", "#7cb7dd", "#2f7fb8", "#f0b75b", "#c8500a"),
    depth=_depth(0.0, 0.88),
    ground="#f5f6f8",
    card="#ffffff",
    ink="#1d2430",
    faint="#5d6878",
    rule="#e3e7ec",
)
DARK = Palette(
    runs=("#4aa8e8", "#f08030", "#2fc79a", "#e39ac4", "#f2bd4a", "#a3d8fa"),
    parts=("#6d7886", "#8cc4e8", "#3d8fcc", "#f2c274", "#e8702a"),
    depth=_depth(0.18, 1.0),
    ground="#12161c",
    card="#1a2028",
    ink="#e6eaf0",
    faint="#9aa6b5",
    rule="#2c3540",
)


def along(colours: Sequence[str], position: float) -> str:
    """Return the colour at a position from 0 to 1 along a scale."""
    return colours[round(position * (len(colours) - 1))]
