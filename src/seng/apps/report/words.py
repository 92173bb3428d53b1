"""Numbers as people read them."""

from __future__ import annotations

from typing import Any

PARTS = {
    "data": "waiting for data",
    "forward": "forward pass",
    "backward": "backward pass",
    "optimizer": "optimizer",
    "refresh": "curvature refresh",
}  # of a step, in the order in which they happen
NONE = "–"


def loss(value: float) -> str:
    """Return a loss with four significant digits."""
    return f"{value:.4g}"


def share(value: float) -> str:
    """Return a share from 0 to 1 as a percentage."""
    return f"{value:.2%}"


def metric(name: str, value: float) -> str:
    """Return an epoch's metric, a share or a loss by its name."""
    return loss(value) if name.endswith("loss") else share(value)


def duration(seconds: float) -> str:
    """Return a time in the two largest units that suit it."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def milliseconds(seconds: float) -> str:
    """Return the time of a step."""
    return f"{1000 * seconds:.3g} ms"


def speed(per_second: float) -> str:
    """Return samples a second."""
    return f"{per_second:,.0f}"


def memory(count: int) -> str:
    """Return bytes in the unit that suits them."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"


def setting(value: Any) -> str:
    """Return the value of a setting."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value) or "none"
    return "none" if value is None else str(value)
