"""Resuming a run: its checkpoint, its settings, and its state, on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dls.cli import UsageError
from dls.comm.base import Comm
from dls.exchange.settings import flag, show
from dls.program import config
from dls.program.checks import as_usage_error, check_same
from dls.program.config import Config
from dls.program.flags import CommandLine
from dls.program.run import Run, chooses_by_bucket
from dls.record import checkpoint, environment, reader
from dls.record.checkpoint import Checkpoint
from reference import ranks
from reference.ranks import State


def find(resume: str, out: Path, comm: Comm) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to continue from, and why newer ones cannot be used.

    None where there is none and none is needed. UsageError, on all ranks, where one is needed.
    """
    if resume == "never":
        return None, []
    check_same(comm, {"checkpoints": comm.together(lambda: checkpoint.listing(out))})
    newest, unusable = as_usage_error(lambda: checkpoint.find(out, comm))
    if newest is None and resume != "auto":
        raise UsageError(
            f"nothing to resume in {out}: it holds no checkpoint; --resume=auto would start afresh"
        )
    return newest, unusable


def settings_of(
    sources: Sequence[Mapping[str, Any]], resumed: Checkpoint | None, ranks: int
) -> Config:
    """The configuration: the checkpoint's settings, overridden by the given sources.

    UsageError where a setting was given that a resumed run cannot change.
    """
    if resumed is None:
        return config.build(*sources)
    given = {name: value for source in sources for name, value in source.items()}
    stored = config.from_toml(resumed.config, str(resumed.folder / "manifest.json"))
    if ranks != resumed.world_size:
        stored["batch_size"] = given.get("batch_size") or _batch_size(stored, resumed, ranks)
    kept = config.build(stored)
    for name, value in given.items():
        if _is_fixed(name, kept) and getattr(kept, name) != value:
            theirs, ours = show(value), show(getattr(kept, name))
            raise UsageError(
                f"{flag(name)} {theirs} is not that of the run in {given['out']}, which has {ours}"
            )
    return config.build(stored, *sources)


def _is_fixed(name: str, kept: Config) -> bool:
    """Whether a resumed run cannot change this setting."""
    if name == "bucket_size" and chooses_by_bucket(kept):
        return True
    return bool(config.FIELDS[name].metadata["fixed"])


def _batch_size(stored: Mapping[str, Any], resumed: Checkpoint, ranks: int) -> int:
    """Each rank's mini-batch size with which all ranks together process as many images as before.

    UsageError where the ranks cannot share them equally.
    """
    images = config.build(stored).batch_size * resumed.world_size
    if images % ranks:
        raise UsageError(
            f"{resumed.folder} was written by {resumed.world_size} ranks with {images} images a"
            f" step, which {ranks} ranks cannot share equally; give --batch-size, the images of"
            " each rank"
        )
    return images // ranks


def at_checkpoint(run: Run, resumed: Checkpoint) -> Run:
    """The run, placed where the checkpoint was written.

    UsageError where the checkpoint is of another model or other data, or past the run's end.
    """
    if resumed.layers != tuple((layer.name, layer.size) for layer in run.task.model.layers):
        raise UsageError(
            f"{resumed.folder} holds another model than --model {run.config.model} builds here"
        )
    if resumed.data and resumed.data != run.data:
        raise UsageError(
            f"{resumed.folder} is of a run on other data: its checksum is {resumed.data}, that of"
            f" --dataset {run.config.dataset} here is {run.data}; give --data-dir the files that it"
            " began with"
        )
    batches = replace(run.batches, start=resumed.position)
    total = run.config.steps or batches.steps_until(run.config.epochs)
    if resumed.step > total:
        raise UsageError(
            f"the run already has {resumed.step} steps, more than the {total} that --steps or"
            " --epochs ask for"
        )
    return replace(run, batches=batches, finished=resumed.step, total=total)


def notes(unusable: Sequence[str], run: Run, resumed: Checkpoint, comm: Comm) -> tuple[str, ...]:
    """What the user should know: unusable checkpoints, other ranks, another environment."""
    lines = [f"passed over: {line}" for line in unusable]
    if resumed.world_size != comm.size:
        lines.append(
            f"ranks: {comm.size}, before {resumed.world_size}; each goes on with the mean of those"
            f" that it follows; {run.batches.global_batch} images a step, {run.config.batch_size} a"
            " rank"
        )
    differences = environment.differences(
        resumed.environment, run.environment, run.exchanger.method.library_sums
    )
    return (*lines, *([differences] if differences else []))


def restore(run: Run, resumed: Checkpoint, comm: Comm) -> None:
    """Load the checkpoint. The states of single ranks are passed on to the present ranks."""
    out, states = Path(run.config.out), run.states
    comm.from_rank_0(lambda: as_usage_error(lambda: _check_traces(out)))
    expected = {shared: states.expected(shared) for shared in (True, False)}

    def load_shared() -> State:
        return _fitting(checkpoint.load_shared(resumed), expected[True], resumed)

    def load_own() -> State:
        shares = ranks.shares(resumed.world_size, comm.size, comm.rank)
        stored = (
            (share, _fitting(checkpoint.load_own(resumed, rank), expected[False], resumed))
            for rank, share in shares.items()
        )
        return ranks.merge(stored)

    states.load(comm.together(lambda: as_usage_error(load_shared)), shared=True)
    own = comm.together(lambda: as_usage_error(load_own))
    try:
        states.load(own, shared=False)
    except ValueError as error:
        raise UsageError(f"{resumed.folder} cannot be used: {error}") from None


def _check_traces(out: Path) -> None:
    """TraceError where one is damaged."""
    for path in reader.trace_files(out):
        reader.read(path, own=True)


def _fitting(arrays: State, expected: Mapping[str, Any], resumed: Checkpoint) -> State:
    """The expected ones of a checkpoint's arrays. CheckpointError where shape or type differ."""
    for name, own in expected.items():
        stored = arrays.get(name)
        if stored is None or (stored.shape, stored.dtype) != (own.shape, own.dtype):
            raise checkpoint.CheckpointError(
                f"{resumed.folder} holds no {name} of {own.shape} {own.dtype}"
            )
    return {name: arrays[name] for name in expected}


def without_lost(command: CommandLine, run: Run, ranks: int) -> CommandLine:
    """How `ranks` ranks go on with a run that has lost some, from its newest checkpoint.

    Where there is none they begin afresh. A step has as many images as before where the ranks can
    share them equally; otherwise each rank has as many as before.
    """
    images = run.batches.global_batch
    share = run.config.batch_size if images % ranks else images // ranks
    settings = {**run.config.values(), "out": str(run.out), "batch_size": share}
    return replace(command, flags=settings, file={}, resume="auto")
