"""From the command line to a run that is ready to train: everything that can be refused is refused
here, on all ranks alike.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from dls import backends
from dls.backends import Backend
from dls.cli import UsageError
from dls.comm import cores
from dls.comm.base import Comm
from dls.exchange import methods
from dls.exchange.exchanger import Exchanger
from dls.exchange.layout import Layer, Layout
from dls.exchange.settings import flag, show
from dls.optim import Sgd
from dls.program import config, flags, idle, memory, sources
from dls.program import states as states_of
from dls.program.config import Config
from dls.program.flags import CommandLine
from dls.program.signals import StopRequest
from dls.program.states import Part, States
from dls.record import checkpoint, environment, files, lock, reader
from dls.record.checkpoint import Checkpoint
from dls.record.lock import Lock
from dls.record.schema import TraceError
from dls.tasks import data, models
from dls.tasks.batches import Batches
from dls.tasks.data import Dataset
from dls.tasks.images import DataError
from dls.tasks.models import LayerInfo, Model
from dls.tasks.task import Task
from reference import ranks
from reference.collectives import BY_BUCKET
from reference.ranks import State

T = TypeVar("T")
RUNS = Path("runs")
"""Where a run's folder lies unless told otherwise."""
LAST_BREATH = 0.5
"""The share of the timeout that a run which lost ranks waits for the lock of a dead one: NFS may
keep it a while.
"""


@dataclass(frozen=True)
class Run:
    """A run that is ready to train, on one rank. `first` steps are done already; it ends after
    `total`.

    data: the data's checksum; environment: on what the ranks compute (`dls.record.environment`);
    notes: lines that the user should read before it begins; lock: on rank 0 its folder's, until the
    run is over.
    """

    config: Config
    out: Path
    backend: Backend
    dataset: Dataset
    batches: Batches
    task: Task
    exchanger: Exchanger
    optimizer: Sgd
    states: States
    first: int
    total: int
    data: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lock: Lock = field(default_factory=Lock)


def read_command_line(
    argv: Sequence[str], comm: Comm, request: StopRequest, refused: UsageError | None = None
) -> CommandLine:
    """What the user typed, on every rank, with the settings of a file as rank 0 reads them, once.

    UsageError, on all ranks.

    refused: what this rank has against it already.
    """

    def parse() -> CommandLine:
        if refused is not None:
            raise refused
        return flags.parse_command_line(argv)

    command = comm.together(parse)
    check_same(comm, {"resume": command.resume})
    return replace(
        command,
        file=comm.from_rank_0(
            lambda: _read_file(command.config, request) if command.config else {}
        ),
    )


def _read_file(path: Path, request: StopRequest) -> Mapping[str, Any]:
    """A file's settings.

    Who writes to a pipe may let it wait without a limit: a signal ends that.
    """
    if path.is_file():
        return config.read_toml(path)
    with request.interrupting():
        return config.read_toml(path)


def prepare(command: CommandLine, comm: Comm, own: Lock | None = None) -> Run:
    """Every rank's run, the same on all. UsageError, on all ranks, for whatever the user can mend.

    own: the lock of a run that goes on in this process, which may be on the folder already.
    """
    taken = own or Lock()
    try:
        run = _prepare(command, comm, taken, LAST_BREATH * comm.timeout if own else lock.PATIENCE)
        return (
            run
            if own
            else replace(run, notes=(*run.notes, *_remarks([command.file, command.flags], run)))
        )
    except BaseException:
        if own is None:
            taken.release()
        raise


def _prepare(command: CommandLine, comm: Comm, own: Lock, patience: float) -> Run:
    layers = [command.file, command.flags]
    named = comm.together(lambda: config.build(*layers)).out
    comm.from_rank_0(lambda: _check_out(command.resume, named))
    if command.resume != "never":
        comm.from_rank_0(lambda: _claim(Path(named), own, patience))
    found, passed = _find(command.resume, Path(named), comm)
    settings = comm.together(lambda: _settings(layers, found, comm.size))
    check_same(comm, _fingerprint(settings, found))
    comm.timeout = settings.timeout
    if settings.elastic and not comm.outlives_ranks:
        raise UsageError(
            "--elastic needs Open MPI with its fault tolerance, a run started as mpirun --with-ft"
            " ulfm"
        )
    threads = thread_count(comm, settings)
    run = comm.together(lambda: build(settings, comm, threads))
    run = replace(
        run,
        data=run.dataset.checksum(),
        environment=environment.describe(run.backend, threads, comm),
    )
    check_same(
        comm,
        {"model": [(layer.name, layer.size) for layer in run.task.model.layers], "data": run.data},
    )
    if found is not None:
        run = comm.together(lambda: _stand(run, found))
        run = replace(run, notes=(*run.notes, *_notes(passed, run, found, comm)))
        _restore(run, found, comm)
    check_same(comm, {"length": (run.first, run.total), "weights": run.states.hash().hex()})
    out, warnings = comm.from_rank_0(lambda: _make_folder(settings, found, own))
    comm.together(lambda: _check_folder(out, comm))
    settings = replace(settings, out=str(out))
    return replace(run, config=settings, out=out, notes=(*warnings, *run.notes), lock=own)


def _remarks(layers: Sequence[Mapping[str, Any]], run: Run) -> Iterator[str]:
    """What was given and changes nothing, or not what one would think."""
    given: dict[str, Any] = {}
    for layer in layers:
        if "steps" in layer:
            given.pop("epochs", None)
        given |= layer
    if words := idle.remark(given, run.config):
        yield words
    for name in ("lr_warmup", "density_warmup"):
        if given.get(name, 0) >= run.total and not idle.reason(name, run.config):
            yield (
                f"{flag(name)} {given[name]} is not over when the run ends, after step {run.total}"
            )


def without_lost(command: CommandLine, run: Run, ranks: int) -> CommandLine:
    """How so many ranks go on with a run that has lost some, from its last checkpoint or from its
    beginning.

    A step has as many images as before where the ranks can share them equally; otherwise each rank
    has as many as before.
    """
    images = run.batches.global_batch
    share = run.config.batch_size if images % ranks else images // ranks
    settings = {**run.config.values(), "out": str(run.out), "batch_size": share}
    return replace(command, flags=settings, file={}, resume="auto")


def _check_out(resume: str, out: str) -> None:
    """UsageError where it cannot be the run's folder."""
    if resume != "never" and not out:
        raise UsageError("--resume needs --out, the folder of the run to go on with")
    folder = Path(out) if out else RUNS
    with _writing(folder):
        files.check_folder(folder)
        if resume == "never" and out and _holds_run(folder):
            raise UsageError(
                f"{out} already holds a run; add --resume to go on with it, or choose another --out"
            )


def _claim(out: Path, own: Lock, patience: float) -> None:
    """Take the lock of a folder that is about to be read, where it holds a run. UsageError."""
    with _writing(out):
        if _holds_run(out):
            own.take(out, patience)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """UsageError where the folder cannot be written, or another run has it."""
    try:
        yield
    except FileExistsError as error:
        raise UsageError(f"{error.filename} is in the way; choose another --out") from None
    except OSError as error:
        raise UsageError(
            f"cannot write to {error.filename or out}: {files.reason(error)}"
        ) from None
    except lock.InUse as error:
        raise UsageError(str(error)) from None


def _find(resume: str, out: Path, comm: Comm) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from, and what is wrong with newer ones.

    UsageError, on all ranks, where there must be one.
    """
    if resume == "never":
        return None, []
    check_same(comm, {"checkpoints": comm.together(lambda: checkpoint.listing(out))})
    found, passed = _as_usage_error(lambda: checkpoint.find(out, comm))
    if found is None and resume != "auto":
        raise UsageError(
            f"nothing to resume in {out}: it holds no checkpoint; --resume=auto would start afresh"
        )
    return found, passed


def _settings(layers: Sequence[Mapping[str, Any]], found: Checkpoint | None, ranks: int) -> Config:
    """The configuration, that of the checkpoint below what was given.

    UsageError where a run cannot change a setting.
    """
    if found is None:
        return config.build(*layers)
    given = {name: value for layer in layers for name, value in layer.items()}
    stored = config.from_toml(found.config, str(found.folder / "manifest.json"))
    if ranks != found.world_size:
        stored["batch_size"] = given.get("batch_size") or _share_of_batch(
            config.build(stored).batch_size, found, ranks
        )
    kept = config.build(stored)
    for name, value in given.items():
        if _is_fixed(name, kept) and getattr(kept, name) != value:
            theirs, ours = show(value), show(getattr(kept, name))
            raise UsageError(
                f"{flag(name)} {theirs} is not that of the run in {given['out']}, which has {ours}"
            )
    return config.build(stored, *layers)


def _is_fixed(name: str, kept: Config) -> bool:
    """Whether a run keeps this setting; the cut into buckets too, where what is exchanged depends
    on it.
    """
    return bool(config.FIELDS[name].metadata["fixed"]) or (
        name == "bucket_size" and _by_bucket(kept)
    )


def _by_bucket(settings: Config) -> bool:
    """Whether the method's collective chooses inside buckets."""
    return "collective" in methods.reads(settings.method) and settings.collective in BY_BUCKET


def _share_of_batch(batch_size: int, found: Checkpoint, ranks: int) -> int:
    """Each rank's images where the step's images stay as many as they were.

    UsageError where they cannot be divided.
    """
    images = batch_size * found.world_size
    if images % ranks:
        raise UsageError(
            f"{found.folder} was written by {found.world_size} ranks with {images} images a step,"
            f" which {ranks} ranks cannot share equally; give --batch-size, the images of each rank"
        )
    return images // ranks


def _holds_run(out: Path) -> bool:
    return any((out / name).exists() for name in ("config.toml", "checkpoints")) or bool(
        reader.series(out)
    )


def _as_usage_error(make: Callable[[], T]) -> T:
    """What the libraries of this program refuse is the user's to mend."""
    try:
        return make()
    except (DataError, backends.BackendMissing, checkpoint.CheckpointError, TraceError) as error:
        raise UsageError(str(error)) from None
    except MemoryError as error:
        raise UsageError(f"model and data do not fit into memory: {error}") from None


def thread_count(comm: Comm, settings: Config) -> int:
    """How many threads this rank computes with. Every rank calls it."""
    return settings.threads or cores.of(comm)


def build(settings: Config, comm: Comm, threads: int) -> Run:
    """Load the data and build model and method, without communication; BLAS has so many threads
    from now on. UsageError.
    """
    return _as_usage_error(lambda: _build(settings, comm, threads))


def _build(settings: Config, comm: Comm, threads: int) -> Run:
    memory.keep_freed()
    backend = backends.load(settings.backend, comm.rank_on_node)
    threadpool_limits(
        threads
    )  # of whatever the backend loaded, too: where SciPy is installed, numba brings its BLAS
    backend.ops.set_threads(threads)
    dataset = data.load(
        settings.dataset,
        Path(settings.data_dir) if settings.data_dir else None,
        synthetic_shape=settings.synthetic_shape,  # type: ignore[arg-type]  # check_together counts three
        synthetic_classes=settings.synthetic_classes,
        synthetic_size=settings.synthetic_size,
        seed=settings.seed,
    )
    batches = Batches(
        dataset, settings.seed, settings.batch_size, comm.rank, comm.size, settings.augment
    )
    try:
        model = models.build(
            settings.model,
            dataset.input_shape,
            dataset.classes,
            settings.seed,
            backend.nn,
            settings.mlp_widths,
        )
        exchanger = make_exchanger(settings, model, comm, backend)
    except ValueError as error:
        raise UsageError(str(error)) from None
    optimizer = Sgd(
        model.parameters, backend.ops.zeros(model.parameters.size), settings, backend.ops
    )
    task = Task(model, backend, settings.clip_norm, skips=settings.on_nan == "skip")
    total = settings.steps or batches.steps_until(settings.epochs)
    states = _register(task, optimizer, exchanger, comm)
    return Run(
        settings,
        Path(),
        backend,
        dataset,
        batches,
        task,
        exchanger,
        optimizer,
        states,
        0,
        total,
        notes=backend.notes,
    )


def make_exchanger(settings: Config, model: Model, comm: Comm, backend: Backend) -> Exchanger:
    """The exchange of a model's gradients. ValueError where method and model do not go together."""
    layers = [
        Layer(each.name, each.size, channels=_channels(each, model.chain)) for each in model.layers
    ]
    return Exchanger(
        Layout(layers),
        methods.load(settings.method),
        settings.of_method(),
        comm,
        backend,
        gradients=model.gradients,
        bucket_size=settings.bucket_size if settings.overlap or _by_bucket(settings) else 0,
        overlap=settings.overlap,
        on_nan=settings.on_nan,
    )


def _channels(layer: LayerInfo, chain: bool) -> tuple[int, int] | None:
    """What the theory of gradient variances asks of a layer, where it applies."""
    return (layer.channels_in, layer.outputs) if chain and layer.kind != "batch_norm" else None


def _register(task: Task, optimizer: Sgd, exchanger: Exchanger, comm: Comm) -> States:
    """Everything that a run keeps."""
    states, ops = States(), task.backend.ops
    states.register(states_of.vector("weights", task.model.parameters, ops, shared=True))
    states.register(states_of.vector("momentum", optimizer.momentum, ops, shared=True))
    states.register(Part(lambda: {"mean_statistics": task.mean_statistics(comm)}, shared=True))
    states.register(Part(exchanger.state, exchanger.restore))
    states.register(states_of.vector("statistics", task.model.statistics, ops, shared=False))
    states.register(Part(lambda: {"weights_sha256": np.frombuffer(states.hash(), dtype=np.uint8)}))
    return states


def _fingerprint(settings: Config, found: Checkpoint | None) -> dict[str, Any]:
    checkpoint_of = (found.step, dict(found.hashes)) if found else None
    return {"code version": sources.version(), "checkpoint": checkpoint_of} | settings.values()


def check_same(comm: Comm, mine: Mapping[str, Any]) -> None:
    """UsageError, on all ranks, that names the first thing in which a rank differs from rank 0."""
    if words := comm.difference(mine):
        raise UsageError(words)


def _stand(run: Run, found: Checkpoint) -> Run:
    """The run at its checkpoint's place in the data.

    UsageError where it is another's, or at its end already.
    """
    if found.layers != tuple((layer.name, layer.size) for layer in run.task.model.layers):
        raise UsageError(
            f"{found.folder} holds another model than --model {run.config.model} builds here"
        )
    if found.data and found.data != run.data:
        raise UsageError(
            f"{found.folder} is of a run on other data: its checksum is {found.data}, that of"
            f" --dataset {run.config.dataset} here is {run.data}; give --data-dir the files that it"
            " began with"
        )
    batches = replace(run.batches, start=found.position)
    total = run.config.steps or batches.steps_until(run.config.epochs)
    if found.step > total:
        raise UsageError(
            f"the run already has {found.step} steps; a length of {total} lies behind them"
        )
    return replace(run, batches=batches, first=found.step, total=total)


def _notes(passed: Sequence[str], run: Run, found: Checkpoint, comm: Comm) -> tuple[str, ...]:
    """What the user should know of how the run goes on."""
    notes = [f"passed over: {line}" for line in passed]
    if found.world_size != comm.size:
        notes.append(
            f"ranks: {comm.size}, before {found.world_size}; each goes on with the mean of those"
            f" that it follows; {run.batches.global_batch} images a step, {run.config.batch_size} a"
            " rank"
        )
    differences = environment.differences(
        found.environment, run.environment, run.exchanger.method.library_sums
    )
    return (*notes, *([differences] if differences else []))


def _restore(run: Run, found: Checkpoint, comm: Comm) -> None:
    """Take over what the checkpoint holds; what ranks hold each for themselves passes to as many as
    there are now.
    """
    out, states = Path(run.config.out), run.states
    comm.from_rank_0(lambda: _as_usage_error(lambda: _check_traces(out)))
    expected = {shared: states.expected(shared) for shared in (True, False)}

    def own() -> State:
        shares = ranks.shares(found.world_size, comm.size, comm.rank)
        stored = (
            (share, _fitting(checkpoint.load_own(found, rank), expected[False], found))
            for rank, share in shares.items()
        )
        return ranks.merge(stored)

    shared = comm.together(
        lambda: _as_usage_error(
            lambda: _fitting(checkpoint.load_shared(found), expected[True], found)
        )
    )
    states.load(shared, shared=True)
    state = comm.together(lambda: _as_usage_error(own))
    try:
        states.load(state, shared=False)
    except ValueError as error:
        raise UsageError(f"{found.folder} cannot be used: {error}") from None


def _check_traces(out: Path) -> None:
    """TraceError where one is damaged."""
    for path in reader.series(out):
        reader.read(path, own=True)


def _fitting(arrays: State, expected: Mapping[str, Any], found: Checkpoint) -> State:
    """Of the arrays those that are expected, in shape and type. CheckpointError."""
    for name, own in expected.items():
        stored = arrays.get(name)
        if stored is None or (stored.shape, stored.dtype) != (own.shape, own.dtype):
            raise checkpoint.CheckpointError(
                f"{found.folder} holds no {name} of {own.shape} {own.dtype}"
            )
    return {name: arrays[name] for name in expected}


def _make_folder(settings: Config, found: Checkpoint | None, own: Lock) -> tuple[Path, list[str]]:
    """The run's folder, this process's alone, with its configuration in it, and what the user
    should know of that.

    UsageError where it cannot be written, or another run was faster.
    """
    name = f"{settings.dataset}-{settings.model}-{settings.method}-{datetime.now():%Y%m%d-%H%M%S}"
    out = Path(settings.out or RUNS / name)
    with _writing(out):
        out = out if settings.out else _fresh_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        if not own.taken:
            own.take(out)
            if _holds_run(out):
                raise UsageError(
                    f"another run was faster, and has just begun in {out}; choose another --out"
                )
        notes = (
            [f"{out} has no lock ({own.missing}): see to it that no second run writes there"]
            if own.missing
            else []
        )
        if found is None:
            for path in reader.series(out):  # of a run that never came to a checkpoint
                path.unlink()
        try:
            files.write_text(out / "config.toml", replace(settings, out=str(out)).to_toml())
        except OSError as error:
            if found is None:
                raise
            notes.append(
                f"{out / 'config.toml'} cannot be replaced ({files.reason(error)}); the checkpoints"
                " have the settings"
            )
    return out, notes


def _fresh_folder(wanted: Path) -> Path:
    """A folder that no other run has: the wanted one, or that with -2, -3, … behind it."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(2):
        try:
            wanted.mkdir()
        except FileExistsError:
            wanted = wanted.with_name(f"{wanted.name.removesuffix(f'-{number - 1}')}-{number}")
        else:
            break
    return wanted


def _check_folder(out: Path, comm: Comm) -> None:
    """All ranks write their checkpoints to one folder, so all must see it."""
    if not os.path.exists(out / "config.toml"):
        raise UsageError(
            f"rank {comm.rank} on {comm.host} does not see {out}: --out must lie on a disk that all"
            " hosts share"
        )
