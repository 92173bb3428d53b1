"""The strategy "global": curvature of all ranks' samples on every rank."""

from __future__ import annotations

from .dealt import Dealt


class Global(Dealt):
    """All ranks hold all samples; owners alone factorise. Between refreshes no direction travels.

    Layers whose products are not repeatable bit for bit on their device stay with their owner, as under "sharded".
    """

    name = "global"
    everywhere = True
