"""What the ranks record of a run, and how it comes to the one that writes the trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dls.exchange.columns import PER_STEP, Column
from dls.record.packing import gathered
from dls.record.schema import UNKNOWN
from dls.record.writer import Writer
from reference.collectives import ROUNDS

if TYPE_CHECKING:
    from dls.comm.base import Comm
    from dls.exchange.exchanger import Diagnosis, Row

FLUSH_ROWS = 50
"""Recorded steps that may be lost with a killed process."""
FLUSH_BYTES = 2**26
"""Bytes of all ranks' recorded steps that are kept before they are written, but for one step's."""

Columns = dict[str, NDArray[Any]]


class Recorder:
    """Collects recorded steps on every rank and brings them to rank 0's writer, many at a time.

    columns: those of the trace. Every rank calls all methods, with the same steps.
    """

    def __init__(self, comm: Comm, writer: Writer | None, columns: Iterable[Column]) -> None:
        self._comm, self._writer = comm, writer
        self._columns = tuple(columns)
        self._rows: list[tuple[Row, Mapping[str, Any]]] = []
        self._diagnoses: list[tuple[int, Diagnosis]] = []
        self._kept = 0

    def step(self, step: int, row: Row, **more: Any) -> None:
        """Keep a finished step. more: what is the same on all ranks, such as its `epoch` and `lr`.

        They go to the file FLUSH_ROWS at a time, or when all ranks hold FLUSH_BYTES.
        """
        self._rows.append((row, {"step": step, **more}))
        self._kept += self._comm.size * _size(row)
        if len(self._rows) >= FLUSH_ROWS or self._kept >= FLUSH_BYTES:
            self.flush()

    def diagnosis(self, step: int, found: Diagnosis) -> None:
        """Keep what a close look at a step found; it is written with the recorded steps."""
        self._diagnoses.append((step, found))
        self._kept += self._comm.size * (found.begin.nbytes + found.end.nbytes)
        if len(self._diagnoses) >= FLUSH_ROWS or self._kept >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Gather and write what is kept."""
        if self._rows:
            self._flush_steps()
            self._flush_messages()
        if self._diagnoses:
            self._flush_diagnoses()
        self._rows.clear()
        self._diagnoses.clear()
        self._kept = 0

    def evaluation(self, step: int, loss: float, accuracy: float) -> None:
        """Write an evaluation, after the steps before it."""
        self.flush()
        if self._writer is not None:
            self._writer.evaluation(step, loss, accuracy)

    def close(self) -> None:
        """Write what is kept and close the file."""
        self.flush()
        self.leave()

    def leave(self) -> None:
        """Close the file without what is kept. This rank alone may call it, also once more."""
        if self._writer is not None:
            self._writer.close()

    def _flush_steps(self) -> None:
        once: Columns = {}
        columns: Columns = {}
        for column in self._of("steps"):
            values = [_value(row, more, column) for row, more in self._rows]
            target = once if column.axes == PER_STEP else columns
            target[column.key] = np.array(values, dtype=column.kind)
        self._write("steps", once, columns)

    def _flush_diagnoses(self) -> None:
        once = {"step": np.array([step for step, _ in self._diagnoses])}
        columns = {
            column.key: np.array([getattr(found, column.key) for _, found in self._diagnoses])
            for column in self._of("diagnostics")
            if column.key not in once
        }
        self._write("diagnostics", once, columns)

    def _write(self, group: str, once: Columns, columns: Columns) -> None:
        """Add rows of columns [rows, …] that every rank has, and of those that are the same."""
        if self._writer is not None:
            self._writer.grow(group, len(once["step"]))
            for name, values in once.items():
                self._writer.put(group, name, values)
        for name, layers, values in gathered(self._comm, columns):
            if self._writer is not None:
                self._writer.put(group, name, np.swapaxes(values, 0, 1), layers)
        if self._writer is not None:
            self._writer.commit(group, once["step"])

    def _flush_messages(self) -> None:
        """Of each rank as many as it has: a round that is still under way may be there or not."""
        own = self._messages()
        counts = self._comm.allgather(np.array(len(own["step"])), "the trace's rows").wait()
        longest = int(counts.max())
        padded = {name: _padded(values, longest) for name, values in own.items()}
        order: NDArray[np.int64] | None = None
        steps = np.empty(0, dtype=np.int64)
        for name, _, values in gathered(self._comm, padded):
            there = np.arange(longest) < counts[:, None]
            column = values[there]
            if order is None:  # the first column is the step
                order = np.argsort(column, kind="stable")
                steps = column[order]
                self._grow_messages(steps)
            if self._writer is not None:
                self._writer.put("messages", name, column[order])
        if self._writer is not None:
            self._writer.commit("messages", steps)

    def _grow_messages(self, steps: NDArray[np.int64]) -> None:
        if self._writer is not None:
            first = self._writer.grow("messages", len(steps))
            numbers = np.arange(first, first + len(steps))
            self._writer.put("messages", "message", numbers)

    def _messages(self) -> Columns:
        """This rank's messages of the steps that are kept, by column; `step` is the first."""
        rows = [
            (more["step"], bucket, number, message, row.started)
            for row, more in self._rows
            for bucket, messages in row.messages
            for number, message in enumerate(messages)
        ]
        of_message = [message for _, _, _, message, _ in rows]
        started = np.array([begin for *_, begin in rows])
        columns: Columns = {
            "step": np.array([step for step, *_ in rows], dtype=np.int64),
            "rank": np.full(len(rows), self._comm.rank),
            "bucket": np.array([bucket for _, bucket, *_ in rows], dtype=np.int64),
            "round": np.array([number for _, _, number, *_ in rows], dtype=np.int64),
            "kind": np.array([ROUNDS.index(each.kind) for each in of_message], dtype=np.int64),
            "to": np.array([_rank(each.to) for each in of_message], dtype=np.int64),
            "source": np.array([_rank(each.source) for each in of_message], dtype=np.int64),
        }
        for name in ("sent", "received"):
            columns[name] = np.array([getattr(each, name) for each in of_message], dtype=np.int64)
        for name in ("ready", "selected", "posted", "finished"):
            columns[name] = np.array([getattr(each, name) for each in of_message]) - started
        return columns

    def _of(self, group: str) -> Sequence[Column]:
        return [column for column in self._columns if column.group == group]


def _value(row: Row, more: Mapping[str, Any], column: Column) -> Any:
    """A step's value of a column: this rank's, or the one that is the same on all ranks."""
    name = column.key
    if name in more:
        return more[name]
    if name in row.columns:
        return row.columns[name]
    group, _, phase = name.partition("/")
    if phase and group == "seconds":
        return row.seconds[phase]
    return getattr(row, name, column.missing)


def _size(row: Row) -> int:
    """About how many bytes a recorded step takes on this rank."""
    messages = sum(len(some) for _, some in row.messages)
    return 200 + sum(values.nbytes for values in row.columns.values()) + 104 * messages


def _rank(number: int | None) -> int:
    return UNKNOWN if number is None else number


def _padded(values: NDArray[Any], length: int) -> NDArray[Any]:
    return np.concatenate([values, np.zeros(length - len(values), dtype=values.dtype)])
