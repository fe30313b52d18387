"""From the command line to a run that is ready to train.

Whatever can be refused is refused here, on all ranks alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dls.cli import UsageError
from dls.comm.base import Comm
from dls.exchange.settings import flag
from dls.program import config, flags, folder, idle, resume, run, sources
from dls.program.checks import check_same
from dls.program.config import Config
from dls.program.flags import CommandLine
from dls.program.run import Run
from dls.program.signals import StopRequest
from dls.record import environment, lock
from dls.record.checkpoint import Checkpoint
from dls.record.lock import Lock

SHARE_OF_TIMEOUT = 0.5
"""The share of the timeout for which a run that lost ranks waits for a dead rank's lock.

NFS may keep such a lock for a while.
"""


def read_command_line(
    argv: Sequence[str], comm: Comm, request: StopRequest, refused: UsageError | None = None
) -> CommandLine:
    """What the user typed, on every rank, with the settings of a file as rank 0 reads them, once.

    refused: what is wrong on this rank already. UsageError, on all ranks.
    """

    def parse() -> CommandLine:
        if refused is not None:
            raise refused
        return flags.parse_command_line(argv)

    command = comm.together(parse)
    check_same(comm, {"resume": command.resume})
    file = comm.from_rank_0(lambda: _read_file(command.config, request))
    return replace(command, file=file)


def _read_file(path: Path | None, request: StopRequest) -> Mapping[str, Any]:
    """A file's settings. A signal ends the wait for the writer of a pipe."""
    if path is None:
        return {}
    if path.is_file():
        return config.read_toml(path)
    with request.interrupting():
        return config.read_toml(path)


def prepare(command: CommandLine, comm: Comm, own: Lock | None = None) -> Run:
    """Every rank's run, the same on all. UsageError, on all ranks, for what the user can mend.

    own: the lock of a run that goes on in this process, which may have the folder already.
    """
    if own is not None:
        return _prepare(command, comm, own, SHARE_OF_TIMEOUT * comm.timeout)
    taken = Lock()
    try:
        ready = _prepare(command, comm, taken, lock.PATIENCE)
        return replace(ready, notes=(*ready.notes, *_remarks(command, ready)))
    except BaseException:
        taken.release()
        raise


def _prepare(command: CommandLine, comm: Comm, own: Lock, patience: float) -> Run:
    given = [command.file, command.flags]
    out = comm.together(lambda: config.build(*given)).out
    comm.from_rank_0(lambda: folder.check_out(command.resume, out))
    if command.resume != "never":
        comm.from_rank_0(lambda: folder.claim(Path(out), own, patience))
    resumed, unusable = resume.find(command.resume, Path(out), comm)
    settings = comm.together(lambda: resume.settings_of(given, resumed, comm.size))
    check_same(comm, _fingerprint(settings, resumed))
    comm.timeout = settings.timeout
    ready = _build(settings, comm)
    if resumed is not None:
        ready = _resume(ready, resumed, unusable, comm)
    check_same(
        comm, {"length": (ready.finished, ready.total), "weights": ready.states.hash().hex()}
    )
    return _in_folder(ready, resumed, own, comm)


def _fingerprint(settings: Config, resumed: Checkpoint | None) -> dict[str, Any]:
    """What must be the same on all ranks before anything is built."""
    checkpoint = (resumed.step, dict(resumed.hashes)) if resumed else None
    return {"code version": sources.version(), "checkpoint": checkpoint} | settings.values()


def _build(settings: Config, comm: Comm) -> Run:
    """Build the run, with the same model and data on all ranks."""
    if settings.elastic and not comm.outlives_ranks:
        raise UsageError(
            "--elastic needs Open MPI with its fault tolerance, a run started as mpirun --with-ft"
            " ulfm"
        )
    threads = run.thread_count(comm, settings)
    built = comm.together(lambda: run.build(settings, comm, threads))
    built = replace(
        built,
        data=built.dataset.checksum(),
        environment=environment.describe(built.backend, threads, comm),
    )
    layers = [(layer.name, layer.size) for layer in built.task.model.layers]
    check_same(comm, {"model": layers, "data": built.data})
    return built


def _resume(built: Run, resumed: Checkpoint, unusable: Sequence[str], comm: Comm) -> Run:
    """The run as the checkpoint has it."""
    placed = comm.together(lambda: resume.at_checkpoint(built, resumed))
    notes = (*placed.notes, *resume.notes(unusable, placed, resumed, comm))
    resume.restore(placed, resumed, comm)
    return replace(placed, notes=notes)


def _in_folder(ready: Run, resumed: Checkpoint | None, own: Lock, comm: Comm) -> Run:
    """The run with its folder, which all ranks see."""
    settings = ready.config
    out, warnings = comm.from_rank_0(lambda: folder.make(settings, resumed, own))
    comm.together(lambda: folder.check_visible(out, comm))
    settings = replace(settings, out=str(out))
    return replace(ready, config=settings, out=out, notes=(*warnings, *ready.notes), lock=own)


def _remarks(command: CommandLine, ready: Run) -> Iterator[str]:
    """Lines about settings that were given and have no effect, or not the expected one."""
    given: dict[str, Any] = {}
    for source in (command.file, command.flags):
        if "steps" in source:
            given.pop("epochs", None)
        given |= source
    if words := idle.remark(given, ready.config):
        yield words
    for name in ("lr_warmup", "density_warmup"):
        if given.get(name, 0) >= ready.total and not idle.reason(name, ready.config):
            yield (
                f"{flag(name)} {given[name]} is not over when the run ends, after step"
                f" {ready.total}"
            )
