"""A run's traces, joined into one series of steps, the ranks reduced to their mean."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.exchange import clock, methods
from dls.program import sources
from dls.program.sources import State
from dls.record import reader
from dls.record.schema import Trace, TraceError

LARGEST = 1e60
"""No run records anything as large: squares of float32 values, summed, stay below."""

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Series:
    """A run's traces joined, T recorded steps, ranks reduced to their mean.

    run: see dls.inspect; layers: name, kind, size, … [L]; evals: step, loss, accuracy, and until
    then sent_bytes, seconds [E]; steps: step, loss, payload_bytes, received_bytes, ring_bytes,
    set_size, threshold_ratio, residual, warm, seconds/PHASE [T], k, k_rank0, threshold,
    residual_norm [T, L]; diagnostics: step, global_share, hidden_share [D]; closest: the last step
    that was looked at closely; sources: what its training read of the program, state by state.
    """

    run: Mapping[str, Any]
    layers: Mapping[str, Sequence[Any]]
    steps: Columns
    evals: Columns
    diagnostics: Columns
    closest: Closest | None
    sources: Sequence[State] = ()


@dataclass(frozen=True)
class Closest:
    """The timeline of one step: begin and end of each phase [P, L, phases], in seconds since the
    step began.
    """

    step: int
    begin: NDArray[np.float64]
    end: NDArray[np.float64]


def load(path: Path) -> Series:
    """Read a run's folder, or one trace file. TraceError."""
    return join(path, [_plausible(reader.read(file)) for file in files_of(path)])


def _plausible(found: Trace) -> Trace:
    """The trace with NaN, as what was not recorded, where a number of a file from anywhere is
    infinite or beyond all measure.
    """
    return replace(
        found,
        steps=_bounded(found.steps),
        evals=_bounded(found.evals),
        diagnostics=_bounded(found.diagnostics),
    )


def _bounded(columns: Columns) -> Columns:
    wild = {
        name: np.abs(column) > LARGEST
        for name, column in columns.items()
        if column.dtype.kind == "f"
    }
    return {
        **columns,
        **{
            name: np.where(where, np.nan, columns[name])
            for name, where in wild.items()
            if where.any()
        },
    }


def files_of(path: Path) -> list[Path]:
    """The traces of a run's folder, or the one file. TraceError."""
    files = reader.trace_files(path) if path.is_dir() else [path]
    if not files:
        raise TraceError(f"{path} holds no trace.h5; give the folder of a run")
    return files


def join(path: Path, traces: Sequence[Trace]) -> Series:
    """One run from its traces; rows that a later trace took again are left out.

    TraceError where the models differ.
    """
    parts = sorted(traces, key=_first_step)
    layers = parts[0].header.layers
    if any(list(part.header.layers["size"]) != list(layers["size"]) for part in parts):
        raise TraceError(f"{path}: its traces are of different models")
    ends = [*(_first_step(part) for part in parts[1:]), math.inf]
    values = sum(layers["size"])
    steps = _joined([reduce_ranks(part.steps, values) for part in parts], ends)
    evals = {**_joined([part.evals for part in parts], ends)}
    for name, column in (("sent_bytes", "payload_bytes"), ("seconds", "seconds/total")):
        evals[name] = _summed(steps, column, evals["step"])
    shares = [{name: part.diagnostics[name] for name in ("step", "global_share")} for part in parts]
    shares = [share | {"global_share": share["global_share"].mean(axis=1)} for share in shares]
    shares = [
        share | {"hidden_share": hidden_share(part).mean(axis=1)}
        for share, part in zip(shares, parts, strict=True)
    ]
    read = [state for part in parts for state in sources.states(part.header.attributes)]
    about = _about(path, parts, steps["step"])
    return Series(
        about,
        layers,
        steps,
        evals,
        _joined(shares, ends),
        _closest(parts),
        list(dict.fromkeys(read)),
    )


def _closest(parts: Sequence[Trace]) -> Closest | None:
    looked = [part.diagnostics for part in parts if len(part.diagnostics["step"])]
    return Closest(*(looked[-1][name][-1] for name in ("step", "begin", "end"))) if looked else None


def hidden_share(part: Trace) -> NDArray[np.float64]:
    """Of the time that a rank's messages were under way, the share in which it did not stand
    waiting: [D, P].

    NaN where a step that was looked at was not recorded as well, or sent nothing.
    """
    exchange, looked = clock.OF_LAYERS.index("exchange"), part.diagnostics
    under_way = _covered(*(looked[name][..., exchange] for name in ("begin", "end")))
    recorded, steps = np.isin(looked["step"], part.steps["step"]), part.steps["step"]
    waited = np.full(under_way.shape, np.nan)
    waited[recorded] = part.steps["seconds/exposed"][
        np.searchsorted(steps, looked["step"][recorded])
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(under_way > 0, np.clip(1 - waited / under_way, 0, 1), np.nan)


def _covered(begin: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much time the intervals of the last axis cover together; NaN is none."""
    order = begin.argsort(axis=-1)  # NaN last
    begin, end = (np.take_along_axis(each, order, axis=-1) for each in (begin, end))
    before = np.roll(np.fmax.accumulate(end, axis=-1), 1, axis=-1)
    before[..., 0] = -np.inf
    covered: NDArray[np.float64] = np.nansum(np.maximum(end - np.fmax(begin, before), 0), axis=-1)
    return covered


def _first_step(part: Trace) -> float:
    return float(part.steps["step"][0]) if len(part.steps["step"]) else math.inf


def _joined(parts: Sequence[Columns], ends: Sequence[float]) -> Columns:
    """The rows of each part that come before its end."""
    kept = [part["step"] < end for part, end in zip(parts, ends, strict=True)]
    cut = [
        {name: column[rows] for name, column in part.items()}
        for part, rows in zip(parts, kept, strict=True)
    ]
    return {name: np.concatenate([part[name] for part in cut]) for name in cut[0]}


def _summed(steps: Columns, name: str, at: NDArray[np.int64]) -> NDArray[np.float64]:
    """All of a column up to each of these steps; a step that was not recorded counts as the next
    that was.
    """
    taken = np.diff(steps["step"].astype(np.float64), prepend=0.0)
    total = np.concatenate([[0.0], np.cumsum(taken * steps[name])])
    summed: NDArray[np.float64] = total[np.searchsorted(steps["step"], at, side="right")]
    return summed


def reduce_ranks(steps: Columns, values: int) -> Columns:
    """The steps of a Series from those of one trace, whose gradient has so many values."""
    low, high = steps["threshold"].min(axis=2), steps["threshold"].max(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = high / low
    own = {
        "step": steps["step"],
        "k_rank0": steps["k"][:, 0],
        "warm": np.arange(len(low)) >= min(1, len(low) - 1),
    }
    per_rank = {
        name: column for name, column in steps.items() if name not in ("step", "epoch", "lr")
    }
    known = steps["received_bytes"] >= 0  # what an older trace did not record is schema.UNKNOWN
    per_rank |= {"received_bytes": np.where(known, steps["received_bytes"], np.nan)}
    per_rank |= {
        "ring_bytes": np.full(
            steps["loss"].shape, traffic.ring_bytes(values, steps["loss"].shape[1])
        )
    }
    per_rank |= {"set_size": high - low, "threshold_ratio": ratio}
    per_rank |= {"residual": np.sqrt((steps["residual_norm"] ** 2).sum(axis=2))}
    return own | {name: column.mean(axis=1) for name, column in per_rank.items()}


def _reads(method: Any, setting: str) -> bool:
    """Whether a method reads a setting, as far as the method is known here."""
    return method not in methods.names() or setting in methods.reads(method)


def _about(path: Path, parts: Sequence[Trace], steps: NDArray[Any]) -> dict[str, Any]:
    """What the run was, None where its traces do not say: of a resumed run its last settings, and
    when it started.
    """
    attributes = parts[-1].header.attributes
    try:
        config = tomllib.loads(str(attributes.get("config", "")))
    except tomllib.TOMLDecodeError as error:
        raise TraceError(
            f"{parts[-1].path}: its configuration is not valid TOML: {error}"
        ) from None
    names = ("method", "density", "dls_steps", "model", "dataset", "backend", "lr", "seed")
    about = {"path": str(path)} | {name: config.get(name) for name in names}
    about |= {
        name: None
        for name in methods.settings()
        if name in about and not _reads(about["method"], name)
    }
    return about | {
        "ranks": [part.steps["loss"].shape[1] for part in parts],
        "steps": int(steps[-1]) if len(steps) else 0,
        "hosts": [str(host) for host in attributes.get("hosts", ())],
        "version": attributes.get("version"),
        "commit": attributes.get("commit"),
        "started": parts[0].header.attributes.get("started"),
        "config": config,
    }
