"""Model, base optimizer and curvature through torch.distributed.checkpoint: each rank writes what it alone holds.

A checkpoint is a folder. It can be loaded by any number of ranks, by a model that ``fully_shard`` has cut or by whole
ones: parameters and momentum are cut anew, and curvature goes where ``refreshing.move`` says. Plain values travel as
JSON in tensors of bytes, and what lies where is read from a manifest with checksums (``manifest``): nothing has to be
unpickled but tensors, with ``weights_only``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.optim import Optimizer

from .bases import sound
from .distributed import Communicator, several_ranks
from .errors import StateError
from .manifest import PARTIAL, Manifest, commit, digest_of, flatten, read_manifest, refusal, stage, torch_errors
from .optimizer import SENG
from .packed import anywhere, readable, to_bytes
from .preconditioner import Preconditioner
from .state import BLOCKS, destination, relocated
from .wrappers import sharded, unwrap

SAVE, LOAD = "checkpoints.save()", "checkpoints.load()"
T = TypeVar("T")


def save(
    folder: str | Path, model: nn.Module, optimizer: SENG | Preconditioner, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint that any number of ranks can load. A collective call.

    A checkpoint that is there already is replaced when the new one is complete, and not before: a run that is killed
    while it saves can be resumed from it.

    Args:
        folder: Where to, the same on all ranks; on a file system that all of them see.
        model: The model, wrapped or not.
        optimizer: SENG, or a Preconditioner, whose base is then not saved.
        extra: Plain values of the first rank: numbers, texts, lists and dictionaries.

    Raises:
        StateError: A parameter, momentum or curvature is not finite, or the files cannot be written.
        RankError: Another rank is gone or too slow.

    Cost: each rank writes the curvature it holds, its part of what is cut, and a share of what all hold alike, and
    reads it once for the checksums.
    """
    preconditioner, bases = _parts_of(optimizer)
    preconditioner.meet("checkpoints.save()", folder=folder)
    rank, tensors = preconditioner.strategy.rank, _model_tensors(model)
    names = _names(model)
    plain: dict[str, Any] = {"extra": dict(extra or {}), "bases": []}
    for k, base in enumerate(bases):
        plain["bases"].append(flatten(_named(base, names), f"base{k}", tensors))
    state = preconditioner.state_dict()
    curvature = state["curvature"]
    for part in BLOCKS:
        for block, packed in state.pop(part).items():
            key = f"rank{rank}/{part}/{block}::"
            tensors[f"{key}plain"] = to_bytes(flatten(packed, key, tensors))
    tensors[f"rank{rank}/plain"] = to_bytes(plain | {"preconditioner": flatten(state, f"rank{rank}", tensors)})
    folder = Path(folder)
    partial = folder / PARTIAL

    def prepare() -> None:
        _require_finite(names)
        if not all(sound(base, base.state_dict()) for base in bases) or anywhere(curvature, lambda x: ~x.isfinite()):
            raise _diverged("the optimizer's state is not finite", "NaN or infinity")
        if rank == 0:
            stage(folder)

    _agreed(SAVE, prepare)
    with torch_errors(SAVE):
        metadata = save_tensors(tensors, checkpoint_id=str(partial))
    written = [path.name for path in partial.glob(f"__{rank}_*")] + [".metadata"] * (rank == 0)
    own = _agreed(SAVE, lambda: {name: digest_of(partial / name) for name in written})
    digests = {name: digest for part in Communicator.among_all(call=SAVE).gather(own) for name, digest in part.items()}
    _agreed(SAVE, lambda: commit(folder, metadata, digests) if rank == 0 else None)


def load(folder: str | Path, model: nn.Module, optimizer: SENG | Preconditioner) -> dict[str, Any]:
    """Bring model and optimizer to what ``save`` wrote, on any number of ranks. A collective call.

    Where curvature does not fit the strategy it is made anew at the next step.

    Args:
        folder: The checkpoint.
        model: Built as the saved one was.
        optimizer: Of the same kind and with the same groups.

    Returns:
        ``extra`` as it was saved.

    Raises:
        StateError: A file is missing, damaged or there is none, or the checkpoint is of another model or optimizer;
            nothing has changed where a file is at fault.
        RankError: Another rank is gone or too slow.

    Cost: the files are read twice, once for their checksums; ranks share that work.
    """
    folder, strategy = Path(folder), _parts_of(optimizer)[0].strategy

    def verified() -> Manifest:
        manifest = read_manifest(folder)
        manifest.verify(sorted(manifest.digests)[strategy.rank :: strategy.world])
        return manifest

    manifest = _agreed(LOAD, verified)

    def restored() -> dict[str, Any]:
        with readable(f"{folder} cannot be read", "what save() wrote", refusal):
            return _restore(manifest, model, optimizer)

    return _agreed(LOAD, restored)


def _restore(kept: Manifest, model: nn.Module, optimizer: SENG | Preconditioner) -> dict[str, Any]:
    preconditioner, bases = _parts_of(optimizer)
    strategy, tensors = preconditioner.strategy, _model_tensors(model)
    source = strategy.rank % kept.world
    plain = kept.plain(f"rank{source}/plain")
    if len(plain["bases"]) != len(bases):
        raise refusal("other base optimizers", f"{len(bases)} of them", len(plain["bases"]))
    state = kept.filled(plain["preconditioner"])
    if state["layout"] == preconditioner.state_dict()["layout"]:  # else load_state_dict() names the layers
        kept.require(tensors)
    moved = destination(state, kept.held(), preconditioner.offered)
    sources = moved.sources if moved else {}
    thin = dict.fromkeys(moved.place.thin, strategy.rank) if moved else {}
    parts = [kept.blocks(part, wanted) for part, wanted in zip(BLOCKS, (sources, thin), strict=True)]
    state = relocated(state, moved, parts[0]) | {"carriers": parts[1]}
    parameters = {name: p for p, name in _names(model).items()}
    states = [_as_state_dict(base, kept, own, parameters) for base, own in zip(bases, plain["bases"], strict=True)]
    if isinstance(optimizer, SENG):
        optimizer.load_parts(lambda: (states, state))
    else:
        preconditioner.load_state_dict(state)
    kept.read(tensors)
    return plain["extra"]


def _parts_of(optimizer: SENG | Preconditioner) -> tuple[Preconditioner, list[Optimizer]]:
    whole = isinstance(optimizer, SENG)
    preconditioner, bases = (optimizer.preconditioner, optimizer.bases) if whole else (optimizer, [])
    preconditioner.join_ranks("checkpoints")
    if several_ranks() and preconditioner.strategy.world == 1:
        raise refusal("ranks that keep to themselves", "a strategy of several ranks", "distributed='none'")
    return preconditioner, bases


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    state = unwrap(model, "checkpoint").state_dict()
    return {f"model/{_clean(key)}": x.detach() for key, x in state.items() if isinstance(x, Tensor)}


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {p: _clean(name) for name, p in unwrap(model, "checkpoint").named_parameters()}


def _clean(name: str) -> str:
    return name.replace("_orig_mod.", "")  # of compiled submodules


def _named(base: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Any]:
    """Return a base's state with names in place of parameters."""
    groups, state = [], {}
    for g, group in enumerate(base.param_groups):
        own = [names.get(p, f"group {g}, parameter {k}") for k, p in enumerate(group["params"])]
        groups.append({**group, "params": own})
        state |= {name: base.state[p] for name, p in zip(own, group["params"], strict=True) if p in base.state}
    return {"groups": groups, "state": state}


def _as_state_dict(base: Optimizer, kept: Manifest, saved: Any, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a saved base as ``torch.optim`` writes one: by position, not name."""
    own = _named(base, {p: name for name, p in parameters.items()})["groups"]
    wanted, got = ([group["params"] for group in groups] for groups in (own, saved["groups"]))
    if wanted != got:
        raise refusal("the base has other groups of parameters", str(wanted)[:200], str(got)[:200])
    place = {name: k for k, name in enumerate(name for group in wanted for name in group)}
    state = kept.filled(saved["state"], parameters)
    groups = kept.filled({"groups": saved["groups"]})["groups"]
    for group in groups:
        group["params"] = [place[name] for name in group["params"]]
    return {"state": {place[name]: held for name, held in state.items()}, "param_groups": groups}


def _require_finite(names: Mapping[Tensor, str]) -> None:
    """Refuse to save what no run can go on from: it may take the place of a checkpoint that is good."""
    for p, name in names.items():
        local = cast("Any", p).to_local() if sharded(p) else p
        if not bool(local.detach().isfinite().all()):
            raise _diverged("a parameter is not finite", name)


def _diverged(problem: str, got: str) -> StateError:
    fix = "Go on from the last checkpoint, with a lower lr or more damping"
    return StateError(SAVE, problem, expected="finite numbers", got=got, fix=fix)


def _agreed(call: str, act: Callable[[], T]) -> T:
    """Return what ``act`` gives; an error on one rank is raised on all of them. A collective call."""

    def acted() -> T:
        try:
            return act()
        except OSError as error:
            expected, fix = "files to read and write", "Make room or correct permissions, or choose another folder"
            raise StateError(call, "the folder cannot be used", expected=expected, got=str(error), fix=fix) from error

    return Communicator.among_all(call=call).agreed(acted)
