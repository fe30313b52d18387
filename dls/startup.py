"""From the command line to a run that is ready to train: everything that can be refused is refused here, on all ranks alike."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

import dls
from dls import backends, checkpoint, config, data, models, sparsifiers, trace
from dls.backends import Backend
from dls.checkpoint import Checkpoint
from dls.comm import Comm
from dls.config import CommandLine, Config, UsageError
from dls.data import Batches, Dataset
from dls.models import Model
from dls.optim import Sgd
from dls.sparsifiers import Setup, Sparsifier

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run that is ready to train, on one rank. `first` steps are done already; it ends after `total`."""

    config: Config
    out: Path
    backend: Backend
    dataset: Dataset
    batches: Batches
    model: Model
    sparsifier: Sparsifier
    optimizer: Sgd
    first: int
    total: int


def prepare(command: CommandLine, comm: Comm) -> Run:
    """Every rank's run, the same on all. UsageError, on all ranks, for whatever the user can mend."""
    settings, found = comm.together(lambda: _settings(command))
    check_same(comm, _fingerprint(settings, found))
    comm.timeout = settings.timeout
    threads = set_threads(comm, settings)
    run = comm.together(lambda: build(settings, comm, threads))
    check_same(comm, {"model": [(layer.name, layer.size) for layer in run.model.layers], "data": run.dataset.checksum()})
    if found is not None:
        comm.together(lambda: _check_resumable(found, run, comm.size))
        run = _restore(run, found, comm)
    check_same(comm, {"length": (run.first, run.total), "weights": weights_hash(run).hex()})
    out = comm.from_rank_0(lambda: _make_folder(settings, command.resume))
    comm.together(lambda: _check_folder(out, comm))
    return replace(run, config=replace(settings, out=str(out)), out=out)


def _settings(command: CommandLine) -> tuple[Config, Checkpoint | None]:
    """The configuration, and the checkpoint to go on from."""
    layers = [config.read_toml(command.config) if command.config else {}, command.flags]
    given, settings = {**layers[0], **layers[1]}, config.build(*layers)
    if command.resume == "never":
        if settings.out and _holds_run(Path(settings.out)):
            raise UsageError(f"{settings.out} already holds a run; add --resume to go on with it, or choose another --out")
        return settings, None
    if not settings.out:
        raise UsageError("--resume needs --out, the folder of the run to go on with")
    found = _as_usage_error(lambda: checkpoint.latest(Path(settings.out)))
    if found is None:
        if command.resume == "auto":
            return settings, None
        raise UsageError(f"nothing to resume in {settings.out}: it holds no checkpoint; --resume=auto would start afresh")
    stored = config.from_toml(found.config, str(found.folder / "manifest.json"))
    for name, value in given.items():
        if config.FIELDS[name].metadata["fixed"] and stored.get(name, value) != value:
            theirs, ours = config.show_value(value), config.show_value(stored[name])
            raise UsageError(f"{config.flag(name)} {theirs} is not that of the run in {settings.out}, which has {ours}")
    return config.build(stored, *layers), found


def _holds_run(out: Path) -> bool:
    return any((out / name).exists() for name in ("config.toml", "trace.h5", "checkpoints"))


def _as_usage_error(make: Callable[[], T]) -> T:
    """What the libraries of this program refuse is the user's to mend."""
    try:
        return make()
    except (data.DataError, backends.BackendMissing, checkpoint.CheckpointError, trace.TraceError) as error:
        raise UsageError(str(error)) from None
    except MemoryError as error:
        raise UsageError(f"model and data do not fit into memory: {error}") from None


def set_threads(comm: Comm, settings: Config) -> int:
    """How many threads this rank computes with; BLAS has no more from now on. Every rank calls it."""
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // comm.ranks_on_node)
    comm.together(lambda: threadpool_limits(threads))
    return threads


def build(settings: Config, comm: Comm, threads: int) -> Run:
    """Load the data and build model and method, without communication. UsageError for what the user can mend."""
    return _as_usage_error(lambda: _build(settings, comm, threads))


def _build(settings: Config, comm: Comm, threads: int) -> Run:
    backend = backends.load(settings.backend, comm.rank_on_node)
    backend.ops.set_threads(threads)
    dataset = data.load(
        settings.dataset,
        Path(settings.data_dir) if settings.data_dir else None,
        synthetic_shape=settings.synthetic_shape,  # type: ignore[arg-type]  # check_together counts three
        synthetic_classes=settings.synthetic_classes,
        synthetic_size=settings.synthetic_size,
        seed=settings.seed,
    )
    batches = Batches(dataset, settings.seed, settings.batch_size, comm.rank, comm.size, settings.augment)
    try:
        model = models.build(
            settings.model, dataset.input_shape, dataset.classes, settings.seed, backend.nn, settings.mlp_widths
        )
        setup = Setup(settings, model.layers, model.chain, model.gradients, backend, comm)
        sparsifier = sparsifiers.load(settings.method)(setup)
    except ValueError as error:
        raise UsageError(str(error)) from None
    optimizer = Sgd(model.parameters, backend.ops.zeros(model.parameters.size), settings, backend.ops)
    total = settings.steps or settings.epochs * batches.steps_per_epoch
    return Run(settings, Path(), backend, dataset, batches, model, sparsifier, optimizer, 0, total)


def _fingerprint(settings: Config, found: Checkpoint | None) -> dict[str, Any]:
    return {"code version": code_version(), "checkpoint": (found.step, dict(found.hashes)) if found else None} | asdict(settings)


def weights_hash(run: Run) -> bytes:
    """SHA-256 of weights and momentum, the same on all ranks between two steps."""
    to_host = run.backend.ops.to_host
    return hashlib.sha256(to_host(run.model.parameters).tobytes() + to_host(run.optimizer.momentum).tobytes()).digest()


def code_version() -> str:
    """The program's version and a hash of its sources, the same wherever the same code runs."""
    root = Path(dls.__file__).parent.parent
    digest = hashlib.sha256()
    for package in ("dls", "reference", "gpu"):
        for path in sorted(path for path in (root / package).rglob("*") if path.suffix in (".py", ".cu")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"{dls.__version__}+{digest.hexdigest()[:12]}"


def commit() -> str:
    """The git commit of the sources, with a + where they differ from it; empty where they are no checkout."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(dls.__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "train.py")
        return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no", ".."))
    except (OSError, subprocess.CalledProcessError):
        return ""


def check_same(comm: Comm, mine: Mapping[str, Any]) -> None:
    """UsageError, on all ranks, that names the first thing in which a rank differs from rank 0."""
    everyone = comm.allgather_objects(dict(mine))
    for rank, other in enumerate(everyone):
        for name, value in everyone[0].items():
            if other[name] != value:
                words = name.replace("_", " ")
                raise UsageError(f"rank {rank} differs from rank 0 in {words}: {other[name]} instead of {value}")


def _check_resumable(found: Checkpoint, run: Run, ranks: int) -> None:
    if found.world_size != ranks:
        raise UsageError(
            f"{found.folder} was written by {found.world_size} ranks; resume it with mpirun -n {found.world_size}"
        )
    if found.layers != tuple((layer.name, layer.size) for layer in run.model.layers):
        raise UsageError(f"{found.folder} holds another model than --model {run.config.model} builds here")
    if found.step > run.total:
        raise UsageError(f"the run already has {found.step} steps; a length of {run.total} lies behind them")


def _restore(run: Run, found: Checkpoint, comm: Comm) -> Run:
    """Go on where the checkpoint stands."""
    log = Path(run.config.out) / "trace.h5"
    comm.from_rank_0(lambda: _as_usage_error(lambda: trace.read(log).path if log.exists() else None))
    shared, own = comm.together(lambda: _as_usage_error(lambda: checkpoint.load(found, comm.rank)))
    place = run.backend.ops.from_host
    run.model.parameters[...] = place(shared["weights"])
    run.optimizer.momentum[...] = place(shared["momentum"])
    run.model.statistics[...] = place(own.pop("statistics"))
    run.sparsifier.restore(own)
    return replace(run, first=found.step)


def _make_folder(settings: Config, resume: str) -> Path:
    """The run's folder, with its configuration in it. UsageError where it cannot be written, or another run was faster."""
    name = f"{settings.dataset}-{settings.model}-{settings.method}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        out = Path(settings.out) if settings.out else _fresh_folder(Path("runs") / name)
        out.mkdir(parents=True, exist_ok=True)
        if resume == "auto" and checkpoint.latest(out) is None:
            (out / "trace.h5").unlink(missing_ok=True)
        with (out / "config.toml").open("x" if resume == "never" else "w", encoding="utf-8") as file:
            file.write(replace(settings, out=str(out)).to_toml())
    except FileExistsError as error:
        raise UsageError(f"{error.filename} is in the way; choose another --out") from None
    except OSError as error:
        raise UsageError(f"cannot write to {error.filename}: {error.strerror}") from None
    return out


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
    if not (out / "config.toml").exists():
        raise UsageError(f"rank {comm.rank} on {comm.host} does not see {out}: --out must lie on a disk that all hosts share")
