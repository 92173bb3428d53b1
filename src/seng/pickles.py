"""Pickles that strangers wrote, read in time and memory as they are long, and the files of torch.save.

A pickle is a program that may call whatever it names. With ``weights_only`` torch lets it name little, but that is
enough to claim gigabytes or to hash a few hundred bytes forever. So a file is first read here, where each name stands
for something harmless of ours, and only then by torch.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch

LEFT_OUT = (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)  # no data need them
AXES = 64  # the most that a tensor may have
SPARE = 2**20  # elements that a tensor may have beyond the bytes of its file, where strides repeat them


class Refused(Exception):
    """A pickle names something that is not admitted."""


def _with_plain_keys(code: bytes, keys: slice) -> Callable[[Any], None]:
    """Return what fills a dictionary, given where on the stack its keys are."""
    load = pickle._Unpickler.dispatch[code[0]]

    def checked(reader: Any) -> None:
        if not all(isinstance(key, str | bytes | int | float) for key in reader.stack[keys]):
            raise pickle.UnpicklingError("a key that is no text or number")
        load(reader)

    return checked


class BoundedReader(pickle._Unpickler):  # in Python: the one in C can be made to fill gigabytes with its memo
    """Calls nothing but what is admitted, and takes time and memory as the pickle is long.

    Keys are text and numbers: those of a container that holds itself many times over would be hashed forever. For the
    same reason there are no sets, and no buffers whose size is only claimed.

    Args:
        content: The pickle.
        admitted: What stands for a name, by module and name.
        encoding: Of strings of Python 2.
    """

    def __init__(self, content: bytes, admitted: Mapping[tuple[str, str], Any], encoding: str = "ASCII"):
        super().__init__(io.BytesIO(content), encoding=encoding)
        self._admitted = admitted

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        if (module, name) not in self._admitted:
            raise Refused(f"{module}.{name}")
        return self._admitted[module, name]

    def get_extension(self, code: int) -> Any:
        """Refuse a name by number."""
        raise Refused(f"extension {code}")

    def load_build(self) -> None:
        """Set the state of an object, not of a class."""
        if isinstance(self.stack[-2], type):  # pyright: ignore[reportAttributeAccessIssue]
            raise pickle.UnpicklingError("attributes for a class of ours")
        super().load_build()  # pyright: ignore[reportAttributeAccessIssue]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in LEFT_OUT},
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: _with_plain_keys(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _with_plain_keys(pickle.SETITEMS, slice(0, None, 2)),
        pickle.DICT[0]: _with_plain_keys(pickle.DICT, slice(0, None, 2)),
    }


def reason(error: Exception) -> str:
    """Return why a pickle could not be read; what an error carries may hold itself many times over."""
    text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    return f"{type(error).__name__}: {text}"


def load_tensors(path: Path) -> Any:
    """Return what ``torch.save`` wrote, on the CPU.

    Raises:
        OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile: The file is
            damaged, or holds what is neither a tensor nor a plain value.
    """
    with path.open("rb") as file:
        require_tensors(file)
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:  # torch.load itself compares no checksums
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def require_tensors(file: BinaryIO) -> None:
    """Refuse a file of ``torch.save`` that is more than tensors and plain values, or claims more than it holds.

    Raises:
        pickle.UnpicklingError, zipfile.BadZipFile: It is such a file.
    """
    nbytes = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        programs = [member for member in members if member.filename.endswith("data.pkl")]
        names = {member.filename for member in members}
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or nbytes < sum(member.file_size for member in members):  # torch packs nothing
            raise zipfile.BadZipFile("it is larger unpacked than packed")
        if len(programs) != 1 or len(names) != len(members):
            raise zipfile.BadZipFile("it is not of torch.save")
        program = archive.read(programs[0])
    _rehearse(program, nbytes)


def _rehearse(program: bytes, nbytes: int) -> None:
    try:
        _Rehearsal(program, _admitted(nbytes)).load()
    except Refused as refused:
        raise pickle.UnpicklingError(f"it asks for {refused}") from None
    except Exception as error:  # a damaged program can fail in any way
        raise pickle.UnpicklingError(reason(error)) from error


class _Rehearsal(BoundedReader):
    def persistent_load(self, pid: Any) -> None:
        """Stand for a storage."""
        if type(pid) is not tuple or len(pid) != 5 or not all(isinstance(part, str | int) for part in pid):
            raise pickle.UnpicklingError("a storage without name, type, place and size")


class _Ordered(dict[Any, Any]):
    """Stands for an OrderedDict, which torch.save makes empty and fills."""

    def __init__(self) -> None: ...


def _admitted(nbytes: int) -> dict[tuple[str, str], Any]:
    """Return what stands for what torch.save names."""

    def tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, *others: Any) -> None:
        counts = (offset, *size[:AXES], *stride[:AXES], requires_grad)
        if not all(isinstance(n, int) for n in counts) or max(len(size), len(stride)) > AXES:
            raise pickle.UnpicklingError("a tensor whose shape is no whole numbers")
        if math.prod(size) > nbytes + SPARE:
            raise pickle.UnpicklingError("a tensor that is larger than its file")

    rebuilt = {("torch._utils", name): tensor for name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3")}
    kinds = [name for name, x in vars(torch).items() if name.endswith("Storage") or isinstance(x, torch.dtype)]
    plain = {("torch.storage", "UntypedStorage"): "UntypedStorage", ("collections", "OrderedDict"): _Ordered}
    return {**rebuilt, **plain, **{("torch", name): name for name in kinds}}
