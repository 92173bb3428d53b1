"""Small data sets in both of CIFAR-10's formats, byte for byte, for the tests.

Only the number of pictures is smaller: six batches of ``per_batch``, where the true set has 10,000 in each.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np

Form = Literal["binary", "python"]

FOLDERS: dict[Form, str] = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}
ARCHIVES: dict[Form, str] = {"binary": "cifar-10-binary.tar.gz", "python": "cifar-10-python.tar.gz"}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))


def samples(batch: str, per_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels ``[n]`` and the pixels ``[n, 3072]`` of one of the six batches.

    A picture is noise around a grey that tells its class, so that a network can learn something.
    """
    number = (*TRAIN, "test_batch").index(batch)
    rng = np.random.default_rng(number)
    labels = (np.arange(per_batch) + number) % 10
    pixels = 25 * labels[:, None] + rng.integers(0, 30, (per_batch, 3072))
    return labels.astype(np.uint8), pixels.astype(np.uint8)


def binary_batch(labels: np.ndarray, pixels: np.ndarray) -> bytes:
    """Return a batch of the binary format: a byte of label, then 1,024 each of red, green and blue."""
    return np.concatenate([labels[:, None], pixels], axis=1).tobytes()


def python_batch(labels: np.ndarray, pixels: np.ndarray, title: str) -> bytes:
    """Return a batch of the python format, opcode by opcode as Python 2's cPickle wrote it (protocol 2)."""
    count = len(labels)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t"
        + (b"(K\x01" + _integer(count) + b"M\x00\x0c\x86")
        + b"cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + (b"\x89T" + struct.pack("<I", pixels.size) + pixels.tobytes() + b"tb")
    )
    names = b"".join(_string(f"picture_s_{i:06d}.png") for i in range(count))
    return (
        (b"\x80\x02}q\x01(" + _string("batch_label") + b"q\x02" + _string(title) + b"q\x03")
        + (_string("labels") + b"q\x04]q\x05(" + b"".join(_integer(int(label)) for label in labels) + b"e")
        + (_string("data") + b"q\x06" + array)
        + (_string("filenames") + b"q\x0c]q\r(" + names + b"eu.")
    )


def _string(text: str) -> bytes:
    """Return the opcode of a short string of Python 2."""
    return b"U" + bytes([len(text)]) + text.encode()


def _integer(value: int) -> bytes:
    """Return the shortest opcode of a whole number."""
    if value < 256:
        return b"K" + bytes([value])
    return b"M" + struct.pack("<H", value) if value < 65536 else b"J" + struct.pack("<i", value)


def cifar_files(form: Form, per_batch: int) -> dict[str, bytes]:
    """Return the content of each file of a set, by its name."""
    titles = {name: f"training batch {i} of 5" for i, name in enumerate(TRAIN, 1)}
    titles["test_batch"] = "testing batch 1 of 1"
    if form == "binary":
        files = {f"{name}.bin": binary_batch(*samples(name, per_batch)) for name in titles}
        return files | {"batches.meta.txt": ("\n".join(CLASSES) + "\n\n").encode()}
    return {name: python_batch(*samples(name, per_batch), title) for name, title in titles.items()}


def tar_gz(folder: str, files: dict[str, bytes]) -> bytes:
    """Return a gzipped tar of files in a folder, equal bytes for equal files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        top = tarfile.TarInfo(folder)
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(top)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)


def write_cifar(
    folder: Path, form: Form = "binary", *, archived: bool = False, per_batch: int = 4, **changed: bytes | None
) -> Path:
    """Write a set below ``folder``, as the folder of its files or as the archive that is handed out.

    Args:
        folder: where to.
        form: the binary or the python format.
        archived: whether to write the gzipped tar in place of the files.
        per_batch: pictures in each of the six batches.
        changed: content of a file in place of the right one, by its name without ".bin"; None: no file.

    Returns:
        The folder of the files, or the archive.
    """
    ending = ".bin" if form == "binary" else ""
    files = cifar_files(form, per_batch) | {name + ending: content for name, content in changed.items()}
    kept = {name: content for name, content in files.items() if content is not None}
    folder.mkdir(parents=True, exist_ok=True)
    if archived:
        archive = folder / ARCHIVES[form]
        archive.write_bytes(tar_gz(FOLDERS[form], kept))
        return archive
    place = folder / FOLDERS[form]
    place.mkdir(exist_ok=True)
    for name, content in kept.items():
        (place / name).write_bytes(content)
    return place
