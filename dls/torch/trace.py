"""A run's trace: what `python -m dls.inspect` reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch

import dls
from dls.exchange.columns import Column
from dls.exchange.exchanger import Row
from dls.program import sources
from dls.record import environment, reader
from dls.record.recorder import Recorder
from dls.record.repair import go_on
from dls.record.schema import LAYER_FIELDS, Header, columns_of
from dls.record.writer import Writer

if TYPE_CHECKING:
    from dls.torch.sync import Sync

LOGGED = ("loss", "epoch", "lr")
"""What a program may log of a step; the last two are the same on all ranks."""


class Trace:
    """What a run records in a folder, every `every` steps; None: nothing.

    Every rank calls all methods. The file begins with the first recorded step, whose logged values
    tell which columns there are.
    """

    def __init__(self, sync: Sync, out: Path, every: int) -> None:
        self._sync, self._out, self._every = sync, out, every
        self._recorder: Recorder | None = None
        self._logged: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Whether that step is recorded."""
        return step % self._every == 0

    def log(self, values: Mapping[str, Any]) -> None:
        """Values of the step that ends next. ValueError for a name that there is not."""
        if odd := [name for name in values if name not in LOGGED]:
            raise ValueError(f"{odd[0]} cannot be logged; {', '.join(LOGGED)} can")
        self._logged |= {name: _number(value) for name, value in values.items()}

    def record(self, step: int, row: Row) -> None:
        """Keep a finished step."""
        logged, self._logged = self._logged, {}
        if not self.due(step):
            return
        if self._recorder is None:
            self._recorder = self._open(step, list(logged))
        if not row.met_by:
            row.loss = logged.pop("loss", row.loss)
        of_all = {name: logged[name] for name in ("epoch", "lr") if name in logged}
        self._recorder.step(step, row, **of_all)
        if row.diagnosis:
            self._recorder.diagnosis(step, row.diagnosis)

    def evaluation(self, step: int, loss: float, accuracy: float) -> None:
        """Keep an evaluation."""
        if self._recorder is None:
            self._recorder = self._open(step, [])
        self._recorder.evaluation(step, float(loss), float(accuracy))

    def flush(self) -> None:
        """Write what is kept."""
        if self._recorder is not None:
            self._recorder.flush()

    def close(self) -> None:
        """Write what is kept and close the file."""
        if self._recorder is not None:
            self._recorder.close()

    def _open(self, step: int, logged: list[str]) -> Recorder:
        comm = self._sync.comm
        there = comm.from_rank_0(lambda: logged)
        without = [name for name in LOGGED if name not in there]
        method = self._sync.stepper.exchanger.method
        columns = columns_of(method.columns, [f"steps/{name}" for name in without])
        header = self._header(columns)
        writer = comm.together(lambda: None if comm.rank else self._writer(step - 1, header))
        return Recorder(comm, writer, columns)

    def _writer(self, finished: int, header: Header) -> Writer:
        """ValueError where the folder holds another run's trace."""
        if self._sync.resumed_at is None and reader.trace_files(self._out):
            raise ValueError(
                f"{self._out} holds the trace of another run: choose another folder, or go on from"
                " its checkpoint with sync.resume"
            )
        return go_on(self._out, finished, header)

    def _header(self, columns: tuple[Column, ...]) -> Header:
        sync, steps = self._sync, self._sync.stepper
        kinds = {name: type(module).__name__ for name, module in sync.model.named_modules()}
        layers: dict[str, list[Any]] = {"name": list(steps.order)}
        layers |= {name: [0] * len(steps.order) for name in LAYER_FIELDS}
        layers["kind"] = [kinds.get(name, "Parameter") for name in steps.order]
        layers["size"] = list(steps.layout.sizes)
        attributes = {
            "config": tomli_w.dumps(self._config()),
            "version": dls.__version__,
            "commit": sources.commit(sync.method) if sync.comm.rank == 0 else "",
            "sources": [],
            "world_size": sync.comm.size,
            "backend": sync.backend.name,
            "seed": torch.initial_seed() % 2**63,
            "hosts": sync.comm.allgather_objects(sync.comm.host),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": "",
            **environment.describe(sync.backend, sync.threads, sync.comm),
        }
        return Header(attributes, layers, columns)

    def _config(self) -> dict[str, Any]:
        sync = self._sync
        own = dataclasses.asdict(sync.stepper.exchanger.method.settings)
        config = {"method": sync.method, "model": type(sync.model).__name__, **own}
        config |= {"backend": sync.backend.name, "threads": sync.threads, **sync.options.recorded()}
        return config | {"out": str(self._out), "trace_every": self._every}


def _number(value: Any) -> float:
    """A number, or a tensor's."""
    return float(value.detach() if isinstance(value, torch.Tensor) else value)
