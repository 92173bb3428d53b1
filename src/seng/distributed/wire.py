"""What crosses the network: flat buffers over one process group, asynchronous, every byte counted.

Bytes are those a rank receives: of an all-reduce the size of its result, of all else what the other ranks sent to it.
How a backend routes them (rings, trees) is its own affair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from math import prod
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import RankError
from ..per_sample import Spec

BUCKET = 2**25  # bytes of one flat buffer, as large as DistributedDataParallel's
ALIGNMENT = 8  # bytes: every tensor of a parcel starts at a multiple, so that it can be viewed in its own dtype

Pending = Callable[[], Tensor]  # waits for a buffer and returns it


def parcel_bytes(specs: Sequence[Spec]) -> int:
    """Return the bytes of a parcel of tensors of these shapes and dtypes."""
    return sum(_padded(prod(shape) * dtype.itemsize) for shape, dtype in specs)


def pack(tensors: Iterable[Tensor], specs: Sequence[Spec], device: torch.device) -> Tensor:
    """Copy tensors into one buffer of bytes, rounded to the dtypes that are announced."""
    flat = torch.empty(parcel_bytes(specs), dtype=torch.uint8, device=device)
    for part, tensor in zip(_parts(flat, specs), tensors, strict=True):
        part.copy_(tensor)
    return flat


def unpack(flat: Tensor, specs: Sequence[Spec]) -> list[Tensor]:
    """Return views of the tensors that ``pack`` copied."""
    return list(_parts(flat, specs))


def buckets(sizes: Sequence[int], limit: int = BUCKET) -> list[range]:
    """Cut a sequence of sizes into runs of at most ``limit`` together, or of one element that is larger."""
    runs, start, total = [], 0, 0
    for k, size in enumerate(sizes):
        if k > start and total + size > limit:
            runs.append(range(start, k))
            start, total = k, 0
        total += size
    return [*runs, range(start, len(sizes))] if sizes else []


class Wire:
    """Collective calls on a process group of their own, so that they wait for no one else's.

    All ranks must make the same calls in the same order. The group is made at the first call. Groups are held weakly: a
    rank that destroys them closes its connections at once, which is how the others learn of it.

    Args:
        dtype: What floating-point buffers are rounded to while they travel, or None to send them as they are.
        world: So many ranks on paper, to plan with: nothing can be sent. None: those of torch.distributed.

    Attributes:
        received: Bytes by purpose since the start.
    """

    def __init__(self, dtype: torch.dtype | None = None, world: int | None = None):
        self.dtype = dtype
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if world is None else (0, world)
        self.received: Counter[str] = Counter()
        self._world = _reference(dist.group.WORLD if world is None else None)
        self._group = _reference(None)

    @property
    def current(self) -> bool:
        """Whether the ranks are still those that it was made for."""
        return running() and self._world() is dist.group.WORLD

    def sent_as(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which tensors of a dtype travel."""
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype

    def least(self, flag: Tensor, numbers: Sequence[int], purpose: str) -> Callable[[], list[int]]:
        """Start the elementwise minimum over ranks of a 0-d flag and numbers: one wait for the device."""
        flat = torch.tensor([0, *numbers], dtype=torch.int64).to(flag.device)
        flat[0] = flag
        wait = self._start(
            purpose, flat.nbytes, flat,
            lambda: dist.all_reduce(flat, dist.ReduceOp.MIN, group=self.group, async_op=True),
        )  # fmt: skip
        return lambda: wait().tolist()

    def everyones(self, own: Tensor, purpose: str) -> Tensor:
        """Return all ranks' tensors of one shape, stacked."""
        parts = [torch.empty_like(own) for _ in range(self.world)]
        with ranks_present():
            dist.all_gather(parts, own.contiguous(), group=self.group)
        self.received[purpose] += own.nbytes * (self.world - 1)
        return torch.stack(parts)

    def objects(self, own: object) -> list[object]:
        """Return all ranks' objects; slow, for what is rare: errors, and states that were loaded."""
        found: list[object] = [None] * self.world
        with ranks_present():
            dist.all_gather_object(found, own, group=self.group)
        return found

    def sum(self, flat: Tensor, purpose: str) -> Pending:
        """Start the sum over ranks of a buffer, in place where it travels as it is."""
        sent = flat.to(self.sent_as(flat.dtype))
        return self._start(purpose, sent.nbytes, sent, lambda: dist.all_reduce(sent, group=self.group, async_op=True))

    def send_from(self, source: int, flat: Tensor, purpose: str) -> Pending:
        """Start handing one rank's buffer to all others."""
        nbytes = 0 if source == self.rank else flat.nbytes
        root = dist.get_global_rank(self.group, source)
        return self._start(purpose, nbytes, flat, lambda: dist.broadcast(flat, root, group=self.group, async_op=True))

    def deal(self, flat: Tensor, sent: list[int], due: list[int], purpose: str) -> Pending:
        """Start handing each rank its share: ``sent`` elements of the buffer to each, ``due`` from each."""
        out = flat.new_empty(sum(due))
        nbytes = (len(out) - due[self.rank]) * flat.element_size()
        call = dist.all_to_all_single
        return self._start(purpose, nbytes, out, lambda: call(out, flat, due, sent, group=self.group, async_op=True))

    def close(self) -> None:
        """Give the process group back."""
        group = self._group()
        if group is not None and self.current:
            dist.destroy_process_group(group)
        self._group = _reference(None)

    @property
    def group(self) -> dist.ProcessGroup:
        """The process group; making it is a collective call."""
        group = self._group()
        if group is None:
            with ranks_present():
                group = dist.new_group(timeout=_timeout())
            assert isinstance(group, dist.ProcessGroup)
            self._group = ref(group)
        return group

    def _start(self, purpose: str, nbytes: int, result: Tensor, call: Callable[[], dist.Work | None]) -> Pending:
        with ranks_present():
            work = call()
        self.received[purpose] += nbytes

        def wait() -> Tensor:
            with ranks_present():
                if work is not None:
                    work.wait()
            return result

        return wait


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


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _parts(flat: Tensor, specs: Sequence[Spec]) -> Iterator[Tensor]:
    start = 0
    for shape, dtype in specs:
        nbytes = prod(shape) * dtype.itemsize
        yield flat[start : start + nbytes].view(dtype).view(shape)
        start += _padded(nbytes)
