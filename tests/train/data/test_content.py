"""Files and archives: whole ones are read, damaged ones named."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seng.apps.train.data.content import LARGEST_ARCHIVE, LARGEST_FILE, read_content, read_members
from seng.apps.train.errors import DataError

from .cifar_files import tar_gz

FILES = {"one.bin": bytes(range(200)), "two.txt": b"", "three": b"3" * 700}
ARCHIVE = tar_gz("folder", FILES)


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "some.tar.gz"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_content_unpacks_what_is_packed(tmp_path: Path, pack):
    assert read_content(_write(tmp_path, pack(b"abc"))) == b"abc"


def test_read_content_names_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere is unreadable: expected a whole file.*No such file"):
        read_content(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [ARCHIVE, gzip.decompress(ARCHIVE)], ids=["gzipped", "plain"])
def test_read_members_returns_every_file(tmp_path: Path, content: bytes):
    assert read_members(_write(tmp_path, content)) == FILES


def test_read_members_passes_links_over(tmp_path: Path):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        link = tarfile.TarInfo("folder/data")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert read_members(_write(tmp_path, raw.getvalue())) == {}


@given(place=st.integers(0, len(ARCHIVE) - 1), change=st.integers(1, 255))
@settings(deadline=None)  # a busy machine, nothing else
def test_read_members_of_a_gzipped_archive_finds_every_damage(place: int, change: int):
    content = bytearray(ARCHIVE)
    content[place] ^= change
    with TemporaryDirectory() as folder, suppress(DataError):
        assert read_members(_write(Path(folder), bytes(content))) == FILES


@given(length=st.integers(0, len(ARCHIVE) - 1))
@settings(deadline=None)
def test_read_members_of_a_cut_gzipped_archive_names_it(length: int):
    with TemporaryDirectory() as folder:
        path = _write(Path(folder), ARCHIVE[:length])
        with pytest.raises(DataError, match=r"some.tar.gz is (unreadable|no whole archive): expected .*Fetch"):
            read_members(path)


@given(place=st.integers(0, 3000), value=st.integers(0, 255), length=st.integers(1, 5000))
@settings(deadline=None)
def test_read_members_of_a_damaged_plain_archive_gives_files_or_an_error(place: int, value: int, length: int):
    content = bytearray(gzip.decompress(ARCHIVE))
    content[place] = value
    with TemporaryDirectory() as folder, suppress(DataError):
        assert len(read_members(_write(Path(folder), bytes(content[:length])))) <= len(FILES)


MEBIBYTE = 2**20


def _tar(*members: tuple[tarfile.TarInfo, int]) -> bytes:
    """Return a gzipped tar of members of so many zeros."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member, size in members:
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
    return gzip.compress(raw.getvalue())


def _named(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def _chained(count: int) -> bytes:
    """Return a tar of a long name of a long name, and so on."""
    member = _named("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
    return (member.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * count


def _sparse(size: int) -> bytes:
    """Return a tar of a file that is said to be a hole of so many bytes."""
    member = _named("data_batch_1.bin")
    member.type, member.pax_headers = tarfile.GNUTYPE_SPARSE, {}
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


BOMBS = {
    "of zeros": gzip.compress(bytes(2**29)),
    "in many parts": gzip.compress(bytes(MEBIBYTE)) * 300,
    "in one file": _tar((_named("data_batch_1.bin"), 2**27)),
    "in many files": _tar(*((_named(f"{k}.bin"), 2**24) for k in range(20))),
    "of many files": _tar(*((_named(f"{k}.bin"), 0) for k in range(2000))),
    "of a hole": _sparse(2**32),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_read_members_refuses_what_unpacks_to_more_than_any_archive(tmp_path: Path, content: bytes):
    path = _write(tmp_path, content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="some.tar.gz is .*(when unpacked|files or more, or one of over)"):
            read_members(path)
        assert tracemalloc.get_traced_memory()[1] < LARGEST_ARCHIVE + 2 * LARGEST_FILE
    finally:
        tracemalloc.stop()


def test_read_members_names_an_archive_of_names_of_names(tmp_path: Path):
    with pytest.raises(DataError, match=r"some.tar.gz is no whole archive: expected a tar file"):
        read_members(_write(tmp_path, _chained(3000)))


@pytest.mark.parametrize("content", [gzip.compress(bytes(2**29)), gzip.compress(bytes(MEBIBYTE)) * 300, bytes(2**27)])
def test_read_content_refuses_what_unpacks_to_more_than_any_file(tmp_path: Path, content: bytes):
    path = _write(tmp_path, content)
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=f"some.tar.gz is unreadable: .*more than {LARGEST_FILE} bytes when unpacked"
        ):
            read_content(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * LARGEST_FILE
    finally:
        tracemalloc.stop()
