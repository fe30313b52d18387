"""The command line: what is asked for, and in which order it is done."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from threadpoolctl import threadpool_limits

from dls import theory
from dls.called import usage_name
from dls.cli import Parser, UsageError
from dls.program import output
from dls.record.files import described, one_line
from dls.tasks import data
from dls.tasks.batches import Batches
from dls.theory import networks, properties, report, variance
from dls.theory.variance import Plan, Row
from dls.tools import reports
from reference import methods

T = TypeVar("T")

NETWORKS = [*networks.CHAINS, "equal/raw", "mlp", "cnn", "vgg16"]


def _list_of(convert: Callable[[str], T]) -> Callable[[str], list[T]]:
    """An option's type: values with commas between them, none twice."""

    def parse(text: str) -> list[T]:
        return list(dict.fromkeys(convert(item.strip()) for item in text.split(",")))

    return parse


def _number(kind: Callable[[str], T], holds: Callable[[T], bool], words: str) -> Callable[[str], T]:
    """An option's type: a number for which `holds`."""

    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {words}") from None
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text}: expected {words}")
        return value

    return parse


_POSITIVE = _number(int, lambda x: 1 <= x < 2**31, "a whole number from 1 up")
_NOT_NEGATIVE = _number(int, lambda x: 0 <= x < 2**31, "whole numbers from 0 up")
_DENSITY = _number(float, lambda x: 0 < x <= 1, "numbers in (0, 1]")
_RATE = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")


def _network(text: str) -> str:
    try:
        networks.check(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m dls.theory`."""
    parser = Parser(prog=usage_name("theory"), description=(theory.__doc__ or "").split("\n\n")[1])
    add = parser.add_argument
    words = (
        f"networks whose variances are measured, of {', '.join(networks.names())}; {networks.RAW}"
        " behind one: "
    )
    words += "images from 0 up instead of centred ones (default: all chains, mlp, cnn, vgg16)"
    add("--models", type=_list_of(_network), default=NETWORKS, metavar="NAME,…", help=words)
    add(
        "--seeds",
        type=_POSITIVE,
        default=4,
        metavar="N",
        help="networks of other weights, per name (default %(default)s)",
    )
    add(
        "--batches",
        type=_POSITIVE,
        default=2,
        metavar="N",
        help="mini-batches of a measurement (default %(default)s)",
    )
    add(
        "--batch-size",
        type=_POSITIVE,
        default=16,
        metavar="N",
        help="images of a mini-batch (default %(default)s)",
    )
    words = "measure after so many training steps, and at initialisation in any case (default 20)"
    add("--steps", type=_list_of(_NOT_NEGATIVE), default=[20], metavar="N,…", help=words)
    add(
        "--lr",
        type=_RATE,
        default=0.005,
        metavar="X",
        help="learning rate of plain SGD (default %(default)s)",
    )
    words = (
        "networks on whose gradients Algorithm 2 is repeated (default mlp,cnn; none: not at all)"
    )
    add(
        "--property-models",
        type=_properties_of,
        default=["mlp", "cnn"],
        metavar="NAME,…",
        help=words,
    )
    words = "densities there (default 0.1,0.01,0.001)"
    add(
        "--densities",
        type=_list_of(_DENSITY),
        default=[0.1, 0.01, 0.001],
        metavar="X,…",
        help=words,
    )
    add(
        "--record",
        type=_POSITIVE,
        default=30,
        metavar="N",
        help="training steps of the run there (default %(default)s)",
    )
    add(
        "--adjustments",
        type=_POSITIVE,
        default=400,
        metavar="N",
        help="most adjustments of one gradient (default %(default)s)",
    )
    add("--dataset", choices=data.names(), default="digits", help="images (default %(default)s)")
    add("--data-dir", type=Path, metavar="FOLDER", help="folder that holds the dataset's files")
    add("--plot", type=Path, metavar="FILE", help="draw them: .png, .pdf, .svg")
    reports.add_options(parser)
    return parser


def _properties_of(text: str) -> list[str]:
    return [] if text == "none" else _list_of(_network)(text)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of all tables (`table`: settings, ratio, error, fixed, run); their modules
    name the columns.
    """
    steps = tuple(sorted({0, *options.steps}))
    dataset = data.load(options.dataset, options.data_dir)
    plan = Plan(dataset, options.seeds, options.batches, options.batch_size, steps, options.lr)
    _check(options, plan)
    yield {"table": "settings", "record": options.record} | {
        **vars(plan),
        "dataset": dataset.name,
        "steps": list(steps),
    }
    ratios = []
    for name in options.models:
        _progress(f"variances of {name}")
        for row in variance.measure(name, plan):
            ratios.append(row)
            yield row
    yield from variance.summarise(ratios)
    for name in options.property_models:
        for density in options.densities:
            _progress(f"adjustments of {name}, density {density:g}")
            yield from properties.measure(name, plan, density, options.record, options.adjustments)


def _check(options: argparse.Namespace, plan: Plan) -> None:
    """ValueError, before any measuring, for what cannot be built or has no budget."""
    Batches(plan.dataset, 0, plan.batch_size, 0, 1)
    for name in options.models:
        networks.build(name, plan.dataset, 0)
    for name in options.property_models:
        size = networks.build(name, plan.dataset, 0).parameters.size
        for density in options.densities:
            methods.budget(size, density)


def _progress(words: str) -> None:
    """What is being measured, for someone who watches a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{words} …", end="", file=sys.stderr, flush=True)


def _prepare(options: argparse.Namespace) -> None:
    """What cannot be written shows before the minutes of measuring."""
    reports.prepare(options)
    if options.plot:
        report.check_plot(options.plot)


def _finish(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    report.print_all(rows)
    if options.json:
        options.json.write_text(
            json.dumps(rows, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
    if options.plot:
        report.draw(rows, options.plot)
    if options.report:
        print(f"written to {reports.write(options.report, 'theory', 'numpy', rows)}")


def _do(options: argparse.Namespace) -> None:
    _prepare(options)
    with threadpool_limits(1):
        rows = list(measure(options))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    _finish(options, rows)


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says. Exit status: 0 done, 2 bad usage."""
    try:
        with output.unheard():
            _do(build_parser().parse_args(argv))
    except (OSError, ValueError) as error:
        return _refuse(described(error))
    return 0


def _refuse(words: str) -> int:
    print(f"dls.theory: {one_line(words)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
