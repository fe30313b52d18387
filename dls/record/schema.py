"""A run's trace, HDF5 with schema dls-trace/2: one table of all its columns, and what holds them.

trace.h5 holds a run from its first step on, and trace-STEP.h5 goes on after that step where another
number of ranks took over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.exchange import columns
from dls.exchange.clock import OF_LAYERS
from dls.exchange.columns import PER_LAYER, PER_RANK, PER_STEP, Column
from dls.record import environment
from reference.collectives import ROUNDS

NAME = "dls-trace"
"""What a trace's schema is called, before its version."""
VERSION = 2
"""The version of the schema that is written."""
SCHEMA = f"{NAME}/{VERSION}"
"""The attribute `schema` of a trace that is written now."""
READ = tuple(range(1, VERSION + 1))
"""The versions that are read."""
ATTRIBUTES = (
    *("config", "version", "commit", "sources", "world_size", "backend", "seed", "hosts"),
    *("started", "data"),
    *environment.NAMES,
)
"""The attributes of a trace."""
LISTS = ("sources", "hosts")
"""Those that are lists of texts; the others are a text or a number."""
WORDS = ("name", "kind")
"""The columns of `layers` that are texts."""
LAYER_FIELDS = ("kind", "size", "inputs", "outputs", "kernel", "positions")
"""What is said of each layer beside its name."""
SECONDS = (
    *("forward", "backward", "select", "exchange", "decode"),
    *("update", "adjust", "exposed", "total"),
)
"""The columns of `steps/seconds`."""
GROUPS = ("steps", "evals", "diagnostics", "messages")
"""The groups whose columns grow."""
GROWING_AXIS = {"steps": "step", "evals": "step", "diagnostics": "step", "messages": "message"}
"""The first axis of each group's columns, and the column that is its scale."""
UNKNOWN = -1
"""What stands in a column of integers where nothing was recorded; in one of floats NaN does."""


class TraceError(ValueError):
    """A file that is not a trace this program can read: one clear line that says what to do."""


def _layers(name: str, kind: type, unit: str, meaning: str) -> Column:
    return Column(f"layers/{name}", ("layer",), kind, unit, meaning)


def _seconds(name: str, meaning: str) -> Column:
    return Column(f"steps/seconds/{name}", PER_RANK, np.float64, "s", meaning)


def _message(name: str, kind: type, unit: str, meaning: str) -> Column:
    return Column(f"messages/{name}", ("message",), kind, unit, meaning, since=2)


LAYERS = (
    _layers("name", str, "1", "its name; the layers are in forward order"),
    _layers("kind", str, "1", "its kind, such as conv"),
    _layers("size", np.int64, "values", "n_l, how many values its gradient has"),
    _layers("inputs", np.int64, "channels", "c of algorithm.md, section 5; 0 where there is none"),
    _layers("outputs", np.int64, "channels", "d, likewise"),
    _layers("kernel", np.int64, "pixels", "k, likewise"),
    _layers("positions", np.int64, "pixels", "S, likewise"),
)
"""What stands in `layers`, once."""

STEPS = (
    Column("steps/step", PER_STEP, np.int64, "finished steps", "the step's number, from 1"),
    Column("steps/epoch", PER_STEP, np.int64, "epochs", "the epoch, from 0", optional=True),
    Column("steps/lr", PER_STEP, np.float64, "1", "the step's learning rate", optional=True),
    Column(
        "steps/loss",
        PER_RANK,
        np.float64,
        "nats",
        "mean loss of the rank's own mini-batch, before the update; NaN where the step was skipped"
        " (`--on-nan skip`)",
        optional=True,
    ),
    Column(
        "steps/payload_bytes",
        PER_RANK,
        np.int64,
        "bytes",
        "bytes this rank sent in the step, including indices and the announced k; counted once"
        " however many ranks receive them (dense: 4n)",
    ),
    Column(
        "steps/received_bytes",
        PER_RANK,
        np.int64,
        "bytes",
        "bytes that the other ranks' messages brought this rank in the step (dense: what a ring"
        " Allreduce brings, 2 · 4n · (P − 1) / P); -1: not recorded",
        optional=True,
    ),
    _seconds("forward", "the forward pass"),
    _seconds("backward", "the backward pass"),
    _seconds("select", "adding the gradient to the residual, top-k, and clearing what was sent"),
    _seconds("exchange", "encoding and posting messages"),
    _seconds("decode", "decoding what arrived and adding it up"),
    _seconds("update", "the optimizer"),
    _seconds("adjust", "moving k between the layers, and announcing it"),
    _seconds("exposed", "waiting for the network"),
    _seconds("total", "the whole step with the loading of its mini-batch, without recording it"),
)
"""Columns of `steps` that do not depend on the method."""

EVALS = (
    Column("evals/step", ("step",), np.int64, "finished steps", "after which step"),
    Column(
        "evals/loss",
        ("step",),
        np.float64,
        "nats",
        "mean loss on the test set; batch norm uses statistics averaged over the ranks",
    ),
    Column("evals/accuracy", ("step",), np.float64, "1", "accuracy on the test set"),
)
"""Columns of `evals`."""

PER_PHASE = (*PER_LAYER, "phase")
"""Axes of a column with a value of each rank, layer and phase."""
DIAGNOSTICS = (
    Column("diagnostics/step", PER_STEP, np.int64, "finished steps", "which step", optional=True),
    Column(
        "diagnostics/global_share",
        PER_RANK,
        np.float64,
        "1",
        "of the values that Global Top-k with the same K would choose of the rank's accumulated"
        " gradient, the share that the rank sent; global-topk and dense: 1",
        optional=True,
    ),
    Column(
        "diagnostics/begin",
        PER_PHASE,
        np.float64,
        "s",
        f"when each phase ({', '.join(OF_LAYERS)}) of each layer began, since the step began",
        optional=True,
    ),
    Column("diagnostics/end", PER_PHASE, np.float64, "s", "when it ended", optional=True),
)
"""Columns of `diagnostics`, the steps that `--diagnose-every` names."""

MESSAGES = (
    _message("message", np.int64, "1", "a running number, from 0"),
    _message("step", np.int64, "finished steps", "the step in which it was sent"),
    _message("rank", np.int64, "1", "the rank that recorded it"),
    _message(
        "bucket", np.int64, "1", "its bucket, in the order of leaving; -1: of an adjustment or flag"
    ),
    _message("round", np.int64, "1", "the number of the collective's round, from 0"),
    _message("kind", np.int64, "1", f"the kind of round: {', '.join(ROUNDS)}, counted from 0"),
    _message("to", np.int64, "1", "the rank it goes to; -1: all, or nobody"),
    _message("source", np.int64, "1", "the rank whose message comes back; -1: all, or nobody"),
    _message("sent", np.int64, "bytes", "bytes that this rank gave to the network, once"),
    _message("received", np.int64, "bytes", "bytes that the other ranks' messages brought"),
    _message(
        "ready",
        np.float64,
        "s",
        "when the bucket's gradient was complete; in later rounds, when work on the answer began",
    ),
    _message("selected", np.float64, "s", "when the message was ready to be posted"),
    _message("posted", np.float64, "s", "when the network had it"),
    _message(
        "finished",
        np.float64,
        "s",
        "when its answer was complete, whether or not anybody waited; NaN: not yet when recorded",
    ),
)
"""Columns of `messages`: times are seconds since the rank's own step began."""

COLUMNS = (*LAYERS, *STEPS, *EVALS, *DIAGNOSTICS, *MESSAGES)
"""Every column but those of the methods."""
OF_METHODS = (columns.K, columns.THRESHOLD, columns.RESIDUAL_NORM)
"""What a method records unless it says otherwise."""
KNOWN = (*COLUMNS, *OF_METHODS)
"""The columns that every trace in memory has, filled where they were not recorded."""


def columns_of(
    method: Iterable[Column] = OF_METHODS, without: Sequence[str] = ()
) -> tuple[Column, ...]:
    """The columns of a run: all but those named, which are optional, and the method's own."""
    return (*(each for each in COLUMNS if each.name not in without), *method)


@dataclass(frozen=True)
class Header:
    """What a trace says about its run, once: attributes, a row for each layer, and its columns."""

    attributes: Mapping[str, Any]
    layers: Mapping[str, Sequence[Any]]
    columns: tuple[Column, ...] = columns_of()

    @property
    def ranks(self) -> int:
        """P."""
        return int(self.attributes["world_size"])

    @property
    def layer_count(self) -> int:
        """L."""
        return len(self.layers["name"])

    @property
    def sizes(self) -> dict[str, int]:
        """How long each axis is that does not grow."""
        return {"rank": self.ranks, "layer": self.layer_count, "phase": len(OF_LAYERS)}

    def growing(self) -> Iterator[Column]:
        """The columns to which rows are added."""
        return (each for each in self.columns if each.group in GROUPS)


@dataclass(frozen=True)
class Trace:
    """A trace in memory: its header, and arrays by name below the groups."""

    path: Path
    header: Header
    steps: Mapping[str, NDArray[Any]]
    evals: Mapping[str, NDArray[Any]]
    diagnostics: Mapping[str, NDArray[Any]]
    messages: Mapping[str, NDArray[Any]]

    def group(self, name: str) -> Mapping[str, NDArray[Any]]:
        """One of GROUPS, by its name."""
        found: Mapping[str, NDArray[Any]] = getattr(self, name)
        return found


def table(of_methods: Mapping[str, Iterable[Column]]) -> str:
    """All columns as a Markdown table, for docs/trace.md; `of_methods`: those of each method."""
    letters = {"step": "T", "rank": "P", "layer": "L", "phase": "4", "message": "M"}
    axes = {"evals": "E", "diagnostics": "D"}
    lines = ["| dataset | shape | unit | meaning |", "| --- | --- | --- | --- |"]
    users: dict[Column, list[str]] = {}
    for method, own in of_methods.items():
        for each in own:
            users.setdefault(each, []).append(method)
    for column in (*COLUMNS, *users):
        first = axes.get(column.group, letters[column.axes[0]])
        shape = ", ".join([first, *(letters[axis] for axis in column.axes[1:])])
        methods = users.get(column, [])
        whose = f" ({', '.join(methods)} alone)" if 0 < len(methods) < len(of_methods) else ""
        lines.append(f"| `{column.name}` | {shape} | {column.unit} | {column.meaning}{whose} |")
    return "\n".join(lines) + "\n"
