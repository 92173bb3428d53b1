"""What the option ``distributed`` takes: a strategy by name, with its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import choose

WIRE_DTYPES = ("bfloat16",)


@dataclass(frozen=True)
class Distributed:
    """How the ranks of torch.distributed share curvature.

    Args:
        name: "none", "auto" or another key of ``seng.distributed.STRATEGIES``. "auto" takes the cheapest by bytes,
            operations and memory.
        wire_dtype: What samples and directions are rounded to while they travel: "bfloat16", or None.

    Raises:
        OptionError: An argument is out of range.
    """

    name: str = "auto"
    wire_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.wire_dtype is not None:
            choose(dict.fromkeys(WIRE_DTYPES), self.wire_dtype, call=f"{type(self).__name__}()", option="wire_dtype")

    @property
    def alone(self) -> bool:
        """Whether each process keeps to itself."""
        return self.name == "none"


@dataclass(frozen=True)
class Local(Distributed):
    """Average the ranks' directions, each by the curvature of its own samples.

    Args:
        wire_dtype: As for ``seng.Distributed``.

    Source: PAPER section 5.
    """

    name: str = field(default="local", init=False, repr=False)


@dataclass(frozen=True)
class Global(Distributed):
    """Keep the curvature of all ranks' samples on every rank.

    Args:
        wire_dtype: As for ``seng.Distributed``.
    """

    name: str = field(default="global", init=False, repr=False)


@dataclass(frozen=True)
class Sharded(Distributed):
    """Keep the curvature of all ranks' samples, each layer's on one rank.

    Args:
        wire_dtype: As for ``seng.Distributed``.
    """

    name: str = field(default="sharded", init=False, repr=False)
