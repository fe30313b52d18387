"""`python -m dls.predict.scale`: what exchanges cost on paper, from 2 to 4,096 ranks.

For ResNet-50, BERT-large and a transformer of 7 billion parameters, on each of the assumed networks
(`dls.cost.profiles`): the seconds that the network takes where nothing hides it, and the bytes that
a rank receives, of every method with every collective that exists. Nothing is computed, selected
or decoded; ranks are alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dls import backends
from dls.backends import Backend
from dls.called import usage_name
from dls.cli import Parser
from dls.cost.network import Network
from dls.cost.profiles import PROFILES
from dls.cost.replay import Plan, Step, play_all
from dls.exchange import methods
from dls.exchange.exchanger import BUCKET_SIZE
from dls.exchange.layout import Layout
from dls.predict import rehearse
from dls.predict.choices import Wanted, choices
from dls.predict.forecast import Choice
from dls.predict.rehearse import Setup
from dls.predict.report import DENSE
from dls.predict.shapes import SHAPES
from dls.program import output
from dls.record.files import described, one_line
from dls.tools import options, plotting, tables
from dls.tools.drawing import looks
from dls.traffic import readable
from reference.collectives import COLLECTIVES

RANKS = tuple(2**exponent for exponent in range(1, 13))
"""2 to 4,096."""
DENSITY = 0.001
"""The density of sparse methods."""
VALUES = 1_000_000
"""Values to which larger gradients are scaled down where a method says what it sends."""


@dataclass(frozen=True)
class Row:
    """A method on so many ranks of a network: seconds of the network alone, and bytes of the rank
    that has most.
    """

    network: str
    model: str
    method: str
    density: float
    collective: str
    ranks: int
    seconds: float
    sent: int
    received: int

    @property
    def words(self) -> str:
        """The method and its collective."""
        return self.method if self.method == DENSE else f"{self.method} by {self.collective}"


def measure(ranks: Sequence[int], density: float, names: Sequence[str]) -> Iterator[Row]:
    """Every row. names: of SHAPES."""
    backend = backends.load("numpy")
    for model in names:
        layout = SHAPES[model]()
        for choice in _choices(density):
            print(f"{model}: {choice.words}", file=sys.stderr, flush=True)
            try:
                yield from _rows(model, layout, choice, ranks, backend)
            except ValueError as error:
                print(f"left out: {error}", file=sys.stderr, flush=True)


def _rows(
    model: str, layout: Layout, choice: Choice, ranks: Sequence[int], backend: Backend
) -> Iterator[Row]:
    """A method on all numbers of ranks and networks. ValueError where its messages cannot range
    over so many values.
    """
    for count in ranks:
        plan = _plan(layout, choice, count, backend)
        for network in PROFILES.values():
            yield _row(model, choice, count, plan, network)


def _choices(density: float) -> list[Choice]:
    names = methods.names()
    first = Choice(names[0], methods.load(names[0]).Settings(), BUCKET_SIZE)
    wanted = Wanted(names, [density], tuple(COLLECTIVES), None, None)
    return choices(first, {}, wanted)


def _plan(layout: Layout, choice: Choice, ranks: int, backend: Backend) -> Plan:
    setup = Setup(choice.method, layout, choice.settings, ranks, choice.bucket_size)
    asked, told = rehearse.demand(setup, backend, VALUES)
    rounds = [rehearse.expand(each, setup) for each in asked]
    layers = [bucket.layers for bucket in setup.buckets]
    return Plan(layers, rounds, rehearse.expand(told, setup))


def _row(model: str, choice: Choice, ranks: int, plan: Plan, network: Network) -> Row:
    nothing = _nothing(ranks, plan)
    seconds = play_all([nothing], plan, network)[0]
    sent, received = int(plan.sent().max()), int(plan.received().max())
    about = choice.method, choice.density, choice.collective
    return Row(network.name, model, *about, ranks, seconds, sent, received)


def _nothing(ranks: int, plan: Plan) -> Step:
    """A step in which nothing is computed."""
    layers = 1 + max(each.stop for each in plan.layers)
    none, of_buckets = np.zeros(ranks), np.zeros((ranks, len(plan.layers)))
    return Step(none, np.zeros((ranks, layers)), of_buckets, of_buckets, none, none, none)


# Where one overtakes another ----------------------------------------------------------------------


def crossovers(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """For each network, model, method and collective: between which numbers of ranks it begins to
    take longer than dense, and than the same method by another collective.
    """
    curves: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for row in rows:
        key = row.network, row.model, row.method, row.collective
        curves.setdefault(key, {})[row.ranks] = row.seconds
    for (network, model, method, collective), own in curves.items():
        for (other_network, other_model, other, by), theirs in curves.items():
            same = (other_network, other_model) == (network, model)
            rival = other == DENSE or (other == method and by != collective)
            if same and rival and method != DENSE:
                found = _overtaken(own, theirs)
                words = DENSE if other == DENSE else by
                yield {
                    "network": network,
                    "model": model,
                    "method": method,
                    "collective": collective,
                    "slower than": words,
                    "from": found,
                }


def _overtaken(own: dict[int, float], theirs: dict[int, float]) -> int | None:
    """The fewest ranks from which on the first takes longer, at all numbers above as well; None
    where it never does.
    """
    longer = [ranks for ranks in sorted(own) if own[ranks] > theirs[ranks]]
    last_shorter = max((ranks for ranks in own if own[ranks] <= theirs[ranks]), default=0)
    return next((ranks for ranks in longer if ranks > last_shorter), None)


# Showing ------------------------------------------------------------------------------------------


def page(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of predict-scale.md."""
    yield "# Exchanges on paper"
    yield ""
    yield "Written by `python -m dls.predict.scale`; docs/predict.md says what it means. Networks"
    yield f"are assumed. Sparse methods send {rows[-1].density:g} of the values. Missing are those"
    yield "one of whose messages would range over more than 2**32 values, which none can."
    for model in dict.fromkeys(row.model for row in rows):
        yield ""
        yield f"## {model}"
        yield ""
        yield from _bytes(rows, model)
        for network in dict.fromkeys(row.network for row in rows):
            yield ""
            yield f"{network}, seconds:"
            yield ""
            yield from _table([r for r in rows if (r.model, r.network) == (model, network)])
    yield ""
    yield "## Crossovers"
    yield ""
    yield "The fewest of these ranks from which on the network takes longer than with the other, at"
    yield "more ranks as well; where it never does, there is no line."
    yield ""
    networks = list(dict.fromkeys(row.network for row in rows))
    yield from tables.markdown_head("model", "exchange", "is slower than", *networks)
    for about, ranks in _by_network(rows).items():
        cells = [f"{ranks[each]:,}" if ranks.get(each) else "never" for each in networks]
        yield tables.markdown_line(*about, *cells)


def _by_network(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[str, int | None]]:
    """Crossovers by model, exchange and what overtakes it, for each network, as far as there are
    any.
    """
    found: dict[tuple[str, str, str], dict[str, int | None]] = {}
    for each in crossovers(rows):
        words = f"{each['method']} by {each['collective']}"
        about = each["model"], words, each["slower than"]
        found.setdefault(about, {})[each["network"]] = each["from"]
    return {about: ranks for about, ranks in found.items() if any(ranks.values())}


def _bytes(rows: Sequence[Row], model: str) -> Iterator[str]:
    first = rows[0].network
    yield "Received by a rank:"
    yield ""
    some = [row for row in rows if (row.model, row.network) == (model, first)]
    yield from _table(some, lambda row: readable(row.received))


def _table(rows: Sequence[Row], cell: Any = lambda row: f"{row.seconds:.3g}") -> Iterator[str]:
    ranks = sorted({row.ranks for row in rows})
    yield from tables.markdown_head("ranks", *(f"{each:,}" for each in ranks))
    for words in dict.fromkeys(row.words for row in rows):
        cells = {row.ranks: cell(row) for row in rows if row.words == words}
        yield tables.markdown_line(words, *(cells[each] for each in ranks))


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each model and network: seconds over ranks. OSError."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model for row in rows))
    networks = list(dict.fromkeys(row.network for row in rows))
    size = 3.2 * len(networks), 2.6 * len(models) + 0.6
    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.subplots(len(models), len(networks), squeeze=False, sharex=True)
    for line, model in enumerate(models):
        for column, network in enumerate(networks):
            some = [r for r in rows if (r.model, r.network) == (model, network)]
            _panel(axes[line, column], some)
            axes[line, column].set_title(f"{model}\n{network}", fontsize=8)
    for panel in axes[-1]:
        panel.set_xlabel("ranks")
    for panel in axes[:, 0]:
        panel.set_ylabel("network alone, s")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=150)


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    words = list(dict.fromkeys(row.words for row in rows))
    names = [next(row.method for row in rows if row.words == each) for each in words]
    for label, look in zip(words, looks(names), strict=True):
        own = [row for row in rows if row.words == label]
        x, y = [row.ranks for row in own], [row.seconds for row in own]
        axes.plot(x, y, label=label, markersize=3, **look.line)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plotting.tidy(axes)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog=usage_name("predict.scale"), description="What exchanges cost on paper, by ranks."
    )
    options.add_list(parser, "--ranks", options.positive, RANKS, "P", "numbers of ranks")
    options.add_number(parser, "--density", options.density, DENSITY, "X", "of sparse methods")
    names = tuple(SHAPES)
    options.add_list(parser, "--models", options.one_of(names), names, "NAME", "networks")
    words = "where predict-scale.json, .md and .png are written"
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help=words)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the tables and the figure. Exit status: 0 done, 2 bad usage."""
    try:
        with output.unheard():
            given = build_parser().parse_args(argv)
            given.out.mkdir(parents=True, exist_ok=True)
            plotting.check_picture("--out", given.out / "predict-scale.png")
            rows = list(measure(given.ranks, given.density, given.models))
            record = {
                "networks": {name: asdict(each) for name, each in PROFILES.items()},
                "rows": [asdict(row) for row in rows],
                "crossovers": list(crossovers(rows)),
            }
            text = json.dumps(record, indent=0)
            (given.out / "predict-scale.json").write_text(text + "\n", encoding="utf-8")
            lines = "\n".join(page(rows)) + "\n"
            (given.out / "predict-scale.md").write_text(lines, encoding="utf-8")
            draw(rows, given.out / "predict-scale.png")
    except (OSError, ValueError) as error:
        print(f"dls.predict.scale: {one_line(described(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
