"""The manifest of a checkpoint: its files with their checksums, its tensors and where they lie, as JSON.

torch.distributed.checkpoint describes a checkpoint in a pickle, ``.metadata``, and unpickling a file that somebody else
wrote may run any code. It is written, for torch's own tools, but never read here: the manifest takes its place. A
checkpoint is written into a folder inside its own, ``.partial``, and is complete once the manifest is there, which
comes last; only then are the files of an earlier checkpoint replaced.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

from .distributed import ranks_present, several_ranks
from .errors import StateError
from .files import write_atomically
from .packed import AXES, TENSOR, from_bytes, readable, rejoin, separate
from .pickles import require_tensors
from .wrappers import sharded

MANIFEST, PARTIAL = "seng.manifest", ".partial"
PIECE = 2**20  # bytes that are read at a time

# ranks read different tensors; before torch had the option it could be asked to do so, with a warning
_APART: dict[str, Any] = {"no_dist": True} if "no_dist" in signature(load_tensors).parameters else {}
Digest = tuple[int, str]  # bytes of a file and its sha256


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint's manifest says.

    Attributes:
        folder: The checkpoint's.
        metadata: The tensors, as torch.distributed.checkpoint describes them.
        digests: Bytes and sha256 of each file, by its path below the checkpoint's folder.
    """

    folder: Path
    metadata: Metadata
    digests: dict[str, Digest]

    @property
    def world(self) -> int:
        """How many ranks saved it.

        Raises:
            StateError: It is of another program.
        """
        ranks = [key for key in self.metadata.state_dict_metadata if re.fullmatch(r"rank\d+/plain", key)]
        if not ranks:
            raise refusal(f"{self.folder} is not of this library", "a checkpoint of seng", sorted(self.digests))
        return len(ranks)

    def verify(self, files: Iterable[str]) -> None:
        """Compare files with their checksums.

        Raises:
            StateError: One is not as it was written; it is named.
        """
        for name in files:
            nbytes, digest = self.digests[name]
            found = digest_of(self.folder / name) if (self.folder / name).stat().st_size == nbytes else None
            if found != (nbytes, digest):
                raise refusal(f"{self.folder / name} is damaged", f"{nbytes} bytes with the checksum written", found)

    def require(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a checkpoint without tensors of these names and shapes."""
        entries = self.metadata.state_dict_metadata
        for key, tensor in tensors.items():
            size = getattr(entries.get(key), "size", None)
            if size != tensor.shape:
                problem, got = f"{self.folder} has other tensors", None if size is None else list(size)
                raise refusal(problem, f"{key} of shape {list(tensor.shape)}", got)

    def held(self) -> list[dict[str, int]]:
        """Return the bytes of each block's curvature, by saved rank."""
        found: list[dict[str, int]] = [{} for _ in range(self.world)]
        for key, entry in self.metadata.state_dict_metadata.items():
            place = re.fullmatch(r"rank(\d+)/curvature/(.*)::.*", key)
            if place and isinstance(entry, TensorStorageMetadata):
                own, nbytes = found[int(place[1])], entry.size.numel() * entry.properties.dtype.itemsize
                own[place[2]] = own.get(place[2], 0) + nbytes
        return found

    def read(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fill tensors with what is kept under their keys."""
        if unknown := sorted(tensors.keys() - self.metadata.state_dict_metadata.keys()):
            raise refusal(f"{self.folder} has other tensors", unknown[0], f"none of {len(unknown)} like it")
        with warnings.catch_warnings():  # that ranks read for themselves, each its own tensors, is meant
            for words in ("torch.distributed is disabled", "Detected mismatched keys"):
                warnings.filterwarnings("ignore", words)
            with torch_errors("checkpoints.load()"):
                load_tensors(tensors, storage_reader=Reader(self.folder, self.metadata), **_APART)
        return tensors

    def empty(self, key: str, like: Tensor | None = None, axes: list[int] | None = None) -> Tensor:
        """Return room for a tensor, cut among the ranks as a parameter of its shape is, or with its axes in order."""
        entry = self.metadata.state_dict_metadata[key]
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


class Reader(FileSystemReader):
    """Reads tensors where a manifest says they are; no pickle is read but those of tensors, bounded by their bytes."""

    def __init__(self, folder: Path, metadata: Metadata):
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata

    def _slice_file(self, file: Any, sinfo: _StorageInfo) -> Any:
        """Return one tensor's part of a file, which torch then unpickles."""
        file.seek(sinfo.offset)
        part = io.BytesIO(file.read(sinfo.length))
        require_tensors(part)
        part.seek(0)
        return part


def stage(folder: Path) -> Path:
    """Return an empty folder to write a checkpoint into, inside its own."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / PARTIAL
    if (partial / MANIFEST).exists():  # an earlier save was killed when all but the renaming was done
        _move_in_place(folder)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    return partial


def commit(folder: Path, metadata: Metadata, digests: Mapping[str, Digest]) -> None:
    """Complete the checkpoint that was staged, and put it in the place of an earlier one."""
    body = json.dumps({"files": dict(digests), "tensors": _plain(metadata)}).encode()
    write_atomically(folder / PARTIAL / MANIFEST, lambda file: file.write(_signed(body)))
    _move_in_place(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint, and look for its files.

    Raises:
        StateError: There is none, it is damaged, or a file is missing.
    """
    place = folder / PARTIAL if (folder / PARTIAL / MANIFEST).exists() else folder
    try:
        body = _body(place / MANIFEST)
    except OSError as error:
        if (folder / ".metadata").is_file():  # a pickle
            raise refusal(
                f"{folder} is of an earlier version, or of another program", f"a file {MANIFEST}", "none",
                fix="Load it with the version that saved it, and save its state_dict() with torch.save",
            ) from error  # fmt: skip
        raise refusal(f"no checkpoint in {folder}", "a folder that was written whole", str(error)) from error
    except ValueError as error:
        raise refusal(f"{place / MANIFEST} is damaged", "what save() wrote", str(error)) from error
    with readable(f"{place / MANIFEST} cannot be read", "what save() wrote", refusal):
        plain = json.loads(body)
        digests = {_name(name): (int(nbytes), str(digest)) for name, (nbytes, digest) in plain["files"].items()}
        paths = {
            name: f"{PARTIAL}/{name}" if place != folder and (place / name).is_file() else name for name in digests
        }
        metadata = _metadata(plain["tensors"], {name: nbytes for name, (nbytes, _) in digests.items()}, paths)
    if missing := sorted(name for name, path in paths.items() if not (folder / path).is_file()):
        raise refusal(f"a part of {folder} is missing", f"{len(paths)} files", f"all but {', '.join(missing)}")
    return Manifest(folder, metadata, {paths[name]: digest for name, digest in digests.items()})


def digest_of(path: Path) -> Digest:
    """Return a file's bytes and sha256."""
    digest, nbytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            nbytes += len(piece)
    return nbytes, digest.hexdigest()


def flatten(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """Return plain values, tensors moved to ``tensors`` under keys of their place.

    Beside a tensor stand its axes in their order in memory, without which products would round in other ways.
    """

    def put(key: str, x: Tensor) -> dict[str, Any]:
        tensors[key] = x.detach()
        axes = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
        in_order = not x.is_contiguous() and x.permute(axes).is_contiguous()
        return {TENSOR: key, AXES: axes} if in_order else {TENSOR: key}

    return separate(value, put, key)


@contextmanager
def torch_errors(call: str) -> Iterator[None]:
    """Turn what torch.distributed says of files that fail and of ranks that are gone into errors of ours."""
    try:
        with ranks_present(call) if several_ranks() else nullcontext():
            yield
    except CheckpointException as error:  # which is no Exception
        rank, (cause, _) = next(iter(error.failures.items()))
        got = f"rank {rank}: {type(cause).__name__}: {cause}"
        fix = "Look at the disk and the folder's permissions; an earlier checkpoint is as it was"
        raise StateError(call, "files cannot be read or written", expected="whole files", got=got, fix=fix) from cause


def refusal(
    problem: str,
    expected: str,
    got: object,
    *,
    fix: str = "Load a checkpoint of this model and optimizer, with all its files",
) -> StateError:
    """Return the error of a checkpoint that cannot be loaded."""
    return StateError("checkpoints.load()", problem, expected=expected, got=got, fix=fix)


def _signed(body: bytes) -> bytes:
    return body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _body(path: Path) -> bytes:
    content = path.read_bytes()
    body = content.partition(b"\n")[0]
    if content != _signed(body):
        raise ValueError("another checksum")
    return body


def _move_in_place(folder: Path) -> None:
    """Move the files of a complete checkpoint out of ``.partial``, its manifest last: until then it is read there."""
    partial = folder / PARTIAL
    names = set(json.loads(_body(partial / MANIFEST))["files"])
    for name in names:
        if (partial / name).exists():
            (partial / name).replace(folder / name)
    try:
        former = set(json.loads(_body(folder / MANIFEST))["files"])
    except (OSError, ValueError):
        former = set()
    for name in former - names:
        (folder / _name(name)).unlink(missing_ok=True)
    (partial / MANIFEST).replace(folder / MANIFEST)
    shutil.rmtree(partial, ignore_errors=True)


def _name(name: str) -> str:
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"a file outside the folder: {name[:80]}")
    return name


def _plain(metadata: Metadata) -> dict[str, Any]:
    stored = metadata.storage_data
    found: dict[str, Any] = {}
    for key, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        chunks = []
        for chunk in entry.chunks:
            info = stored[MetadataIndex(key, chunk.offsets)]
            place = [info.relative_path, info.offset, info.length]
            chunks.append([list(chunk.offsets), list(chunk.sizes), *place])
        dtype = str(entry.properties.dtype).removeprefix("torch.")
        found[key] = {"dtype": dtype, "size": list(entry.size), "chunks": chunks}
    return found


def _metadata(tensors: Mapping[str, Any], nbytes: Mapping[str, int], paths: Mapping[str, str]) -> Metadata:
    """Undo ``_plain``; no tensor may be larger than the part of a file that holds it."""
    entries: dict[str, Any] = {}
    stored: dict[MetadataIndex, _StorageInfo] = {}
    for key, entry in tensors.items():
        dtype, size, chunks = getattr(torch, entry["dtype"]), torch.Size(entry["size"]), []
        for offsets, sizes, name, start, length in entry["chunks"]:
            chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            if not 0 <= start <= start + length <= nbytes[name] or chunk.sizes.numel() * dtype.itemsize > length:
                raise ValueError(f"{key[:80]} does not fit into {name}")
            stored[MetadataIndex(key, chunk.offsets)] = _StorageInfo(paths[name], start, length)
            chunks.append(chunk)
        if min(size, default=0) < 0 or sum(chunk.sizes.numel() for chunk in chunks) != size.numel():
            raise ValueError(f"{key[:80]} is not whole")
        entries[key] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)
    return Metadata(entries, planner_data={}, storage_data=stored, storage_meta=StorageMeta())
