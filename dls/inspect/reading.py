"""Reading a run: its trace files, joined into one run."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.exchange import methods
from dls.inspect import ranks
from dls.inspect.run import About, Columns, Run, Timeline
from dls.program import sources
from dls.record import reader
from dls.record.schema import Trace, TraceError

LARGEST = 1e60
"""No run records a number as large: squares of float32 values, summed, stay below."""
SETTINGS = ("method", "density", "dls_steps", "model", "dataset", "backend", "lr", "seed")
"""The settings that stand in `About`."""


def load(path: Path) -> Run:
    """Read a run's folder, or one trace file. TraceError."""
    return join(path, [_plausible(reader.read(file)) for file in reader.files_of(path)])


def _plausible(trace: Trace) -> Trace:
    """The trace with NaN, as for what was not recorded, in place of implausible numbers.

    A file from anywhere may hold infinite numbers, or some beyond all measure.
    """
    return replace(
        trace,
        steps=_bounded(trace.steps),
        evals=_bounded(trace.evals),
        diagnostics=_bounded(trace.diagnostics),
    )


def _bounded(columns: Columns) -> Columns:
    floats = {name: column for name, column in columns.items() if column.dtype.kind == "f"}
    wild = {name: np.abs(column) > LARGEST for name, column in floats.items()}
    mended = {
        name: np.where(where, np.nan, columns[name]) for name, where in wild.items() if where.any()
    }
    return {**columns, **mended}


def join(path: Path, traces: Sequence[Trace]) -> Run:
    """One run from its traces; steps that a later trace repeats are taken from that.

    TraceError where the models differ.
    """
    parts = sorted(traces, key=_first_step)
    layers = parts[0].header.layers
    if any(list(part.header.layers["size"]) != list(layers["size"]) for part in parts):
        raise TraceError(f"{path}: its traces are of different models")
    ends = [*(_first_step(part) for part in parts[1:]), math.inf]
    values = sum(layers["size"])
    steps = _joined([ranks.reduce(part.steps, values) for part in parts], ends)
    states = [state for part in parts for state in sources.states(part.header.attributes)]
    return Run(
        about=_about(path, parts, steps["step"]),
        layers=layers,
        steps=steps,
        evals=_with_spent(_joined([part.evals for part in parts], ends), steps),
        diagnostics=_joined([_diagnostics(part) for part in parts], ends),
        closest=_closest(parts),
        sources=list(dict.fromkeys(states)),
    )


def _with_spent(evals: Columns, steps: Columns) -> Columns:
    """The evaluations, with the bytes that were sent and the seconds that went by until then."""
    return {
        **evals,
        "sent_bytes": _summed(steps, "payload_bytes", evals["step"]),
        "seconds": _summed(steps, "seconds/total", evals["step"]),
    }


def _diagnostics(part: Trace) -> Columns:
    return {
        "step": part.diagnostics["step"],
        "global_share": part.diagnostics["global_share"].mean(axis=1),
        "hidden_share": ranks.hidden_share(part).mean(axis=1),
    }


def _closest(parts: Sequence[Trace]) -> Timeline | None:
    """The timeline of the last diagnosed step."""
    diagnosed = [part.diagnostics for part in parts if len(part.diagnostics["step"])]
    if not diagnosed:
        return None
    last = diagnosed[-1]
    return Timeline(last["step"][-1], last["begin"][-1], last["end"][-1])


def _first_step(part: Trace) -> float:
    return float(part.steps["step"][0]) if len(part.steps["step"]) else math.inf


def _joined(parts: Sequence[Columns], ends: Sequence[float]) -> Columns:
    """The rows of each part that come before its end."""
    cut = []
    for part, end in zip(parts, ends, strict=True):
        kept = part["step"] < end
        cut.append({name: column[kept] for name, column in part.items()})
    return {name: np.concatenate([part[name] for part in cut]) for name in cut[0]}


def _summed(steps: Columns, name: str, at: NDArray[np.int64]) -> NDArray[np.float64]:
    """All of a column up to each of these steps; a step that was not recorded counts as the next
    that was.
    """
    taken = np.diff(steps["step"].astype(np.float64), prepend=0.0)
    total = np.concatenate([[0.0], np.cumsum(taken * steps[name])])
    summed: NDArray[np.float64] = total[np.searchsorted(steps["step"], at, side="right")]
    return summed


def _about(path: Path, parts: Sequence[Trace], steps: NDArray[Any]) -> About:
    """What the run was: of a resumed run its last settings, and when it first started."""
    attributes = parts[-1].header.attributes
    config = _config(parts[-1])
    settings = {name: config.get(name) for name in SETTINGS}
    for name in methods.settings():
        if name in settings and not _reads(settings["method"], name):
            settings[name] = None
    return About(
        path=str(path),
        **settings,
        ranks=[part.steps["loss"].shape[1] for part in parts],
        steps=int(steps[-1]) if len(steps) else 0,
        hosts=[str(host) for host in attributes.get("hosts", ())],
        version=attributes.get("version"),
        commit=attributes.get("commit"),
        started=parts[0].header.attributes.get("started"),
        config=config,
    )


def _config(part: Trace) -> dict[str, Any]:
    """The configuration in a trace. TraceError where it cannot be read."""
    try:
        return tomllib.loads(str(part.header.attributes.get("config", "")))
    except tomllib.TOMLDecodeError as error:
        raise TraceError(f"{part.path}: its configuration is not valid TOML: {error}") from None


def _reads(method: Any, setting: str) -> bool:
    """Whether a method reads a setting, as far as the method is known here."""
    return method not in methods.names() or setting in methods.reads(method)
