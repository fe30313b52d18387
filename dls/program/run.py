"""A run: everything that training needs on one rank, built from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
from dls.optim import Sgd
from dls.program import memory
from dls.program import states as states_of
from dls.program.checks import as_usage_error
from dls.program.config import Config
from dls.program.states import Part, States
from dls.record.lock import Lock
from dls.tasks import data, models
from dls.tasks.batches import Batches
from dls.tasks.data import Dataset
from dls.tasks.models import LayerInfo, Model
from dls.tasks.task import Task
from reference.collectives import BY_BUCKET


@dataclass(frozen=True)
class Run:
    """A run that is ready to train, on one rank.

    finished: steps that are finished before it begins; it ends after `total`. data: the data's
    checksum. environment: what the ranks compute with (`dls.record.environment`). notes: lines for
    the user before training begins. lock: on rank 0 that of the folder, held until the run is over.
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
    finished: int
    total: int
    data: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lock: Lock = field(default_factory=Lock)


def thread_count(comm: Comm, settings: Config) -> int:
    """The number of threads with which this rank computes. Every rank calls it."""
    return settings.threads or cores.of(comm)


def build(settings: Config, comm: Comm, threads: int) -> Run:
    """Load the data and build model and method, without communication.

    From then on BLAS and the backend use `threads` threads. UsageError.
    """
    return as_usage_error(lambda: _build(settings, comm, threads))


def _build(settings: Config, comm: Comm, threads: int) -> Run:
    memory.keep_freed()
    backend = backends.load(settings.backend, comm.rank_on_node)
    threadpool_limits(threads)  # also of a BLAS that the backend has loaded
    backend.ops.set_threads(threads)
    dataset = _load_data(settings)
    batches = Batches(
        dataset, settings.seed, settings.batch_size, comm.rank, comm.size, settings.augment
    )
    try:
        model = _build_model(settings, dataset, backend)
        exchanger = make_exchanger(settings, model, comm, backend)
    except ValueError as error:
        raise UsageError(str(error)) from None
    momentum = backend.ops.zeros(model.parameters.size)
    optimizer = Sgd(model.parameters, momentum, settings, backend.ops)
    task = Task(model, backend, settings.clip_norm, skips=settings.on_nan == "skip")
    return Run(
        settings,
        Path(),
        backend,
        dataset,
        batches,
        task,
        exchanger,
        optimizer,
        _states(task, optimizer, exchanger, comm),
        finished=0,
        total=settings.steps or batches.steps_until(settings.epochs),
        notes=backend.notes,
    )


def _load_data(settings: Config) -> Dataset:
    return data.load(
        settings.dataset,
        Path(settings.data_dir) if settings.data_dir else None,
        synthetic_shape=settings.synthetic_shape,  # type: ignore[arg-type]  # three, as is checked
        synthetic_classes=settings.synthetic_classes,
        synthetic_size=settings.synthetic_size,
        seed=settings.seed,
    )


def _build_model(settings: Config, dataset: Dataset, backend: Backend) -> Model:
    return models.build(
        settings.model,
        dataset.input_shape,
        dataset.classes,
        settings.seed,
        backend.nn,
        settings.mlp_widths,
    )


def make_exchanger(settings: Config, model: Model, comm: Comm, backend: Backend) -> Exchanger:
    """The exchange of a model's gradients. ValueError where method and model do not go together."""
    layers = [
        Layer(each.name, each.size, channels=_channels(each, model.chain)) for each in model.layers
    ]
    in_buckets = settings.overlap or chooses_by_bucket(settings)
    return Exchanger(
        Layout(layers),
        methods.load(settings.method),
        settings.of_method(),
        comm,
        backend,
        gradients=model.gradients,
        bucket_size=settings.bucket_size if in_buckets else 0,
        overlap=settings.overlap,
        on_nan=settings.on_nan,
    )


def chooses_by_bucket(settings: Config) -> bool:
    """Whether the method's collective selects within buckets, so that their size matters."""
    return "collective" in methods.reads(settings.method) and settings.collective in BY_BUCKET


def _channels(layer: LayerInfo, chain: bool) -> tuple[int, int] | None:
    """A layer's channels for the theory of gradient variances; None where it does not apply."""
    return (layer.channels_in, layer.outputs) if chain and layer.kind != "batch_norm" else None


def _states(task: Task, optimizer: Sgd, exchanger: Exchanger, comm: Comm) -> States:
    """All that a checkpoint of the run holds."""
    states, ops = States(), task.backend.ops
    states.register(states_of.vector("weights", task.model.parameters, ops, shared=True))
    states.register(states_of.vector("momentum", optimizer.momentum, ops, shared=True))
    states.register(Part(lambda: {"mean_statistics": task.mean_statistics(comm)}, shared=True))
    states.register(Part(exchanger.state, exchanger.restore))
    states.register(states_of.vector("statistics", task.model.statistics, ops, shared=False))
    states.register(Part(lambda: {"weights_sha256": np.frombuffer(states.hash(), dtype=np.uint8)}))
    return states
