"""The bytes of files and archives, every one accounted for where the format lets it be."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from ..errors import DataError

GZIP_MAGIC = b"\x1f\x8b"


def read_content(path: Path) -> bytes:
    """Return a file's bytes, unpacked where it is gzipped, which its first bytes tell and not its name.

    Raises:
        DataError: the file cannot be read, or is a gzip file that was cut or changed; it is named.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    except (OSError, EOFError, zlib.error) as error:
        raise damaged("read_content", path, "unreadable", "a whole file, plain or gzipped", str(error)) from error


def read_members(path: Path) -> dict[str, bytes]:
    """Return the files in a tar archive (gzipped or not) by their last name; links and devices are passed over.

    Raises:
        DataError: the archive cannot be read, or was cut or changed; it is named.
    """
    content = read_content(path)  # at once: only at its end does a gzip file say that it is whole
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            members = [member for member in tar if member.isreg()]
            found = {PurePosixPath(member.name).name: tar.extractfile(member) for member in members}
            return {name: file.read() for name, file in found.items() if file is not None}
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise damaged("read_members", path, "no whole archive", "a tar file, gzipped or not", str(error)) from error


def damaged(call: str, path: Path | str, problem: str, expected: str, got: object) -> DataError:
    """Return the error of a file that is not what it should be."""
    fix = "Fetch the file again: it is damaged or another file"
    return DataError(call, f"{path} is {problem}", expected=expected, got=got, fix=fix)
