"""The processes of a run: one alone, or several that torchrun started, each with a share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ...distributed import Communicator, ranks_present
from .errors import ConfigError

CALL = "seng train"


class Ranks(Communicator):
    """This process's place among those of the run.

    Args:
        rank: this process's number; 0 writes files and shows progress.
        world: how many there are.
        local: its number on its machine, which is its GPU's.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0):
        super().__init__(rank, world, call=CALL)
        self.local = local

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def share(self, indices: Tensor) -> Tensor:
        """Return this process's part of a batch; parts differ by at most one sample."""
        return indices.tensor_split(self.world)[self.rank]

    def replicate(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model as it is to be called: gradients are then averaged over the processes."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Tell what the backend says inside, where a replicated model averages gradients, from all other errors."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            with ranks_present(CALL):
                raise

    @torch.no_grad()
    def copy_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers (running statistics), as a replicated model does at each step."""
        for buffer in model.buffers() if self.world > 1 else ():
            buffer.copy_(self.broadcast(buffer))


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun, or with one process, stay alone.

    Args:
        device: as ``RunConfig.device``; on GPUs process number k of a machine takes the k-th.
    """
    local = os.environ.get("LOCAL_RANK")
    if local is None or os.environ.get("WORLD_SIZE") == "1":
        yield ALONE
        return
    gpu = choose_device(device, int(local)).type == "cuda"
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    try:
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), int(local))
        yield ranks
        ranks.wait()  # the store lives in the first process
    finally:
        dist.destroy_process_group()


def choose_device(name: str, local: int = 0) -> torch.device:
    """Return the device that ``name`` means to a process with this number on its machine.

    Raises:
        ConfigError: the device cannot be used.
    """
    here = torch.cuda.is_available()
    if name in ("auto", "cuda") and (here or name == "auto"):
        name = f"cuda:{local}" if here else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        absent = "There is no CUDA device here: leave" if name.startswith("cuda") and not here else "Leave"
        raise ConfigError(
            "seng train",
            "the device cannot be used",
            expected="auto, cpu or cuda" if here or name != "cuda" else "auto or cpu",
            got=name,
            fix=f"{absent} --device out to take what is there",
        ) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
