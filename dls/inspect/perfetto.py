"""A run's timeline as Chrome's trace events, JSON that Perfetto and chrome://tracing open.

Each rank is a process. Its first thread shows the steps; "selection" lasts from a bucket's complete
gradient to its first message; a thread for each bucket shows its rounds, from posted to complete;
"backward" and so on show the layers of the diagnosed steps. Recorded steps follow each other, as
the time between them is not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dls.exchange.clock import OF_LAYERS
from dls.record import files
from dls.record.load import Recording, load
from reference.collectives import ROUNDS

Event = dict[str, Any]
STEPS, SELECTION, LAYERS, BUCKETS = 0, 1, 2, 10
"""Numbers of a rank's threads: the first two, the first of the layers' phases, the first bucket."""
MICRO = 1e6
"""Times are given in microseconds."""
OF_NO_BUCKET = "adjustment and flags"
"""The thread of messages that belong to no bucket."""


def write(run: Path, path: Path) -> None:
    """Write the timeline of the run in a folder. TraceError, OSError."""
    events = list(_events(load(run)))
    text = files.json_text({"traceEvents": events, "displayTimeUnit": "ms"}, indent=0)
    path.write_text(text + "\n", encoding="utf-8")


def _events(recording: Recording) -> Iterator[Event]:
    starts = _starts(recording)
    yield from _names(recording)
    yield from _steps(recording, starts)
    yield from _messages(recording, starts)
    yield from _layers(recording, starts)


def _starts(recording: Recording) -> dict[int, float]:
    """When each recorded step begins: where the slowest rank's last one ended, in seconds."""
    totals = np.nan_to_num(recording["steps/seconds/total"]).max(axis=1)
    begins = np.concatenate([[0.0], np.cumsum(totals)[:-1]]) if len(totals) else totals
    return dict(zip(recording["steps/step"].tolist(), begins.tolist(), strict=True))


def _event(name: str, kind: str, rank: int, thread: int, begin: float, end: float) -> Event:
    """A block of time; begin, end: in seconds."""
    times = {"ts": MICRO * begin, "dur": MICRO * max(0.0, end - begin)}
    return {"name": name, "cat": kind, "ph": "X", "pid": rank, "tid": thread, **times}


def _names(recording: Recording) -> Iterator[Event]:
    threads = {STEPS: "steps", SELECTION: "selection"}
    threads |= {LAYERS + place: f"layers: {phase}" for place, phase in enumerate(OF_LAYERS)}
    buckets = sorted({int(each) for each in recording.messages["bucket"]})
    threads |= {BUCKETS + each: f"bucket {each}" for each in buckets if each >= 0}
    threads[BUCKETS - 1] = OF_NO_BUCKET
    for rank in range(recording.ranks):
        yield _meta("process_name", rank, 0, f"rank {rank}")
        for thread, words in threads.items():
            yield _meta("thread_name", rank, thread, words)


def _meta(what: str, rank: int, thread: int, words: str) -> Event:
    return {"name": what, "ph": "M", "pid": rank, "tid": thread, "args": {"name": words}}


def _steps(recording: Recording, starts: dict[int, float]) -> Iterator[Event]:
    for row, (step, start) in enumerate(starts.items()):
        for rank in range(recording.ranks):
            total = float(recording["steps/seconds/total"][row, rank])
            if np.isfinite(total):
                event = _event(f"step {step}", "step", rank, STEPS, start, start + total)
                event["args"] = _phases(recording, row, rank)
                yield event


def _phases(recording: Recording, row: int, rank: int) -> dict[str, float]:
    """Seconds of the step's phases."""
    phases = [name for name in recording.names() if name.startswith("steps/seconds/")]
    seconds = {name.rpartition("/")[2]: float(recording[name][row, rank]) for name in phases}
    return {name: value for name, value in seconds.items() if np.isfinite(value)}


def _messages(recording: Recording, starts: dict[int, float]) -> Iterator[Event]:
    rows = recording.messages
    for place in range(len(rows["step"])):
        row = {name: values[place].item() for name, values in rows.items()}
        if row["step"] not in starts:
            continue
        start, rank, bucket = starts[row["step"]], row["rank"], row["bucket"]
        if row["round"] == 0 and bucket >= 0 and np.isfinite(row["selected"]):
            times = start + row["ready"], start + row["selected"]
            yield _event(f"bucket {bucket}", "selection", rank, SELECTION, *times)
        if np.isfinite(row["posted"]) and np.isfinite(row["finished"]):
            kind = ROUNDS[row["kind"]] if 0 <= row["kind"] < len(ROUNDS) else "round"
            times = start + row["posted"], start + row["finished"]
            event = _event(f"{kind} {row['round']}", "message", rank, BUCKETS + bucket, *times)
            event["args"] = {name: row[name] for name in ("sent", "received", "to", "source")}
            yield event


def _layers(recording: Recording, starts: dict[int, float]) -> Iterator[Event]:
    rows, names = recording.diagnostics, recording.layers["name"]
    for place, step in enumerate(rows["step"].tolist()):
        if step not in starts:
            continue
        begin, end = rows["begin"][place] + starts[step], rows["end"][place] + starts[step]
        for rank, layer, phase in np.argwhere(np.isfinite(begin) & np.isfinite(end)).tolist():
            times = float(begin[rank, layer, phase]), float(end[rank, layer, phase])
            yield _event(str(names[layer]), OF_LAYERS[phase], rank, LAYERS + phase, *times)
