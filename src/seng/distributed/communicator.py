"""Collective calls: every byte counted where curvature travels, and errors that name the call where a rank is gone.

Bytes are those a rank receives: of an all-reduce the size of its result, of all else what the other ranks sent to it.
How a backend routes them (rings, trees) is its own affair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ReferenceType, ref

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from ..errors import RankError, SengError

if TYPE_CHECKING:
    from typing_extensions import Self

Pending = Callable[[], Tensor]  # waits for a buffer and returns it
T = TypeVar("T")


class Communicator:
    """Collective calls on one process group.

    All ranks must make the same calls in the same order. One process is a group of one, to which nothing is sent.

    Args:
        rank: This process.
        world: Number of processes. Where they are on paper, to plan with, nothing can be sent.
        call: What errors name.
        dtype: What floating-point buffers of ``start_sum`` are rounded to while they travel, or None to send them as
            they are.
        own_group: Whether its calls wait for no one else's. The group is made at the first call. Groups are held
            weakly: a rank that destroys them closes its connections at once, which is how the others learn of it.

    Attributes:
        received: Bytes by purpose since the start.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        *,
        call: str = "step()",
        dtype: torch.dtype | None = None,
        own_group: bool = False,
    ):
        self.rank, self.world, self.call, self.dtype = rank, world, call, dtype
        self.received: Counter[str] = Counter()
        self._made_for = _reference(dist.group.WORLD if running() else None)
        self._own_group, self._group = own_group, _reference(None)

    @classmethod
    def among_all(cls, **arguments: Any) -> Self:
        """Return one of all ranks of torch.distributed, or of one process where it does not run."""
        place = (dist.get_rank(), dist.get_world_size()) if running() else (0, 1)
        return cls(*place, **arguments)

    @property
    def current(self) -> bool:
        """Whether the ranks are still those that it was made for."""
        return running() and self._made_for() is dist.group.WORLD

    # -- answers at once ----------------------------------------------------------------------------------------

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks."""
        if self.world == 1:
            return x
        total = x.clone()
        with ranks_present(self.call):
            dist.all_reduce(total, group=self.group)
        return total

    def largest(self, value: int) -> int:
        """Return the largest of the ranks' values."""
        if self.world == 1:
            return value
        found = torch.tensor([value])
        with ranks_present(self.call):
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def agree(self, ok: bool) -> bool:
        """Return whether all ranks say yes."""
        return not self.largest(int(not ok))

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.largest(0)

    def gather(self, value: T) -> list[T]:
        """Return every rank's object; slow, for what is rare."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        with ranks_present(self.call):
            dist.all_gather_object(found, value, group=self.group)
        return found

    def all_gather(self, own: Tensor, purpose: str) -> Tensor:
        """Return all ranks' tensors of one shape, stacked."""
        if self.world == 1:
            return own[None]
        parts = [torch.empty_like(own) for _ in range(self.world)]
        with ranks_present(self.call):
            dist.all_gather(parts, own.contiguous(), group=self.group)
        self.received[purpose] += own.nbytes * (self.world - 1)
        return torch.stack(parts)

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """Return one rank's tensor; others give one of its shape, which is written over."""
        if self.world == 1:
            return x
        x = x.contiguous()
        with ranks_present(self.call):
            dist.broadcast(x, source, group=self.group)
        return x

    def join(self, x: Float[Tensor, "m *rest"], lengths: Sequence[int]) -> Float[Tensor, "n *rest"]:
        """Return the rows of all ranks one below the other."""
        if self.world == 1:
            return x
        parts = (x if k == self.rank else x.new_empty(m, *x.shape[1:]) for k, m in enumerate(lengths))
        return torch.cat([self.broadcast(part, source) for source, part in enumerate(parts)])

    def collect(self, x: Float[Tensor, "m *rest"], lengths: Sequence[int]) -> Float[Tensor, "n *rest"] | None:
        """Return the rows of all ranks on the first one, None elsewhere."""
        if self.world == 1:
            return x
        with ranks_present(self.call):
            if self.rank:
                dist.send(x.contiguous(), 0, group=self.group)
                return None
            whole = x.new_empty(sum(lengths), *x.shape[1:])
            whole[: lengths[0]] = x
            for source, part in enumerate(whole.split(list(lengths))[1:], 1):
                dist.recv(part, source, group=self.group)
        return whole

    def agreed(self, act: Callable[[], T]) -> T:
        """Return what ``act`` gives; an error of this library on one rank is raised on all, a rank's own first."""
        value, error = None, None
        try:
            value = act()
        except SengError as found:
            error = found
        for other in (error, *self.gather(error)):
            if other is not None:
                raise other
        return value  # type: ignore[return-value]

    # -- buffers on their way -----------------------------------------------------------------------------------

    def sent_as(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which tensors of a dtype travel."""
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype

    def start_min(self, flag: Tensor, numbers: Sequence[int], purpose: str) -> Callable[[], list[int]]:
        """Start the elementwise minimum over ranks of a 0-d flag and numbers: one wait for the device."""
        flat = torch.tensor([0, *numbers], dtype=torch.int64).to(flag.device)
        flat[0] = flag
        wait = self._start(
            purpose, flat.nbytes, flat,
            lambda: dist.all_reduce(flat, dist.ReduceOp.MIN, group=self.group, async_op=True),
        )  # fmt: skip
        return lambda: wait().tolist()

    def start_sum(self, flat: Tensor, purpose: str) -> Pending:
        """Start the sum over ranks of a buffer, in place where it travels as it is."""
        sent = flat.to(self.sent_as(flat.dtype))
        return self._start(purpose, sent.nbytes, sent, lambda: dist.all_reduce(sent, group=self.group, async_op=True))

    def start_broadcast(self, source: int, flat: Tensor, purpose: str) -> Pending:
        """Start handing one rank's buffer to all others."""
        nbytes = 0 if source == self.rank else flat.nbytes
        call = dist.broadcast
        return self._start(purpose, nbytes, flat, lambda: call(flat, source, group=self.group, async_op=True))

    def start_all_to_all(self, flat: Tensor, sent: list[int], due: list[int], purpose: str) -> Pending:
        """Start handing each rank its share: ``sent`` elements of the buffer to each, ``due`` from each."""
        out = flat.new_empty(sum(due))
        nbytes = (len(out) - due[self.rank]) * flat.element_size()
        call = dist.all_to_all_single
        return self._start(purpose, nbytes, out, lambda: call(out, flat, due, sent, group=self.group, async_op=True))

    def _start(self, purpose: str, nbytes: int, result: Tensor, call: Callable[[], dist.Work | None]) -> Pending:
        with ranks_present(self.call):
            work = call()
        self.received[purpose] += nbytes

        def wait() -> Tensor:
            with ranks_present(self.call):
                if work is not None:
                    work.wait()
            return result

        return wait

    # -- the group ----------------------------------------------------------------------------------------------

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group, None for that of all; making one is a collective call."""
        if not self._own_group:
            return None
        group = self._group()
        if group is None:
            with ranks_present(self.call):
                group = dist.new_group(timeout=_timeout())
            assert isinstance(group, dist.ProcessGroup)
            self._group = ref(group)
        return group

    def close(self) -> None:
        """Give a process group of its own back."""
        group = self._group()
        if group is not None and self.current:
            dist.destroy_process_group(group)
        self._group = _reference(None)


def running() -> bool:
    """Return whether torch.distributed runs."""
    return dist.is_available() and dist.is_initialized()


def several_ranks() -> bool:
    """Return whether it runs with more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def ranks_present(call: str = "step()") -> Iterator[None]:
    """Turn what a backend says when a rank is gone or too slow into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            call, "the ranks cannot reach each other", expected="every rank at the same call within the timeout of "
            "the process group", got=str(error).splitlines()[0], fix="Look for the first rank that failed or had fewer "
            "batches, and start again from a checkpoint",
        ) from error  # fmt: skip


def _reference(group: dist.ProcessGroup | None) -> ReferenceType[dist.ProcessGroup] | Callable[[], None]:
    return (lambda: None) if group is None else ref(group)


def _timeout() -> timedelta | None:
    """Return how long the default group waits: a new group would wait for half an hour, whatever was asked for."""
    world = dist.group.WORLD
    assert world is not None
    try:
        return world._get_backend(world._device_types[0]).options._timeout
    except AttributeError:  # a backend that does not say
        return None
