"""What the tests of layers draw: sizes, seeds, and the options under which directions are compared."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

sizes = st.integers(1, 4)
batches = st.integers(2, 5)
seeds = st.integers(0, 2**32 - 1)
reductions = st.sampled_from(["mean", "sum"])


@st.composite
def option_sets(draw: st.DrawFn) -> dict[str, Any]:
    """Options that change the direction but not what is captured."""
    return {
        "loss_reduction": draw(reductions),
        "power": draw(st.sampled_from([1.0, 0.7, 0.5])),
        "damping_mode": draw(st.sampled_from(["relative", "absolute"])),
        "damping": draw(st.sampled_from([0.03, 0.1, 1.0])),
        "scale": draw(st.sampled_from(["auto", "gradient", "natural"])),
    }


def examples(count: int) -> settings:
    """Hypothesis without its deadline: the first example pays for torch's warm-up."""
    return settings(max_examples=count, deadline=None)
