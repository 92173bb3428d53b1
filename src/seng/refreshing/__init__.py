"""From what layers captured to curvature on the ranks that hold it. One process is the case of one rank."""

from .facts import Facts
from .incoming import Members
from .moving import Move, Place, move
from .reach import Reach, bounds_passing
from .refresh import Refresh, Refreshes
from .sharing import Sharing
from .thin import Carriers, ThinCorrections

__all__ = [
    "Carriers",
    "Facts",
    "Members",
    "Move",
    "Place",
    "Reach",
    "Refresh",
    "Refreshes",
    "Sharing",
    "ThinCorrections",
    "bounds_passing",
    "move",
]
