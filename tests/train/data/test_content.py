"""Files and archives: whole ones are read, damaged ones named."""

from __future__ import annotations

import gzip
import io
import tarfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seng.train.data.content import read_content, read_members
from seng.train.errors import DataError

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
