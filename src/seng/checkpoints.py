"""Model, base optimizer and curvature through torch.distributed.checkpoint: each rank writes what it alone holds.

A checkpoint is a folder. It can be loaded by any number of ranks, by a model that ``fully_shard`` has cut or by whole
ones: parameters and momentum are cut anew, and curvature goes where ``refreshing.move`` says. Plain values travel as
JSON in tensors of bytes, and what lies where is read from a manifest with checksums (``manifest``): nothing has to be
unpickled but tensors, with ``weights_only``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.optim import Optimizer

from .bases import sound
from .distributed import Communicator, ranks_present, several_ranks
from .errors import SengError, StateError
from .manifest import PARTIAL, Manifest, Reader, commit, digest_of, read_manifest, refusal, stage
from .optimizer import SENG
from .preconditioner import Preconditioner
from .refreshing import move
from .state import AXES, BLOCKS, TENSOR, anywhere, from_bytes, rejoin, relocated, separate, to_bytes, unpack
from .wrappers import sharded, unwrap

# ranks read different tensors; before torch had the option it could be asked to do so, with a warning
_APART: dict[str, Any] = {"no_dist": True} if "no_dist" in signature(load_tensors).parameters else {}
SAVE, LOAD = "checkpoints.save()", "checkpoints.load()"
# what values of other types or shapes than ``save`` wrote lead to
T = TypeVar("T")
_UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def save(
    folder: str | Path, model: nn.Module, optimizer: SENG | Preconditioner, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint that any number of ranks can load. A collective call.

    A checkpoint that is there already is replaced when the new one is complete, and not before: a run that is killed
    while it saves can be resumed from it.

    Args:
        folder: Where to, the same on all ranks; on a file system that all of them see.
        model: The model, wrapped or not.
        optimizer: SENG, or a Preconditioner, whose base is then not saved.
        extra: Plain values of the first rank: numbers, texts, lists and dictionaries.

    Raises:
        StateError: A parameter, momentum or curvature is not finite, or the files cannot be written.
        RankError: Another rank is gone or too slow.

    Cost: each rank writes the curvature it holds, its part of what is cut, and a share of what all hold alike, and
    reads it once for the checksums.
    """
    preconditioner, bases = _parts_of(optimizer)
    preconditioner.meet("checkpoints.save()", folder=folder)
    rank, tensors = preconditioner.strategy.rank, _model_tensors(model)
    names = _names(model)
    plain: dict[str, Any] = {"extra": dict(extra or {}), "bases": []}
    for k, base in enumerate(bases):
        plain["bases"].append(_flatten(_named(base, names), f"base{k}", tensors))
    state = preconditioner.state_dict()
    curvature = state["curvature"]
    for part in BLOCKS:
        for block, packed in state.pop(part).items():
            key = f"rank{rank}/{part}/{block}::"
            tensors[f"{key}plain"] = to_bytes(_flatten(packed, key, tensors))
    tensors[f"rank{rank}/plain"] = to_bytes(plain | {"preconditioner": _flatten(state, f"rank{rank}", tensors)})
    folder = Path(folder)
    partial = folder / PARTIAL

    def prepare() -> None:
        _require_finite(names)
        if not all(sound(base, base.state_dict()) for base in bases) or anywhere(curvature, lambda x: ~x.isfinite()):
            raise _diverged("the optimizer's state is not finite", "NaN or infinity")
        if rank == 0:
            stage(folder)

    _agreed(SAVE, prepare)
    with _torch_errors(SAVE):
        metadata = save_tensors(tensors, checkpoint_id=str(partial))
    written = [path.name for path in partial.glob(f"__{rank}_*")] + [".metadata"] * (rank == 0)
    own = _agreed(SAVE, lambda: {name: digest_of(partial / name) for name in written})
    digests = {name: digest for part in Communicator.among_all(call=SAVE).gather(own) for name, digest in part.items()}
    _agreed(SAVE, lambda: commit(folder, metadata, digests) if rank == 0 else None)


def load(folder: str | Path, model: nn.Module, optimizer: SENG | Preconditioner) -> dict[str, Any]:
    """Bring model and optimizer to what ``save`` wrote, on any number of ranks. A collective call.

    Where curvature does not fit the strategy it is made anew at the next step.

    Args:
        folder: The checkpoint.
        model: Built as the saved one was.
        optimizer: Of the same kind and with the same groups.

    Returns:
        ``extra`` as it was saved.

    Raises:
        StateError: A file is missing, damaged or there is none, or the checkpoint is of another model or optimizer;
            nothing has changed where a file is at fault.
        RankError: Another rank is gone or too slow.

    Cost: the files are read twice, once for their checksums; ranks share that work.
    """
    folder, strategy = Path(folder), _parts_of(optimizer)[0].strategy

    def verified() -> Manifest:
        manifest = read_manifest(folder)
        manifest.verify(folder, sorted(manifest.digests)[strategy.rank :: strategy.world])
        return manifest

    manifest = _agreed(LOAD, verified)

    def restored() -> dict[str, Any]:
        try:
            return _restore(Kept(folder, manifest), model, optimizer)
        except SengError:
            raise
        except _UNFIT as error:
            reason = f"{type(error).__name__}: {error}"
            raise refusal(f"{folder} cannot be read", "what save() wrote", reason) from error

    return _agreed(LOAD, restored)


def _restore(kept: Kept, model: nn.Module, optimizer: SENG | Preconditioner) -> dict[str, Any]:
    preconditioner, bases = _parts_of(optimizer)
    strategy, tensors = preconditioner.strategy, _model_tensors(model)
    source = strategy.rank % kept.world
    plain = kept.plain(f"rank{source}/plain")
    if len(plain["bases"]) != len(bases):
        raise refusal("other base optimizers", f"{len(bases)} of them", len(plain["bases"]))
    state = kept.filled(plain["preconditioner"])
    if state["layout"] == preconditioner.state_dict()["layout"]:  # else load_state_dict() names the layers
        kept.require(tensors)
    moved = move(unpack(state["place"], torch.device("cpu")), kept.held(), preconditioner.offered)
    sources = moved.sources if moved else {}
    thin = dict.fromkeys(moved.place.thin, strategy.rank) if moved else {}
    parts = [kept.blocks(part, wanted) for part, wanted in zip(BLOCKS, (sources, thin), strict=True)]
    state = relocated(state, moved, parts[0]) | {"carriers": parts[1]}
    parameters = {name: p for p, name in _names(model).items()}
    states = [_as_state_dict(base, kept, own, parameters) for base, own in zip(bases, plain["bases"], strict=True)]
    if isinstance(optimizer, SENG):
        optimizer.load_parts(lambda: (states, state))
    else:
        preconditioner.load_state_dict(state)
    kept.read(tensors)
    return plain["extra"]


class Kept:
    """A checkpoint's folder.

    Raises:
        StateError: It is of no SENG.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self._folder, self._metadata = folder, manifest.metadata
        ranks = [key for key in self._metadata.state_dict_metadata if re.fullmatch(r"rank\d+/plain", key)]
        if not ranks:
            raise refusal(f"{folder} is not of this library", "a checkpoint of seng", sorted(manifest.digests))
        self.world = len(ranks)

    def require(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a checkpoint without tensors of these names and shapes."""
        entries = self._metadata.state_dict_metadata
        for key, tensor in tensors.items():
            size = getattr(entries.get(key), "size", None)
            if size != tensor.shape:
                problem, got = f"{self._folder} has other tensors", None if size is None else list(size)
                raise refusal(problem, f"{key} of shape {list(tensor.shape)}", got)

    def held(self) -> list[dict[str, int]]:
        """Return the bytes of each block's curvature, by saved rank."""
        found: list[dict[str, int]] = [{} for _ in range(self.world)]
        for key, entry in self._metadata.state_dict_metadata.items():
            place = re.fullmatch(r"rank(\d+)/curvature/(.*)::.*", key)
            if place and isinstance(entry, TensorStorageMetadata):
                own, nbytes = found[int(place[1])], entry.size.numel() * entry.properties.dtype.itemsize
                own[place[2]] = own.get(place[2], 0) + nbytes
        return found

    def read(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fill tensors with what is kept under their keys."""
        if unknown := sorted(tensors.keys() - self._metadata.state_dict_metadata.keys()):
            raise refusal(f"{self._folder} has other tensors", unknown[0], f"none of {len(unknown)} like it")
        with warnings.catch_warnings():  # that ranks read for themselves, each its own tensors, is meant
            for words in ("torch.distributed is disabled", "Detected mismatched keys"):
                warnings.filterwarnings("ignore", words)
            with _torch_errors(LOAD):
                load_tensors(tensors, storage_reader=Reader(self._folder, self._metadata), **_APART)
        return tensors

    def empty(self, key: str, like: Tensor | None = None, axes: list[int] | None = None) -> Tensor:
        """Return room for a tensor, cut among the ranks as a parameter of its shape is, or with its axes in order."""
        entry = self._metadata.state_dict_metadata[key]
        assert isinstance(entry, TensorStorageMetadata)
        if like is not None and sharded(like) and like.shape == entry.size:
            return torch.zeros_like(like, dtype=entry.properties.dtype)
        order = axes or list(range(len(entry.size)))
        room = torch.empty([entry.size[axis] for axis in order], dtype=entry.properties.dtype)
        return room.permute([order.index(axis) for axis in range(len(order))])

    def blocks(self, part: str, sources: Mapping[str, int]) -> dict[str, Any]:
        """Return a part of the state of each block, as a saved rank has it."""
        keys = {block: f"rank{rank}/{part}/{block}::plain" for block, rank in sources.items()}
        plains = self.plains(keys.values())
        return self.filled({block: plains[key] for block, key in keys.items()})

    def plain(self, key: str) -> dict[str, Any]:
        """Return plain values."""
        return self.plains([key])[key]

    def plains(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the plain values of several keys."""
        found = self.read({key: self.empty(key) for key in keys})
        return {key: from_bytes(x) for key, x in found.items()}

    def filled(self, plain: Any, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """Return plain values with their tensors.

        Args:
            plain: The values, by name.
            parameters: By name, the parameter that tensors below it are cut like.
        """
        rooms: dict[str, Tensor] = {}

        def room(entry: dict[str, Any], like: Tensor | None = None) -> Tensor:
            key = entry[TENSOR]
            return rooms[key] if key in rooms else rooms.setdefault(key, self.empty(key, like, entry.get(AXES)))

        like = parameters or {}
        found = {name: rejoin(own, partial(room, like=like.get(name))) for name, own in plain.items()}
        if rooms:
            self.read(rooms)
        return found


def _parts_of(optimizer: SENG | Preconditioner) -> tuple[Preconditioner, list[Optimizer]]:
    whole = isinstance(optimizer, SENG)
    preconditioner, bases = (optimizer.preconditioner, optimizer.bases) if whole else (optimizer, [])
    preconditioner.join_ranks("checkpoints")
    if several_ranks() and preconditioner.strategy.world == 1:
        raise refusal("ranks that keep to themselves", "a strategy of several ranks", "distributed='none'")
    return preconditioner, bases


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    state = unwrap(model, "checkpoint").state_dict()
    return {f"model/{_clean(key)}": x.detach() for key, x in state.items() if isinstance(x, Tensor)}


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {p: _clean(name) for name, p in unwrap(model, "checkpoint").named_parameters()}


def _clean(name: str) -> str:
    return name.replace("_orig_mod.", "")  # of compiled submodules


def _named(base: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Any]:
    """Return a base's state with names in place of parameters."""
    groups, state = [], {}
    for g, group in enumerate(base.param_groups):
        own = [names.get(p, f"group {g}, parameter {k}") for k, p in enumerate(group["params"])]
        groups.append({**group, "params": own})
        state |= {name: base.state[p] for name, p in zip(own, group["params"], strict=True) if p in base.state}
    return {"groups": groups, "state": state}


def _as_state_dict(base: Optimizer, kept: Kept, saved: Any, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a saved base as ``torch.optim`` writes one: by position, not name."""
    own = _named(base, {p: name for name, p in parameters.items()})["groups"]
    wanted, got = ([group["params"] for group in groups] for groups in (own, saved["groups"]))
    if wanted != got:
        raise refusal("the base has other groups of parameters", str(wanted)[:200], str(got)[:200])
    place = {name: k for k, name in enumerate(name for group in wanted for name in group)}
    state = kept.filled(saved["state"], parameters)
    groups = kept.filled({"groups": saved["groups"]})["groups"]
    for group in groups:
        group["params"] = [place[name] for name in group["params"]]
    return {"state": {place[name]: held for name, held in state.items()}, "param_groups": groups}


def _flatten(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """Return plain values, tensors moved to ``tensors`` under keys of their place.

    Beside a tensor stand its axes in their order in memory, without which products would round in other ways.
    """

    def put(key: str, x: Tensor) -> dict[str, Any]:
        tensors[key] = x.detach()
        axes = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
        in_order = not x.is_contiguous() and x.permute(axes).is_contiguous()
        return {TENSOR: key, AXES: axes} if in_order else {TENSOR: key}

    return separate(value, put, key)


def _require_finite(names: Mapping[Tensor, str]) -> None:
    """Refuse to save what no run can go on from: it may take the place of a checkpoint that is good."""
    for p, name in names.items():
        local = cast("Any", p).to_local() if sharded(p) else p
        if not bool(local.detach().isfinite().all()):
            raise _diverged("a parameter is not finite", name)


def _diverged(problem: str, got: str) -> StateError:
    fix = "Go on from the last checkpoint, with a lower lr or more damping"
    return StateError(SAVE, problem, expected="finite numbers", got=got, fix=fix)


def _agreed(call: str, act: Callable[[], T]) -> T:
    """Return what ``act`` gives; an error on one rank is raised on all of them. A collective call."""

    def acted() -> T:
        try:
            return act()
        except OSError as error:
            expected, fix = "files to read and write", "Make room or correct permissions, or choose another folder"
            raise StateError(call, "the folder cannot be used", expected=expected, got=str(error), fix=fix) from error

    return Communicator.among_all(call=call).agreed(acted)


@contextmanager
def _torch_errors(call: str) -> Iterator[None]:
    """Turn what torch.distributed says of files that fail and of ranks that are gone into errors of ours."""
    try:
        with ranks_present(call) if several_ranks() else nullcontext():
            yield
    except CheckpointException as error:  # which is no Exception
        rank, (cause, _) = next(iter(error.failures.items()))
        got = f"rank {rank}: {type(cause).__name__}: {cause}"
        fix = "Look at the disk and the folder's permissions; an earlier checkpoint is as it was"
        raise StateError(call, "files cannot be read or written", expected="whole files", got=got, fix=fix) from cause
