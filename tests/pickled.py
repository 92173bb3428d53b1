"""Archives as torch.save writes them, with programs that claim more than they hold."""

from __future__ import annotations

import io
import zipfile


def archive(program: bytes, others: dict[str, bytes] | None = None, packed: bool = False) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as writer:
        for name, content in {"archive/data.pkl": program, "archive/version": b"3\n", **(others or {})}.items():
            writer.writestr(name, content)
    return file


def doubled(levels: int = 100) -> bytes:
    """Return the opcodes of a tuple of a tuple and itself, and so on: 2^levels of them to walk through."""
    return b")q\x00" + b"".join(b"0h%ch%c\x86q%c" % (k, k, k + 1) for k in range(levels))


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
HUGE = b"\x8a\x05\x00\x00\x00\x00\x10"  # 2^36
HARMFUL = {
    "a key that holds itself": b"\x80\x02}" + doubled() + b"K\x01s.",
    "keys that hold themselves": b"\x80\x02}(" + doubled() + b"K\x01u.",
    "a buffer that is only claimed": b"\x80\x02cbuiltins\nbytearray\n" + HUGE + b"\x85R.",
    "a set": b"\x80\x02cbuiltins\nset\n(" + doubled() + b"ltR.",
    "counts of what holds itself": b"\x80\x02ccollections\nCounter\n" + doubled() + b"\x85R.",
    "an ordered dictionary with contents": b"\x80\x02ccollections\nOrderedDict\n" + doubled() + b"\x85R.",
    "a tensor made of nothing": b"\x80\x02ctorch\nTensor\n" + HUGE + b"\x85R.",
    "one number repeated": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    + STORAGE + b"K\x00" + HUGE + b"\x85K\x00\x85\x89ccollections\nOrderedDict\n)RtR.",
    "a shape that holds itself": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    + STORAGE + b"K\x00" + doubled() + b"K\x00\x85\x89ccollections\nOrderedDict\n)RtR.",
    "a storage of another kind": b"\x80\x02(" + doubled() + b"ctorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x01tQ.",
    "a program": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.",
}  # fmt: skip
