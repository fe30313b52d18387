"""`python -m dls.predict`: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dls import backends
from dls.called import usage_name
from dls.cli import Parser, UsageError
from dls.cost import network as networks
from dls.cost import profiles
from dls.cost.network import Network, NetworkError
from dls.cost.store import load_network
from dls.exchange import methods
from dls.predict import here, recording, report
from dls.predict.choices import Wanted, choices
from dls.predict.forecast import Answer, Choice, Forecast
from dls.program import memory, output
from dls.record.files import described, one_line
from dls.tasks import models
from dls.tools import options, plotting
from reference.collectives import COLLECTIVES
from reference.wire import VALUE_BYTES

MOST_HOSTS = 4096
"""Ranks beyond which nothing is predicted."""
DEFAULT = "ethernet-1g"
"""The network where none is named."""
DESCRIPTION = (
    "Replay a recorded step on another network, with other numbers of ranks, methods and densities,"
    " and say which method takes the shortest step there."
)
"""What the command does, for --help."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog=usage_name("predict"), description=DESCRIPTION)
    words = "a run's folder, or a trace file, of at least two ranks"
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help=words)
    _add_here(parser.add_argument_group("without a run"))
    _add_network(parser.add_argument_group("network"))
    _add_methods(parser.add_argument_group("methods"))
    results = parser.add_argument_group("results")
    results.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    words = "also draw the steps to FILE: .png, .pdf, .svg"
    results.add_argument("--plot", type=Path, metavar="FILE", help=words)
    return parser


def _add_here(group: options.Group) -> None:
    words = f"measure a step of this model here: {', '.join(models.names())}"
    group.add_argument("--model", choices=models.names(), metavar="NAME", help=words)
    words = "measure a PyTorch model here; BUILD returns it, and a function that gives a loss"
    group.add_argument("--torch", metavar="MODULE:BUILD", help=words)
    options.add_batch(group)


def _add_network(group: options.Group) -> None:
    words = "hosts with one rank each (default: as many as the run has ranks)"
    group.add_argument("--hosts", type=_hosts, metavar="P", help=words)
    words = (
        f"a file of dls.bench exchange --fit, or a profile: {', '.join(profiles.PROFILES)}"
        f" (default {DEFAULT})"
    )
    group.add_argument("--network", metavar="FILE|NAME", help=words)
    words = "rate of every link, such as 100mbit or 1gbit"
    group.add_argument("--rate", type=_network_type(networks.bits_per_second), help=words)
    words = "seconds that MPI needs for a small message, such as 50us or 0.2ms"
    group.add_argument("--latency", type=_network_type(networks.seconds), help=words)


def _add_methods(group: options.Group) -> None:
    names, collectives = methods.names(), tuple(COLLECTIVES)
    options.add_list(group, "--methods", options.one_of(names), names, "NAME", "methods")
    words = "shares of the gradient that are sent (default: the run's own, 0.01 and 0.001)"
    group.add_argument(
        "--densities", type=options.list_of(options.density, words), metavar="X,…", help=words
    )
    kind = options.one_of(collectives)
    options.add_list(group, "--collectives", kind, collectives, "NAME", "collectives")
    words = "type of the values in messages (default: as in the run)"
    group.add_argument("--value-dtype", choices=tuple(VALUE_BYTES), help=words)
    words = (
        "send neighbouring layers as one message once they hold N values (default: as in the run)"
    )
    group.add_argument("--bucket-size", type=options.count, metavar="N", help=words)


def _hosts(text: str) -> int:
    ranks = options.positive(text)
    if not 2 <= ranks <= MOST_HOSTS:
        raise argparse.ArgumentTypeError(
            f"{text} hosts: nothing is sent among fewer than 2, and {MOST_HOSTS:,} is the most"
        )
    return ranks


def _network_type(convert: options.Convert[float]) -> options.Convert[float]:
    def parse(text: str) -> float:
        try:
            return convert(text)
        except NetworkError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _network(given: argparse.Namespace) -> Network:
    """The network that the options describe. UsageError."""
    if given.network and (given.rate is not None or given.latency is not None):
        raise UsageError("--network says both rate and latency: leave out --rate and --latency")
    if given.network in profiles.PROFILES:
        return profiles.PROFILES[given.network]
    if given.network:
        return load_network(Path(given.network))
    default = profiles.PROFILES[DEFAULT]
    if given.rate is None and given.latency is None:
        return default
    latency = float(default.ranges[0].latency) if given.latency is None else given.latency
    rate = default.rate / profiles.PAYLOAD if given.rate is None else given.rate
    name = f"{networks.rate_words(rate)} and {1e6 * latency:,.0f} µs"
    return profiles.network(rate, latency, name)


def _run(given: argparse.Namespace) -> recording.Run:
    """The run to replay: recorded, or measured here. UsageError."""
    sources = [given.run, given.model, given.torch]
    if sum(each is not None for each in sources) != 1:
        raise UsageError(
            "give the folder of a run, or --model NAME, or --torch MODULE:BUILD: one of them"
        )
    if given.run is not None:
        return recording.read(given.run)
    if given.torch is not None:
        return here.of_torch(given.torch)
    return here.of_model(given.model, given.batch)


def _do(given: argparse.Namespace) -> None:
    network = _network(given)
    if given.plot:
        plotting.check_picture("--plot", given.plot)
    run = _run(given)
    ranks = given.hosts or run.ranks
    forecast = Forecast(run, _backend(run))
    wanted = Wanted(
        given.methods, given.densities, given.collectives, given.value_dtype, given.bucket_size
    )
    every = choices(forecast.recorded, run.config, wanted)
    answers = [_answer(forecast, choice, every, ranks, network) for choice in every]
    answers.sort(key=lambda answer: answer.step)
    about = report.About(run, ranks, network)
    if given.json:
        print(report.to_json(about, answers))
    else:
        report.show(about, answers)
    if given.plot:
        from dls.predict import picture

        picture.draw(about, answers, given.plot)


def _answer(
    forecast: Forecast, choice: Choice, every: Sequence[Choice], ranks: int, network: Network
) -> Answer:
    """A choice's answer, with its break-even against dense where that takes part."""
    answer = forecast.answer(choice, ranks, network)
    dense = next((each for each in every if each.method == report.DENSE), None)
    if dense is None or choice == dense:
        return answer
    return report.with_break_even(answer, forecast.break_even(choice, dense, ranks, network))


def _backend(run: recording.Run) -> backends.Backend:
    """The run's backend, or the default one where that cannot be loaded here."""
    name = str(run.config.get("backend", backends.default()))
    try:
        backend = backends.load(name)
    except backends.BackendMissing:
        backend = backends.load(backends.default())
    memory.keep_freed()
    backend.ops.set_threads(int(run.config.get("threads", 0)) or 1)
    return backend


def main(argv: list[str] | None = None) -> int:
    """Predict as the command line says. Exit status: 0 done, 2 bad usage or input."""
    try:
        with output.unheard():
            _do(build_parser().parse_args(argv))
    except (OSError, ValueError) as error:
        print(f"dls.predict: {one_line(described(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
