"""`python -m dls.bench network`: training steps over slow networks, on hosts that this machine
plays itself (`dls.tools.hosts`).

Each rate and number of hosts is one run of `dls.bench step`, in which the methods take turns. The
targets are those of a method that hides its communication: what cannot be hidden, as one layer
holds most of the bytes, shows as a target missed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dls.bench.contenders import AT_END, Row
from dls.cli import UsageError
from dls.tools.drawing import MISSING, family, looks
from dls.tools.hosts import Hosts, python

UNLIMITED = "unlimited"
TARGETS = {
    "exposed / at the end": 0.2,
    "step / layerwise": 1.05,
    "step / bound": 1.1,
    "step / global": 1.0,
}
"""The most that DLS's figures may be, where they count."""
HIDABLE = 0.8
"""Communication up to this share of the backward pass can hide behind it."""
WAITING = 0.1
"""Global Top-k waits for the network where this share of its step, or more, is exposed."""


def measure(
    rates: Sequence[str], hosts: Sequence[int], step_options: Sequence[str]
) -> Iterator[Row]:
    """Yield the rows of `dls.bench step` for every rate (as tc writes it, or unlimited) and number
    of hosts.

    HostsError where there can be no hosts, UsageError where `dls.bench step` refuses its options.
    """
    for count in hosts:
        for rate in rates:
            with Hosts(count, None if rate == UNLIMITED else rate) as network:
                for row in _step(network, count, step_options):
                    yield {"rate": rate, "hosts": count} | row


def _step(network: Hosts, ranks: int, options: Sequence[str]) -> Sequence[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [*python(), "-m", "dls.bench", "step", *options, "--json", str(path)]
        done = subprocess.run(
            network.mpirun(ranks, command), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UsageError(f"dls.bench step failed: {done.stderr.strip()}")
        rows: Sequence[Row] = json.loads(path.read_text(encoding="utf-8"))
        return rows


def judge(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield a row per cell that has all methods: how DLS stands to the targets, and which of those
    that count it misses.
    """
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["rate"], row["hosts"], row["model"]), {})[row["method"]] = row
    for (rate, hosts, model), methods in cells.items():
        if {"dls", "dls" + AT_END, "layerwise-topk", "global-topk"} <= methods.keys():
            yield {"rate": rate, "hosts": hosts, "model": model} | _judge(methods)


def _judge(methods: Mapping[str, Row]) -> Row:
    dls, at_end, global_topk = methods["dls"], methods["dls" + AT_END], methods["global-topk"]
    communication = at_end["exposed, ms"]
    figures = {
        "communication / backward": communication / dls["backward, ms"],
        "exposed / at the end": dls["exposed, ms"] / communication,
        "step / layerwise": dls["step, ms"] / methods["layerwise-topk"]["step, ms"],
        "step / bound": dls["step, ms"]
        / max(dls["compute, ms"], dls["forward, ms"] + communication),
        "step / global": dls["step, ms"] / global_topk["step, ms"],
    }
    counts = {
        "exposed / at the end": figures["communication / backward"] <= HIDABLE,
        "step / global": global_topk["exposed, ms"] >= WAITING * global_topk["step, ms"],
    }
    missed = [
        name for name, most in TARGETS.items() if counts.get(name, True) and figures[name] > most
    ]
    dense = (
        {"step / dense": dls["step, ms"] / methods["dense"]["step, ms"]}
        if "dense" in methods
        else {}
    )
    return figures | dense | {"missed": ", ".join(missed) or "none"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """A bar chart of the steps, computing and waiting apart: a row of panels per number of hosts
    and rate, a panel per network.

    UsageError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(f"the chart {MISSING}") from None
    lines = list(dict.fromkeys((row["hosts"], row["rate"]) for row in rows))
    networks = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(4 * len(networks), 0.6 + 2.1 * len(lines)), layout="constrained")
    panels = figure.subplots(len(lines), len(networks), squeeze=False)
    for line, (hosts, rate) in enumerate(lines):
        for column, network in enumerate(networks):
            shown = [
                row
                for row in rows
                if (row["hosts"], row["rate"], row["model"]) == (hosts, rate, network)
            ]
            _draw_panel(panels[line, column], shown)
            panels[line, column].set_title(f"{network}, {hosts} hosts, {rate}", fontsize=9)
    _explain(figure)
    figure.savefig(path, dpi=150)


def _explain(figure: Any) -> None:
    """What full and hatched bars are, in no method's colour."""
    from matplotlib.patches import Patch

    parts = [Patch(color="#777777", label="computing")]
    parts += [
        Patch(
            facecolor="white",
            edgecolor="#777777",
            hatch="////",
            label="waiting for the network (exposed)",
        )
    ]
    figure.legend(handles=parts, loc="outside lower center", ncols=2, frameon=False)


def _draw_panel(axes: Any, rows: Sequence[Row]) -> None:
    names = [row["method"] for row in rows]
    compute, exposed = [row["compute, ms"] for row in rows], [row["exposed, ms"] for row in rows]
    colours = [look.colour for look in looks([family(name) for name in names])]
    axes.barh(names, compute, color=colours, edgecolor=colours, lw=0.6)
    bars = axes.barh(
        names, exposed, left=compute, color="white", edgecolor=colours, hatch="////", lw=0.6
    )
    axes.bar_label(bars, labels=[f"{row['step, ms']:,.0f}" for row in rows], padding=3, fontsize=8)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.invert_yaxis()
    axes.set_xlabel("ms a step", fontsize=8)
    axes.tick_params(labelsize=8)
