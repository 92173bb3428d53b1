"""Checkpoints of the library: complete or refused by name, whatever a stranger or a failing disk made of the files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributed as dist

import seng
from seng import SENG, Preconditioner
from seng import manifest as manifests
from seng.errors import StateError
from seng.optim_state import alike

from .pickled import HARMFUL, archive

if not dist.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

from seng.checkpoints import load, save

EARLIER, LATER = {"number": 1}, {"number": 2}
NESTED = 100_000  # levels: more than any reader that calls itself can take


def _made(seed: int = 0, steps: int = 0) -> tuple[nn.Module, SENG]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
    optimizer = SENG(model, estimator="exact")
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def _snapshot(model: nn.Module) -> list[Tensor]:
    return [x.clone() for x in model.state_dict().values()]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def _refused(folder: Path, match: str) -> None:
    """A fresh model is left as it was."""
    model, optimizer = _made(seed=1)
    before = _snapshot(model)
    with pytest.raises(StateError, match=match):
        load(folder, model, optimizer)
    assert _same(_snapshot(model), before)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a checkpoint."""
    folder = tmp_path_factory.mktemp("written")
    save(folder, *_made(steps=2), EARLIER)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path, written: dict[str, bytes]) -> Path:
    return _laid_out(tmp_path / "saved", written)


def _laid_out(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_load_restores_what_was_saved(tmp_path: Path):
    model, optimizer = _made(steps=2)
    save(tmp_path / "a" / "b", model, optimizer, EARLIER)
    other, resumed = _made(seed=1)
    assert load(tmp_path / "a" / "b", other, resumed) == EARLIER
    assert _same(_snapshot(other), _snapshot(model))
    assert resumed.preconditioner.steps == 2


# -- damage ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_load_refuses_every_damaged_byte(written: dict[str, bytes], data: st.DataObject):
    files = dict(written)
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["changed", "cut", "longer", "doubled"])):
        case "changed":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[place:]
        case "longer":
            content += b"\0"
        case "doubled":
            content[place:place] = content[place : place + 1]
    files[name] = bytes(content)
    with TemporaryDirectory() as made:
        _refused(_laid_out(Path(made, "saved"), files), f"{name} is damaged")


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_load_names_a_missing_file(folder: Path, name: str):
    (folder / name).unlink()
    _refused(folder, f"a part of .*saved is missing: expected 2 files, got 'all but {name}'")
    (folder / name).mkdir()
    _refused(folder, f"a part of .*saved is missing: expected 2 files, got 'all but {name}'")


def test_load_names_a_folder_without_a_checkpoint(tmp_path: Path, folder: Path):
    for wrong in (tmp_path / "nothing", tmp_path, folder / ".metadata"):
        _refused(wrong, "no checkpoint in .*: expected a folder that was written whole")
    (folder / manifests.MANIFEST).unlink()
    _refused(folder, "saved is of an earlier version, or of another program: .*Load it with the version that saved it")


@pytest.mark.parametrize("part", ["momentum", "lr", "curvature"])
def test_load_changes_nothing_where_a_part_is_refused(tmp_path: Path, part: str):
    model, optimizer = _made(steps=2)
    match part:
        case "momentum":
            optimizer.state[next(model.parameters())]["momentum_buffer"] = torch.zeros(5)
        case "lr":
            optimizer.param_groups[0]["lr"] = -1.0
        case "curvature":
            held = optimizer.preconditioner._curvature
            held["3"] = replace(held["3"], damping=-held["3"].damping)
    save(tmp_path, model, optimizer)
    other, resumed = _made(seed=1, steps=1)
    before, state = _snapshot(other), deepcopy(resumed.state_dict())
    with pytest.raises(
        StateError, match="the base could not take a step|lr of the base cannot be|curvature cannot be used"
    ):
        load(tmp_path, other, resumed)
    assert _same(_snapshot(other), before)
    assert alike(resumed.state_dict(), state)


# -- tampering: the checksums are right, the contents are not -------------------------------------------------------


class _Marker:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _sign(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda plain: plain) -> None:
    """Write the manifest anew after a change, with the checksums of the files that are there."""
    plain = json.loads((folder / manifests.MANIFEST).read_bytes().splitlines()[0])
    files = {path.name: path for path in folder.iterdir() if path.name != manifests.MANIFEST}
    plain["files"] = {name: manifests.digest_of(path) for name, path in files.items()}
    changed = change(plain)
    body = (changed if isinstance(changed, str) else json.dumps(changed)).encode()
    (folder / manifests.MANIFEST).write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n")


def test_load_runs_no_code_of_the_metadata(tmp_path: Path, folder: Path):
    mark = tmp_path / "mark"
    (folder / ".metadata").write_bytes(pickle.dumps(_Marker(mark)))
    _refused(folder, "metadata is damaged")
    _sign(folder)
    model, optimizer = _made(seed=1)
    load(folder, model, optimizer)  # what torch alone would read is not read
    assert not mark.exists()


def test_load_runs_no_code_of_a_tensor(tmp_path: Path, folder: Path):
    mark, data = tmp_path / "mark", folder / "__0_0.distcp"
    tensors = json.loads((folder / manifests.MANIFEST).read_bytes().splitlines()[0])["tensors"]
    _, _, _, start, length = tensors["model/0.weight"]["chunks"][0]
    harmful = folder / "harmful"
    torch.save({"x": _Marker(mark)}, harmful)
    content = data.read_bytes()
    data.write_bytes(content[:start] + harmful.read_bytes().ljust(length, b"\0")[:length] + content[start + length :])
    harmful.unlink()
    _sign(folder)
    with pytest.raises(StateError, match="files cannot be read or written: expected whole files, got 'rank 0: "):
        load(folder, *_made(seed=1))
    assert not mark.exists()


def test_load_walks_through_no_key_that_holds_itself_many_times(folder: Path):
    place = folder / "__0_0.distcp"
    content = archive(HARMFUL["a key that holds itself"]).getvalue()
    start = place.stat().st_size
    place.write_bytes(place.read_bytes() + content)

    def moved(plain: dict[str, Any]) -> dict[str, Any]:
        _weight(plain)["chunks"][0][3:] = [start, len(content)]
        return plain

    _sign(folder, moved)
    with pytest.raises(StateError, match="files cannot be read or written: .* a key that is no text or number"):
        load(folder, *_made(seed=1))


def _weight(plain: dict[str, Any]) -> dict[str, Any]:
    return plain["tensors"]["model/0.weight"]


def _with(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def changed(plain: dict[str, Any]) -> dict[str, Any]:
        change(plain)
        return plain

    return changed


TAMPERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "huge tensor": _with(lambda plain: _weight(plain).update(size=[2**40, 4])),
    "huge chunk": _with(lambda plain: _weight(plain)["chunks"][0].__setitem__(1, [2**40, 4])),
    "negative size": _with(lambda plain: _weight(plain).update(size=[-3, -4])),
    "other type": _with(lambda plain: _weight(plain).update(dtype="load")),
    "no type": _with(lambda plain: _weight(plain).update(dtype=3)),
    "no chunks": _with(lambda plain: _weight(plain).update(chunks=[])),
    "chunks of text": _with(lambda plain: _weight(plain).update(chunks="12345")),
    "beyond the file": _with(lambda plain: _weight(plain)["chunks"][0].__setitem__(3, 2**40)),
    "before the file": _with(lambda plain: _weight(plain)["chunks"][0].__setitem__(3, -1)),
    "elsewhere": _with(lambda plain: plain["files"].update({"../secret": [1, ""]})),
    "absolute": _with(lambda plain: plain["files"].update({"/etc/passwd": [1, ""]})),
    "unknown file": _with(lambda plain: _weight(plain)["chunks"][0].__setitem__(2, "none")),
    "no tensors": _with(lambda plain: plain.pop("tensors")),
    "tensors of text": _with(lambda plain: plain.update(tensors="x")),
    "a number": lambda plain: 7,
    "null": lambda plain: None,
    "nested": lambda plain: "[" * NESTED + "]" * NESTED,
    "long number": lambda plain: "9" * NESTED,
    "not JSON": lambda plain: "{",
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_load_refuses_a_manifest_that_does_not_hold_together(folder: Path, change: Callable[[dict[str, Any]], Any]):
    _sign(folder, change)
    _refused(folder, r"checkpoints.load\(\): .*seng.manifest cannot be read: expected what save\(\) wrote")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_load_of_drawn_manifests_loads_or_refuses(written: dict[str, bytes], data: st.DataObject):
    """One value of the manifest, anywhere in it, is another one."""
    values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})

    def change(plain: dict[str, Any]) -> dict[str, Any]:
        place: Any = plain
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key]:
                place[key] = data.draw(values)
                return plain
            place = place[key]

    with TemporaryDirectory() as made:
        folder = _laid_out(Path(made, "saved"), written)
        _sign(folder, change)
        model, optimizer = _made(seed=1)
        with suppress(StateError):
            load(folder, model, optimizer)


# -- saving ---------------------------------------------------------------------------------------------------------


def test_save_refuses_parameters_that_are_not_finite(folder: Path):
    model, optimizer = _made(steps=1)
    with torch.no_grad():
        model.get_parameter("3.bias")[1] = torch.nan
    with pytest.raises(StateError, match="a parameter is not finite: expected finite numbers, got '3.bias'"):
        save(folder, model, optimizer)
    assert load(folder, *_made(seed=1)) == EARLIER


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_save_refuses_momentum_that_is_not_finite(folder: Path, value: float):
    model, optimizer = _made(steps=1)
    optimizer.state[model.get_parameter("3.bias")]["momentum_buffer"][1] = value
    with pytest.raises(StateError, match="the optimizer's state is not finite: expected finite numbers, got 'NaN or"):
        save(folder, model, optimizer)
    assert load(folder, *_made(seed=1)) == EARLIER


def test_save_names_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path):
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match=r"checkpoints.save\(\): the folder cannot be used: .* got ..Errno"):
            save(wrong, *_made())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left on device"):
        save(folder, *_made(steps=1), LATER)
    monkeypatch.undo()
    assert load(folder, *_made(seed=1)) == EARLIER
    save(folder, *_made(steps=1), LATER)
    assert load(folder, *_made(seed=1)) == LATER


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process of its own")
def test_save_that_is_killed_leaves_one_whole_checkpoint(tmp_path: Path, written: dict[str, bytes]):
    """Killed before every single renaming, folder made or removed: there is the earlier checkpoint or the later one."""
    found: list[int] = []
    while LATER["number"] not in found or found.count(LATER["number"]) < 3:
        folder = _laid_out(tmp_path / str(len(found)), written)
        child = os.fork()
        if child == 0:
            _killed_at(folder, len(found))
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or status == 0
        found.append(load(folder, *_made(seed=1))["number"])
        save(folder, *_made(seed=2, steps=1), {"number": 3})
        assert load(folder, *_made(seed=1)) == {"number": 3}
        assert sorted(path.name for path in folder.iterdir()) == sorted(written)
        if status == 0:
            break
    assert sorted(found) == found
    assert {*found} == {1, 2}


def _killed_at(folder: Path, number: int) -> None:
    """Save, and die before the change to the file system with this number."""
    count = 0

    def dying(event: str, arguments: Any) -> None:
        nonlocal count
        if event in ("os.rename", "os.mkdir", "os.remove", "shutil.rmtree") and str(folder) in str(arguments[0]):
            count += 1
            if count > number:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        made = _made(seed=3, steps=1)
        sys.addaudithook(dying)
        save(folder, *made, LATER)
    except BaseException:
        os._exit(1)
    os._exit(0)


RANK = """
import os, signal, sys, datetime
import torch
from torch import distributed as dist
from seng import SENG, checkpoints
from seng.errors import RankError
rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=60))
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
optimizer = SENG(model, distributed="local")
checkpoints.save(folder, model, optimizer, {"number": 1})
if rank == 1:
    checkpoints.save_tensors = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
try:
    checkpoints.save(folder, model, optimizer, {"number": 2})
except RankError as error:
    print(error)
    os._exit(7)
"""


def test_rank_that_is_killed_while_saving_is_an_error_on_the_others(tmp_path: Path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    environment = {**os.environ, "PYTHONPATH": str(Path(seng.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path / "store"), str(tmp_path / "saved")]
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), *arguments], stdout=subprocess.PIPE, env=environment)
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=120)[0].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [7, -signal.SIGKILL]
    assert "checkpoints.save(): the ranks cannot reach each other: expected every rank at the same call" in printed[0]
    model = nn.Linear(4, 2)
    assert load(tmp_path / "saved", model, SENG(model)) == {"number": 1}


def test_load_without_a_base_needs_a_checkpoint_without_one(folder: Path):
    model, _ = _made(seed=1)
    with pytest.raises(StateError, match="other base optimizers: expected 0 of them, got 1"):
        load(folder, model, Preconditioner(model))
