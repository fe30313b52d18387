"""`python -m dls.predict.validate`: predictions beside measurements (needs root).

Several hosts are played by this machine itself (`dls.tools.hosts`).

A network is fitted at two rates between two hosts, and one run of each model is recorded on two
hosts at one rate. Every row is a step that neither has seen: another rate, number of hosts, method,
density or collective. Rows of two hosts train (`dls.train`), on a core each. In rows with more
hosts than cores, and in those marked slept, computing is slept as long as it was recorded, so that
the network alone is tested; there the method's own work, which is real and crowds the cores, is
taken as it was measured.

What was measured stays in the work folder; a second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dls import backends
from dls.called import usage_name
from dls.cli import Parser, UsageError
from dls.cost.network import Network, Range, bits_per_second
from dls.cost.replay import Step
from dls.cost.store import load_network
from dls.predict import recording
from dls.predict.choices import Wanted, choices
from dls.predict.forecast import Choice, Forecast
from dls.program import memory, output
from dls.record.files import described, one_line
from dls.tools import machine, tables
from dls.tools.hosts import Hosts
from dls.tools.programs import python
from reference.collectives import COLLECTIVES

FITTED = ("100mbit", "1gbit")
"""Rates between whose fits the network of any other rate lies."""
RECORDED_AT = "1gbit"
"""The rate at which each model's run was recorded, on two hosts."""
TRIES = 4
"""Times that a network is fitted before its refusal counts."""
STEPS = 14
"""Slept steps of each case."""
TRAINED_STEPS = 24
"""Training steps of each run."""
WARMUP = 2
"""Steps that are left out at the beginning of each case."""
BASE = {"method": "dls", "density": "0.01"}
"""With what each model's run was recorded."""
MODELS: Mapping[str, Sequence[str]] = {
    "resnet20": ("--model=resnet20", "--synthetic-shape=3,32,32", "--batch-size=8"),
    "mlp": ("--model=mlp", "--synthetic-shape=1,28,28", "--batch-size=32", "--mlp-widths=512,512"),
}
"""The models, and the settings of their runs."""
CASES: Sequence[tuple[str, str, float, str]] = (
    ("resnet20", "dense", 1.0, "allreduce"),
    ("resnet20", "global-topk", 0.01, "gtopk"),
    ("resnet20", "dls", 0.05, "allgather"),
    ("mlp", "dense", 1.0, "allreduce"),
    ("mlp", "layerwise-topk", 0.01, "allgather"),
    ("mlp", "global-topk", 0.01, "gtopk"),
    ("mlp", "dls", 0.05, "allgather"),
)
"""Model, method, density and collective of the slept rows."""
SLEPT: Sequence[tuple[str, int]] = (
    ("100mbit", 2),
    ("300mbit", 2),
    ("200mbit", 3),
    ("100mbit", 4),
    ("300mbit", 4),
    ("200mbit", 6),
    ("100mbit", 8),
    ("200mbit", 8),
)
"""Rates and numbers of hosts of the slept rows: together the hosts send no more than two cores can
carry between them.
"""
TRAINED: Sequence[tuple[Any, ...]] = (
    ("200mbit", "resnet20", "dense", 1.0, "allreduce"),
    ("100mbit", "resnet20", "layerwise-topk", 0.01, "allgather"),
    ("200mbit", "mlp", "dense", 1.0, "allreduce"),
    ("100mbit", "mlp", "dls", 0.05, "allgather"),
    ("300mbit", "mlp", "global-topk", 0.01, "gtopk"),
)
"""Rate, model, method, density and collective of the rows that train, on two hosts."""


@dataclass(frozen=True)
class Row:
    """A step as predicted and as measured, in ms; error: predicted / measured − 1, in percent."""

    model: str
    computing: str
    rate: str
    hosts: int
    method: str
    density: float
    collective: str
    measured_ms: float
    predicted_ms: float
    low_ms: float
    high_ms: float
    error_percent: float
    measured_received: float
    predicted_received: float
    computing_ms: float
    measured_computing_ms: float


class OwnWork(NamedTuple):
    """Seconds of a method's work in a step on each rank (P), all buckets together: selecting,
    decoding and adjusting.
    """

    select: NDArray[np.float64]
    decode: NDArray[np.float64]
    adjust: NDArray[np.float64]

    def in_place_of(self, step: Step) -> Step:
        """The step with this work, split over the buckets as it was there."""
        select, decode = (
            own[:, None] * _shares_of(each)
            for own, each in ((self.select, step.select), (self.decode, step.decode))
        )
        return step._replace(select=select, decode=decode, adjust=self.adjust)


def _shares_of(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each bucket's share (P, B) of a rank's seconds."""
    total = seconds.sum(axis=1, keepdims=True)
    even = np.full_like(seconds, 1 / seconds.shape[1])
    return np.where(total > 0, seconds / np.where(total > 0, total, 1), even)


class Validation:
    """Measures what is not there yet, in a work folder, and compares."""

    def __init__(self, work: Path) -> None:
        self._work = work
        work.mkdir(parents=True, exist_ok=True)
        self._forecasts: dict[str, Forecast] = {}

    def measure(self) -> None:
        """Whatever is missing."""
        for rate in FITTED:
            self._fit_network(rate)
        for model in MODELS:
            self._train(RECORDED_AT, model, BASE["method"], float(BASE["density"]), "allgather")
        for rate, model, method, density, collective in TRAINED:
            self._train(rate, model, method, density, collective)
        for rate, hosts in SLEPT:
            self._sleep(rate, hosts)

    def _launch(self, rate: str, hosts: int, *command: str) -> None:
        """Run a module on so many hosts. UsageError where it fails."""
        with Hosts(hosts, rate) as network:
            launched = network.mpirun(hosts, [*python(), "-m", *command])
            done = subprocess.run(launched, capture_output=True, text=True, check=False)
        if done.returncode:
            words = done.stderr.strip().splitlines()[-1:] or ["without a word"]
            raise UsageError(f"{command[0]} failed at {rate} on {hosts} hosts: {words[0]}")
        print(f"measured: {command[0]} at {rate} on {hosts} hosts", file=sys.stderr, flush=True)

    def _fit_network(self, rate: str) -> None:
        """Fit a rate's network; a fit that is refused is tried again."""
        for left in reversed(range(TRIES)):
            if self._fit(rate).exists():
                return
            command = ("dls.bench", "exchange", "--steps=25", f"--fit={self._fit(rate)}")
            try:
                self._launch(rate, 2, *command)
            except UsageError:
                if not left:
                    raise

    def _fit(self, rate: str) -> Path:
        return self._work / f"net-{rate}.toml"

    def _trained(self, rate: str, model: str, method: str, density: float, collective: str) -> Path:
        return self._work / f"{model}-{method}-{density:g}-{collective}-{rate}"

    def _train(self, rate: str, model: str, method: str, density: float, collective: str) -> None:
        """Train on two hosts, and record it."""
        out = self._trained(rate, model, method, density, collective)
        if out.exists():
            return
        flags = [*MODELS[model], "--dataset=synthetic", "--synthetic-size=256", "--threads=1"]
        flags += [f"--method={method}", f"--steps={TRAINED_STEPS}", f"--out={out}"]
        if method != "dense":
            flags += [f"--density={density:g}", f"--collective={collective}"]
        self._launch(rate, 2, "dls.train", *flags, "--diagnose-every=8", "--eval-every=1000")

    # --- slept ------------------------------------------------------------------------------------

    def _results(self, rate: str, hosts: int) -> Path:
        return self._work / f"slept-{rate}-{hosts}.json"

    def _sleep(self, rate: str, hosts: int) -> None:
        """All CASES on a network."""
        results = self._results(rate, hosts)
        if results.exists():
            return
        cases = [self._case(*case, hosts) for case in CASES]
        path = self._work / "cases.json"
        path.write_text(json.dumps(cases), encoding="utf-8")
        self._launch(rate, hosts, "dls.predict.slept", str(path), str(results))

    def _case(
        self, model: str, method: str, density: float, collective: str, hosts: int
    ) -> Mapping[str, Any]:
        forecast = self.forecast(model)
        choice = self._choice(forecast, method, density, collective)
        steps = [
            [
                [float(step.before[rank]), step.backward[rank].tolist(), float(step.after[rank])]
                for rank in range(hosts)
            ]
            for step in forecast.steps(choice, hosts, STEPS)
        ]
        layers = [[layer.name, layer.size] for layer in forecast.run.layout.layers]
        return {
            "method": method,
            "settings": asdict(choice.settings),  # type: ignore[call-overload]  # of any method
            "layers": layers,
            "bucket_size": choice.bucket_size,
            "overlap": forecast.run.overlap,
            "steps": steps,
        }

    # --- predictions ------------------------------------------------------------------------------

    def forecast(self, model: str) -> Forecast:
        """The replay of a model's run."""
        if model not in self._forecasts:
            base = BASE["method"], float(BASE["density"]), "allgather"
            run = recording.read(self._trained(RECORDED_AT, model, *base))
            backend = backends.load("numba")
            backend.ops.set_threads(1)
            self._forecasts[model] = Forecast(run, backend)
        return self._forecasts[model]

    def _choice(self, forecast: Forecast, method: str, density: float, collective: str) -> Choice:
        collectives = [collective] if collective in COLLECTIVES else tuple(COLLECTIVES)
        wanted = Wanted([method], [density], collectives, None, None)
        return choices(forecast.recorded, forecast.run.config, wanted)[0]

    def network(self, rate: str) -> Network:
        """The network of a rate, on the line through the two fits."""
        low, high = (load_network(self._fit(each)) for each in FITTED)
        return between(low, high, *(8 / bits_per_second(each) for each in (*FITTED, rate)))

    def rows(self) -> Iterator[Row]:
        """Every row."""
        for rate, hosts in SLEPT:
            results = json.loads(self._results(rate, hosts).read_text(encoding="utf-8"))
            for case, result in zip(CASES, results, strict=True):
                seconds = np.array(result["seconds"])[:, WARMUP:].mean(axis=0)
                received = np.array(result["received"])[:, WARMUP:].max(axis=0)
                waited = np.array(result["exposed"])[:, WARMUP:].mean(axis=0)
                computing = float(np.median(seconds - waited))
                figures = float(np.median(seconds)), float(np.median(received)), computing
                parts = [np.array(result[name]).T for name in OwnWork._fields]
                work = [OwnWork(*each) for each in zip(*parts, strict=True)]
                yield self._row(rate, hosts, case, "slept", *figures, work)
        for rate, *trained in TRAINED:
            run = recording.read(self._trained(rate, *trained))
            computing = float(np.median([step.computing.mean() for step in run.steps]))
            figures = float(np.median(run.seconds.mean(axis=1))), run.received, computing
            yield self._row(rate, 2, trained, "trained", *figures)

    def _row(
        self,
        rate: str,
        hosts: int,
        case: Sequence[Any],
        computing: str,
        measured: float,
        received: float,
        own_computing: float,
        work: Sequence[OwnWork] = (),
    ) -> Row:
        model, method, density, collective = case
        forecast = self.forecast(model)
        network = self.network(rate)
        network = replace(network, tax=0.0) if computing == "slept" else network
        choice = self._choice(forecast, method, density, collective)
        if work:
            slept = forecast.steps(choice, hosts, len(work))
            steps = [own.in_place_of(step) for own, step in zip(work, slept, strict=True)]
            answer = forecast.answer_for(choice, steps, hosts, network, WARMUP)
        else:
            answer = forecast.answer(choice, hosts, network)
        return Row(
            model,
            computing,
            rate,
            hosts,
            method,
            density,
            choice.collective,
            1000 * measured,
            1000 * answer.step,
            1000 * answer.low,
            1000 * answer.high,
            float(100 * (answer.step / measured - 1)),
            received,
            float(answer.received),
            1000 * answer.computing,
            1000 * own_computing,
        )


def between(low: Network, high: Network, at_low: float, at_high: float, at: float) -> Network:
    """The network of another rate, from fits of a slow one and a fast one; at…: seconds a byte that
    the links are set to.

    A byte takes as many times longer than the link is set to as in the slow network, and no less
    than in the fast one, which the processor may limit. All else is on the line through both.
    """
    share = (at - at_low) / (at_high - at_low)

    def mixed(one: float, other: float) -> float:
        return max(0.0, one + share * (other - one))

    def one_range(least: int) -> Range:
        of_low, of_high = (_range(each, least) for each in (low, high))
        slow, fast = of_low.seconds_per_byte * at / at_low, of_high.seconds_per_byte
        return Range(least, mixed(of_low.latency, of_high.latency), max(slow, fast))

    starts = sorted({each.least for network in (low, high) for each in network.ranges})
    ranges = tuple(one_range(least) for least in starts)
    poll, tax = mixed(low.poll, high.poll), mixed(low.tax, high.tax)
    return Network(ranges, doubling=max(low.doubling, high.doubling), poll=poll, tax=tax)


def _range(network: Network, size: int) -> Range:
    """The range that messages of this size lie in."""
    return [each for each in network.ranges if each.least <= size][-1]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Median and worst error of some rows, and its sign."""
    errors = [row.error_percent for row in rows]
    inside = [row.low_ms <= row.measured_ms <= row.high_ms for row in rows]
    return {
        "rows": len(rows),
        "median size of the error, %": median(map(abs, errors)),
        "worst size of the error, %": max(map(abs, errors)),
        "median error, %": median(errors),
        "too long": int(sum(error > 0 for error in errors)),
        "too short": int(sum(error < 0 for error in errors)),
        "measured within the interval": int(sum(inside)),
    }


def write(rows: Sequence[Row], folder: Path, networks: Mapping[str, Any]) -> None:
    """predict-validation.json and .md. OSError."""
    groups = {
        "all rows": list(rows),
        "slept": [row for row in rows if row.computing == "slept"],
        "trained": [row for row in rows if row.computing == "trained"],
    }
    found = {name: summary(some) for name, some in groups.items() if some}
    record = {
        "measured_on": machine.describe("numba"),
        "summary": found,
        "networks": networks,
        "rows": [asdict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1)
    (folder / "predict-validation.json").write_text(text + "\n", encoding="utf-8")
    (folder / "predict-validation.md").write_text("\n".join(_page(rows, found)) + "\n")


def _page(rows: Sequence[Row], found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "# Predictions beside measurements"
    yield ""
    yield "Written by `python -m dls.predict.validate`; docs/predict.md says what it means."
    yield ""
    heads = list(next(iter(found.values())))
    yield from tables.markdown_head("", *heads)
    for name, values in found.items():
        yield tables.markdown_line(name, *(f"{value:.3g}" for value in values.values()))
    yield ""
    columns = ("model", "computing", "rate", "hosts", "method", "density", "collective")
    heads = [*columns, "measured, ms", "predicted, ms", "interval, ms", "error, %"]
    heads += ["computing measured, ms", "computing predicted, ms"]
    yield from tables.markdown_head(*heads)
    for row in rows:
        interval = f"{row.low_ms:.0f} to {row.high_ms:.0f}"
        numbers = f"{row.measured_ms:.1f}", f"{row.predicted_ms:.1f}", interval
        cells = [str(getattr(row, name)) for name in columns]
        computing = f"{row.measured_computing_ms:.1f}", f"{row.computing_ms:.1f}"
        yield tables.markdown_line(*cells, *numbers, f"{row.error_percent:+.1f}", *computing)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog=usage_name("predict.validate"),
        description="Predictions beside measurements, on hosts that this machine plays itself.",
    )
    words = "where measurements stay until all are there"
    parser.add_argument("--work", type=Path, default=Path("predict-work"), help=words)
    words = "where predict-validation.json and .md are written"
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help=words)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Validate as the command line says. Exit status: 0 done, 2 bad usage."""
    try:
        with output.unheard():
            given = build_parser().parse_args(argv)
            memory.keep_freed()
            validation = Validation(given.work.resolve())
            validation.measure()
            rows = list(validation.rows())
            networks = {
                rate: tomllib.loads(validation._fit(rate).read_text(encoding="utf-8"))
                for rate in FITTED
            }
            write(rows, given.out, networks)
            print(json.dumps(summary(rows), indent=1))
    except (OSError, ValueError) as error:
        print(f"dls.predict.validate: {one_line(described(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
