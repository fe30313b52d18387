"""Checkpoints of a PyTorch run: each rank's own state of the exchange, and beside it the model and
whatever else the program gives, which are the same on all ranks.

They are those of `dls.record.checkpoint`: written aside, synced, renamed, every file with its
SHA-256. Model, optimizer and the like are what `torch.save` writes, as bytes in shared.h5; they are
read with `weights_only=True`, so that a file can run no code.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dls.exchange import settings
from dls.record import checkpoint, environment
from dls.record.checkpoint import Checkpoint, CheckpointError, Position
from reference import ranks

if TYPE_CHECKING:
    from dls.torch.sync import Sync

Arrays = dict[str, np.ndarray[Any, Any]]
Parts = Mapping[str, Any]
MODEL = "model"
"""The name of the model's state."""
BUFFERS = "buffers"
"""The name of a rank's own buffers."""
EXCHANGE = "exchange."
"""How the names of the exchange's arrays begin."""
ASIDE = "aside"
"""The name of what frozen parameters have not sent."""
RANDOM = "random."
"""How the names of a generator's states begin; those of the CPU and of CUDA devices."""


def save(sync: Sync, folder: str | Path, keep: int, parts: Parts) -> Path:
    """Write a checkpoint of the finished steps, and keep the newest so many; every rank calls it.

    parts: what has state_dict and load_state_dict, by names of the caller's. CheckpointError, on
    all ranks.
    """
    steps, comm = sync.stepper, sync.comm
    own = _own(sync)
    out = sync.folders.open(folder)
    sync.words.confirm(steps.finished)
    shared = comm.together(lambda: _shared(sync, parts))
    place = checkpoint.place(out, steps.finished)
    layers = tuple(zip(steps.order, steps.layout.sizes, strict=True))
    surroundings = environment.describe(sync.backend, sync.threads, comm)
    about = Checkpoint(
        place, comm.size, Position(steps.finished), _about(sync), layers, "", surroundings
    )
    for line in checkpoint.save(about, shared, own, keep, comm):
        _say(sync, line)
    return place


def resume(sync: Sync, folder: Path, parts: Parts) -> int:
    """Take over the newest whole checkpoint in a folder, and return its step; 0 where there is
    none. Every rank calls it, before its first step or between two.

    CheckpointError, on all ranks, where it cannot be used.
    """
    found, passed = checkpoint.find(folder, sync.comm)
    for line in passed:
        _say(sync, f"passed over: {line}")
    if found is None:
        return 0
    named = _named(sync, parts)
    shared, own = sync.comm.together(lambda: _read(sync, found, list(named)))
    loaded = sync.comm.together(lambda: {name: _object(name, shared[name]) for name in named})
    sync.comm.together(lambda: _load_parts(named, loaded))
    steps = sync.stepper
    about = json.loads(found.config)
    if about["agreed"]:
        order = [name for name, _ in found.layers]
        if order != steps.order:
            steps.lay_out(order)
        steps.agreed = True
    kept = {k.removeprefix(EXCHANGE): v for k, v in own.items() if k.startswith(EXCHANGE)}
    steps.exchanger.restore(kept)
    steps.aside.clear()
    if ASIDE in own:
        every = {name: torch.from_numpy(own[ASIDE][steps.places[name]]) for name in about[ASIDE]}
        steps.take_aside(every)
    steps.finished = found.step
    if found.world_size == sync.comm.size:
        _take_own(sync, own)
    return found.step


def _named(sync: Sync, parts: Parts) -> dict[str, Any]:
    """What is the same on all ranks, the model first. ValueError."""
    for name, part in parts.items():
        if name in (MODEL, BUFFERS):
            raise ValueError(f"{name!r} is the model's own name: give yours another one")
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise ValueError(f"{name} has no state_dict and load_state_dict")
    return {MODEL: sync.model, **parts}


def _shared(sync: Sync, parts: Parts) -> Arrays:
    """What rank 0 writes for all."""
    named = _named(sync, parts)
    return {} if sync.comm.rank else {name: _bytes(named[name].state_dict()) for name in named}


def _about(sync: Sync) -> str:
    """What a resumed run must have in common with this one, as JSON."""
    about = {"torch": 1, "method": sync.method, "settings": _fixed(sync)}
    about |= {"parameters": [each.describe() for each in sync.parameters]}
    about |= {"agreed": sync.stepper.agreed, ASIDE: list(sync.stepper.aside)}
    return json.dumps(about)


def _fixed(sync: Sync) -> dict[str, Any]:
    """The method's settings that a resumed run keeps."""
    own = sync.stepper.exchanger.method.settings
    fields = settings.fields_of(type(own)).values()
    fixed = [field.name for field, _ in fields if field.metadata["fixed"]]
    return {name: value for name, value in dataclasses.asdict(own).items() if name in fixed}


def _own(sync: Sync) -> Arrays:
    """This rank's own arrays."""
    steps = sync.stepper
    own = {EXCHANGE + name: np.array(array) for name, array in steps.exchanger.state().items()}
    if steps.aside:
        aside = np.zeros(steps.layout.n, dtype=np.float32)
        for name, values in steps.aside.items():
            aside[steps.places[name]] = values.cpu().numpy()
        own[ASIDE] = aside
    own[RANDOM + "cpu"] = torch.get_rng_state().numpy()
    if torch.cuda.is_initialized():
        own[RANDOM + "cuda"] = torch.cuda.get_rng_state().numpy()
    if sync.options.buffers == "local":
        own[BUFFERS] = _bytes(dict(sync.model.named_buffers()))
    return own


def _take_own(sync: Sync, own: Arrays) -> None:
    """What a rank that has its old place takes over."""
    torch.set_rng_state(torch.from_numpy(own[RANDOM + "cpu"]))
    if RANDOM + "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(own[RANDOM + "cuda"]))
    if BUFFERS in own and sync.options.buffers == "local":
        saved = _object(BUFFERS, own[BUFFERS])
        with torch.no_grad():
            for name, buffer in sync.model.named_buffers():
                buffer.copy_(saved[name])


def _read(sync: Sync, found: Checkpoint, names: Sequence[str]) -> tuple[Arrays, Arrays]:
    """The shared arrays, and what becomes this rank's own. CheckpointError."""
    _check(sync, found)
    shared = checkpoint.load_shared(found)
    if missing := [name for name in names if name not in shared]:
        raise CheckpointError(f"{found.folder} holds no {missing[0]}")
    shares = ranks.shares(found.world_size, sync.comm.size, sync.comm.rank)
    if found.world_size == sync.comm.size:
        return shared, checkpoint.load_own(found, sync.comm.rank)
    several = ((share, _merged(checkpoint.load_own(found, rank))) for rank, share in shares.items())
    return shared, dict(ranks.merge(several))


def _merged(own: Arrays) -> Arrays:
    """What ranks share where their number changes."""
    return {name: array for name, array in own.items() if name.startswith((EXCHANGE, ASIDE))}


def _check(sync: Sync, found: Checkpoint) -> None:
    """CheckpointError where the checkpoint is of another run."""
    here, there = json.loads(_about(sync)), json.loads(found.config)
    if "torch" not in there:
        raise CheckpointError(f"{found.folder} is no checkpoint of a PyTorch model")
    for name in ("method", "settings"):
        if here[name] != there[name]:
            raise CheckpointError(
                f"{found.folder} has the {name} {there[name]}, and this run {here[name]}"
            )
    pairs = zip(here["parameters"], there["parameters"], strict=False)
    for own, theirs in pairs:
        if own != theirs:
            raise CheckpointError(
                f"{found.folder} has the parameter {theirs}, and this model {own} in its place"
            )
    if len(here["parameters"]) != len(there["parameters"]):
        raise CheckpointError(
            f"{found.folder} has {len(there['parameters'])} parameters, and this model"
            f" {len(here['parameters'])}"
        )


def _load_parts(named: Parts, loaded: Parts) -> None:
    for name, part in named.items():
        part.load_state_dict(loaded[name])


def _bytes(state: Any) -> np.ndarray[Any, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


def _object(name: str, saved: np.ndarray[Any, Any]) -> Any:
    """What was saved. CheckpointError where it is not made of tensors and plain values."""
    try:
        return torch.load(io.BytesIO(saved.tobytes()), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        words = str(error).partition("\n")[0]
        raise CheckpointError(f"{name} of the checkpoint cannot be read: {words}") from None


def _say(sync: Sync, line: str) -> None:
    if sync.comm.rank == 0:
        warnings.warn(line, stacklevel=4)
