"""From what layers captured to curvature on the ranks that hold it. One process is the case of one rank."""

from .facts import Facts
from .moving import Move, move
from .reach import Reach
from .refresh import NoRefresh, Refresh, Refreshes
from .sharing import Members, Place, Sharing
from .thin import Carriers, ThinCorrections

__all__ = [
    "Carriers",
    "Facts",
    "Members",
    "Move",
    "NoRefresh",
    "Place",
    "Reach",
    "Refresh",
    "Refreshes",
    "Sharing",
    "ThinCorrections",
    "move",
]
