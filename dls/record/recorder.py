"""What the ranks record of a run, and how it comes to the one that writes the trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dls.record.schema import SECONDS
from dls.record.writer import Writer

if TYPE_CHECKING:
    from dls.comm.base import Comm
    from dls.exchange.exchanger import Diagnosis, Row

FLUSH_ROWS = 50
"""Recorded steps that may be lost with a killed process."""


class Recorder:
    """Collects recorded steps on every rank and brings them to rank 0's writer, many at a time.

    Every rank calls all methods.
    """

    def __init__(self, comm: Comm, writer: Writer | None) -> None:
        self._comm, self._writer = comm, writer
        self._once: list[tuple[int, int, float]] = []
        self._rows: list[Row] = []
        self._diagnoses: list[tuple[int, Diagnosis]] = []

    def step(self, step: int, epoch: int, lr: float, result: Row) -> None:
        """Keep a finished step; every FLUSH_ROWS of them go to the file."""
        self._once.append((step, epoch, lr))
        self._rows.append(result)
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def diagnosis(self, step: int, found: Diagnosis) -> None:
        """Keep what a close look at a step found; it goes to the file with the recorded steps, or
        when there are as many.
        """
        self._diagnoses.append((step, found))
        if len(self._diagnoses) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Gather and write what is kept."""
        if self._rows:
            self._flush_steps()
        if self._diagnoses:
            self._flush_diagnoses()

    def _flush_steps(self) -> None:
        columns: dict[str, NDArray[Any]] = {
            name: np.array([getattr(row, name) for row in self._rows])
            for name in (
                "loss",
                "payload_bytes",
                "received_bytes",
                "k",
                "threshold",
                "residual_norm",
            )
        }
        columns |= {
            f"seconds/{phase}": np.array([row.seconds[phase] for row in self._rows])
            for phase in SECONDS
        }
        rows = self._gathered(columns)
        if self._writer is not None:
            once = zip(("step", "epoch", "lr"), zip(*self._once, strict=True), strict=True)
            self._writer.steps(rows | {name: np.array(values) for name, values in once})
        self._once.clear()
        self._rows.clear()

    def _flush_diagnoses(self) -> None:
        names = ("global_share", "begin", "end")
        rows = self._gathered(
            {
                name: np.array([getattr(found, name) for _, found in self._diagnoses])
                for name in names
            }
        )
        if self._writer is not None:
            self._writer.diagnostics(
                rows | {"step": np.array([step for step, _ in self._diagnoses])}
            )
        self._diagnoses.clear()

    def _gathered(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """On rank 0 every rank's columns, as axis 1; nothing elsewhere."""
        gathered = {name: self._comm.gather(column) for name, column in columns.items()}
        return {
            name: np.swapaxes(column, 0, 1)
            for name, column in gathered.items()
            if column is not None
        }

    def evaluation(self, step: int, loss: float, accuracy: float) -> None:
        """Write an evaluation, after the steps before it."""
        self.flush()
        if self._writer is not None:
            self._writer.evals(step, loss, accuracy)

    def close(self) -> None:
        """Write what is kept and close the file."""
        self.flush()
        self.leave()

    def leave(self) -> None:
        """Close the file without what is kept. This rank alone may call it, also once more."""
        if self._writer is not None:
            self._writer.close()
