"""Tables that are looked up once for a whole batch, as position embeddings are, and parameters broadcast over it.

Their gradient would be summed over the samples. They are handed on as tensors that watch the operation which broadcasts
them, and are expanded there: then each sample has a gradient of its own. Whatever else is done with them acts on the
plain tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

PAIRED = (
    *(Tensor.__add__, Tensor.__radd__, Tensor.add, Tensor.__iadd__, Tensor.add_, torch.add),
    *(Tensor.__sub__, Tensor.__rsub__, Tensor.sub, Tensor.__isub__, Tensor.sub_, torch.sub),
    *(Tensor.__mul__, Tensor.__rmul__, Tensor.mul, Tensor.__imul__, Tensor.mul_, torch.mul),
)
EXPANDED = (Tensor.expand, Tensor.expand_as, Tensor.broadcast_to, torch.broadcast_to)
MOVES = (Tensor.to, Tensor.type_as, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double)
LEADING = (Tensor.unsqueeze, torch.unsqueeze, Tensor.__getitem__)


class Table(Tensor):
    """The output of a table, until something is done with it."""

    expand_to: Callable[[Tensor, torch.Size], Tensor]
    fits: Callable[[torch.Size, torch.Size], bool]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        table = next((x for x in args if isinstance(x, Table)), None)
        plain = [x.as_subclass(Tensor) if isinstance(x, Table) else x for x in args]
        named = {key: x.as_subclass(Tensor) if isinstance(x, Table) else x for key, x in (kwargs or {}).items()}
        with torch._C.DisableTorchFunctionSubclass():
            if table is not None and func in PAIRED and len(args) == 2 and named.keys() <= {"alpha"}:
                own = next(k for k, x in enumerate(args) if x is table)
                other = plain[1 - own]
                if isinstance(other, Tensor) and table.fits(table.shape, other.shape):
                    plain[own] = table.expand_to(plain[own], other.shape)
            result = func(*plain, **named)
            if table is not None and func in EXPANDED and table.fits(table.shape, result.shape):
                return table.expand_to(plain[0], result.shape).expand(result.shape)
            if table is not None and (func in MOVES or (func in LEADING and _leads(table, result))):
                return _wrap(result, table.expand_to, table.fits)
            return result


def as_table(output: Tensor, use: Any, given: Sequence[int], receive: Callable[[Any, Tensor], None]) -> Tensor:
    """Return a table's output, watched where its dimension 0 may not be the samples.

    Args:
        output: Of the lookup.
        use: The record of the call; replaced by that of the expanded output where it is broadcast.
        given: Dimension 0 of what the model was given; the first is taken for the batch size.
        receive: Takes a use and the gradient of its output.
    """
    ids = use.x
    if type(output) is not Tensor or (ids.dim() > 1 and ids.shape[0] != 1) or not given or given[0] == 1:
        return output
    return _wrap(output, partial(_expand, use, given[0], receive), _broadcasts)


def _expand(
    use: Any, samples: int, receive: Callable[[Any, Tensor], None], output: Tensor, shape: torch.Size
) -> Tensor:
    """Expand the output to one table a sample, and record its gradient there."""
    if shape[0] != samples:
        return output
    whole = output.expand(shape)
    own = use.reading(use.x.expand(samples, *shape[1:-1]))
    use.spent = True  # the record of the lookup itself is void
    whole.register_hook(lambda grad: receive(own, grad))
    return whole


def as_broadcast(parameter: Tensor, samples: int, take: Callable[[Tensor], None]) -> Tensor:
    """Return a parameter that is watched: where it is broadcast over the samples, each gets a copy of its own.

    Args:
        parameter: The parameter.
        samples: Number of samples.
        take: Takes the copies, [samples, ...], whose gradients are the samples'.
    """
    return _wrap(parameter, partial(_copied, samples, take), _spreads)


def _copied(samples: int, take: Callable[[Tensor], None], parameter: Tensor, shape: torch.Size) -> Tensor:
    if shape[0] != samples:
        return parameter
    copies = parameter.expand(samples, *((1,) * (len(shape) - parameter.dim()) + parameter.shape)[1:])
    take(copies)
    return copies


def _wrap(
    x: Tensor, expand_to: Callable[[Tensor, torch.Size], Tensor], fits: Callable[[torch.Size, torch.Size], bool]
) -> Tensor:
    table = x.as_subclass(Table)
    table.expand_to, table.fits = expand_to, fits
    return table


def _spreads(parameter: torch.Size, other: torch.Size) -> bool:
    """Return whether a parameter is broadcast to another tensor's shape, over dimension 0 among others."""
    if len(parameter) > len(other) or (len(parameter) == len(other) and parameter[0] != 1):
        return False
    pairs = zip(reversed(parameter), reversed(other), strict=False)
    return all(own in (1, there) for own, there in pairs)


def _broadcasts(table: torch.Size, other: torch.Size) -> bool:
    """Return whether adding broadcasts the table over dimension 0 of the other tensor, and over nothing else."""
    same = table[-len(other) + 1 :] == other[1:] if len(other) > 1 else False
    return same and (len(table) == len(other) - 1 or (len(table) == len(other) and table[0] == 1 != other[0]))


def _leads(table: Tensor, result: Any) -> bool:
    """Return whether a result is the table with a dimension of size 1 in front."""
    return isinstance(result, Tensor) and result.shape == (1, *table.shape)
