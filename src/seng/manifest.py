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
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from .errors import StateError
from .files import write_atomically
from .pickles import require_tensors

MANIFEST, PARTIAL = "seng.manifest", ".partial"
PIECE = 2**20  # bytes that are read at a time

Digest = tuple[int, str]  # bytes of a file and its sha256


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint's manifest says.

    Attributes:
        metadata: The tensors, as torch.distributed.checkpoint describes them.
        digests: Bytes and sha256 of each file, by its path below the checkpoint's folder.
    """

    metadata: Metadata
    digests: dict[str, Digest]

    def verify(self, folder: Path, files: Iterable[str]) -> None:
        """Compare files with their checksums.

        Raises:
            StateError: One is not as it was written; it is named.
        """
        for name in files:
            nbytes, digest = self.digests[name]
            found = digest_of(folder / name) if (folder / name).stat().st_size == nbytes else None
            if found != (nbytes, digest):
                raise refusal(f"{folder / name} is damaged", f"{nbytes} bytes with the checksum written", found)


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
    try:
        plain = json.loads(body)
        digests = {_name(name): (int(nbytes), str(digest)) for name, (nbytes, digest) in plain["files"].items()}
        paths = {
            name: f"{PARTIAL}/{name}" if place != folder and (place / name).is_file() else name for name in digests
        }
        metadata = _metadata(plain["tensors"], {name: nbytes for name, (nbytes, _) in digests.items()}, paths)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise refusal(f"{place / MANIFEST} cannot be read", "what save() wrote", str(error)) from error
    if missing := sorted(name for name, path in paths.items() if not (folder / path).is_file()):
        raise refusal(f"a part of {folder} is missing", f"{len(paths)} files", f"all but {', '.join(missing)}")
    return Manifest(metadata, {paths[name]: digest for name, digest in digests.items()})


def digest_of(path: Path) -> Digest:
    """Return a file's bytes and sha256."""
    digest, nbytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            nbytes += len(piece)
    return nbytes, digest.hexdigest()


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
