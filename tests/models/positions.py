"""Ways to use a table of positions, which is looked up once for a whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .family import Family, classes
from .tasks import CLASSES, LENGTH, SERIES

WIDTH = 16
Way = Callable[[Tensor, Tensor], Tensor]  # (samples [n, s, d], table [s, d] or [1, s, d]) -> [n, s, d]


class Placed(nn.Module):
    """Tells the class of a series; positions are looked up by ids [s], or [1, s]."""

    def __init__(self, way: Way, ids: tuple[int, ...]):
        super().__init__()
        self.way, self.ids = way, ids
        self.enter, self.positions = nn.Linear(SERIES[1], WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm, self.inside = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        table = self.positions(torch.arange(LENGTH).view(self.ids))
        x = self.way(self.enter(x), table)
        return self.head(torch.relu(self.inside(self.norm(x))).mean(1))


def in_place(x: Tensor, table: Tensor) -> Tensor:
    x += table
    return x


def twice(x: Tensor, table: Tensor) -> Tensor:
    return torch.tanh(x + table) + table


def beside(x: Tensor, table: Tensor) -> Tensor:
    return (x + table) * (1 + table.mean())


def attended(x: Tensor, table: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x + table, (x + table).detach(), table.expand_as(x))


def through_buffer(x: Tensor, table: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:] = table
    return x + out


WAYS: dict[str, Way] = {
    "added": lambda x, table: x + table,
    "added-first": lambda x, table: table + x,
    "added-by-name": lambda x, table: torch.add(x, table),
    "added-scaled": lambda x, table: torch.add(x, table, alpha=0.5),
    "added-by-keyword": lambda x, table: torch.add(input=x, other=table),
    "added-in-place": in_place,
    "added-into-view": lambda x, table: in_place(x.view(x.shape), table),
    "added-negative": lambda x, table: x - (-table),
    "subtracted": lambda x, table: x - table,
    "added-transposed": lambda x, table: (x.mT + table.mT).mT,
    "added-sliced": lambda x, table: torch.cat([x[:, :3] + table[..., :3, :], x[:, 3:]], 1),
    "added-cast": lambda x, table: x + table.to(x.dtype),
    "added-dropped": lambda x, table: x + F.dropout(table, 0.0),
    "added-summed": lambda x, table: sum([x, table]),  # type: ignore[arg-type, return-value]
    "added-scaled-first": lambda x, table: x * 2 + table * 0.5,
    "added-to-cut": lambda x, table: F.pad(x[..., :8] + table[..., :8], (0, 8)),
    "lerped": lambda x, table: torch.lerp(x, table.expand_as(x), 0.5),
    "addcmul": lambda x, table: torch.addcmul(x, table, torch.ones_like(table)),
    "broadcast-tensors": lambda x, table: sum(torch.broadcast_tensors(x, table)),  # type: ignore[arg-type, return-value]
    "expanded": lambda x, table: x + table.expand_as(x),
    "expanded-sizes": lambda x, table: x + table.expand(len(x), -1, -1),
    "repeated": lambda x, table: x + table.reshape(1, LENGTH, WIDTH).repeat(len(x), 1, 1),
    "stacked": lambda x, table: x + torch.stack([table.reshape(LENGTH, WIDTH)] * len(x)),
    "unsqueezed": lambda x, table: x + table.reshape(LENGTH, WIDTH).unsqueeze(0),
    "indexed": lambda x, table: x + table.reshape(LENGTH, WIDTH)[None],
    "multiplied": lambda x, table: x * (1 + table),
    "joined": lambda x, table: torch.cat([x[..., :8], table[..., :8].expand(len(x), -1, -1)], -1),
    "contracted": lambda x, table: torch.einsum("nsd,sd->nsd", x, table.reshape(LENGTH, WIDTH)),
    "matrix-product": lambda x, table: x @ table.reshape(LENGTH, WIDTH).T @ table.reshape(LENGTH, WIDTH),
    "through-buffer": through_buffer,
    "twice": twice,
    "beside": beside,
    "attended": attended,
    "detached": lambda x, table: x + table.detach() + table * 0.5,
}

POSITIONS: dict[str, Family] = {
    f"positions-{way}-{name}": classes(lambda f=f, ids=ids: Placed(f, ids), *SERIES)
    for way, f in WAYS.items()
    for name, ids in {"row": (LENGTH,), "batch-of-one": (1, LENGTH)}.items()
}
