"""The bytes of files and archives, every one accounted for where the format lets it be.

What is unpacked may be a thousand times as large as its file, so that every size is bounded before memory is taken.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from ..errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
LARGEST_FILE, LARGEST_ARCHIVE = 2**26, 2**28  # bytes, unpacked: CIFAR-10's largest file has 31 MB, its archives 186 MB
MOST_MEMBERS = 1000
PIECE = 2**20  # bytes that are read at a time


class ByteStream(Protocol):
    """Bytes that are read in order."""

    def read(self, size: int, /) -> bytes:
        """Return so many bytes, fewer only at the end."""
        ...


class _Bounded:
    """A stream that fails beyond so many bytes."""

    def __init__(self, stream: ByteStream, most: int) -> None:
        self._stream, self._left, self._most = stream, most, most

    def read(self, size: int, /) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"more than {self._most} bytes when unpacked")
        return content


@contextmanager
def opened(path: Path) -> Iterator[ByteStream]:
    """Open a file, to be unpacked where it is gzipped, which its first bytes tell and not its name.

    Raises:
        DataError: the file cannot be read, or is a gzip file that was cut or changed; it is named.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # pyright: ignore[reportAssignmentType]
            with stream:
                yield stream
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise damaged("read_content", path, "unreadable", "a whole file, plain or gzipped", str(error)) from error


def read_content(path: Path, most: int = LARGEST_FILE) -> bytes:
    """Return a file's bytes, unpacked where it is gzipped.

    Args:
        path: the file.
        most: bytes that it may have when unpacked.

    Raises:
        DataError: the file cannot be read, is too large, or is a gzip file that was cut or changed; it is named.
    """
    with opened(path) as stream:
        return b"".join(_pieces(_Bounded(stream, most)))


def read_members(path: Path) -> dict[str, bytes]:
    """Return the files in a tar archive (gzipped or not) by their last name; links and devices are passed over.

    Raises:
        DataError: the archive cannot be read, is too large, or was cut or changed; it is named.
    """
    found: dict[str, bytes] = {}
    try:
        with opened(path) as stream:
            bounded = _Bounded(stream, LARGEST_ARCHIVE)
            with tarfile.open(fileobj=bounded, mode="r|") as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
                for count, member in enumerate(tar):
                    if count == MOST_MEMBERS or member.size > LARGEST_FILE:
                        raise tarfile.ReadError(f"{MOST_MEMBERS} files or more, or one of over {LARGEST_FILE} bytes")
                    file = tar.extractfile(member) if member.isreg() else None
                    if file is not None:
                        found[PurePosixPath(member.name).name] = file.read()
            for _ in _pieces(bounded):  # only at its end does a gzip file say that it is whole
                pass
    except (tarfile.TarError, RecursionError) as error:  # the latter by a header of a header of a header
        raise damaged("read_members", path, "no whole archive", "a tar file, gzipped or not", str(error)) from error
    return found


def _pieces(stream: ByteStream) -> Iterator[bytes]:
    return iter(lambda: stream.read(PIECE), b"")


def damaged(call: str, path: Path | str, problem: str, expected: str, got: object) -> DataError:
    """Return the error of a file that is not what it should be."""
    fix = "Fetch the file again: it is damaged or another file"
    return DataError(call, f"{path} is {problem}", expected=expected, got=got, fix=fix)
