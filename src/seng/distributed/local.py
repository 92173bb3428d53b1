"""The paper's strategy: ranks precondition the averaged gradient with their own curvature and average the results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from .base import Strategy


class Local(Strategy):
    """Average of local directions, in one flat all-reduce a dtype. Source: PAPER section 5."""

    def agree(self, ok: Tensor) -> bool:
        flag = ok.to(torch.int32)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    def share_updates(self, updates: Sequence[Tensor]) -> None:
        for dtype in dict.fromkeys(update.dtype for update in updates):
            same = [update for update in updates if update.dtype == dtype]
            flat = torch.cat([update.reshape(-1) for update in same]).div_(dist.get_world_size())
            dist.all_reduce(flat)
            for update, part in zip(same, flat.split([update.numel() for update in same]), strict=True):
                update.copy_(part.view_as(update))
