"""The command line of `python -m dls.theory`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from threadpoolctl import threadpool_limits

from dls import theory
from dls.called import usage_name
from dls.cli import Parser
from dls.program import output
from dls.record.files import described, one_line
from dls.tasks import data
from dls.tasks.batches import Batches
from dls.theory import errors, networks, picture, recording, tables, variance
from dls.theory.rows import RatioRow, SettingsRow
from dls.theory.variance import Plan
from dls.tools import options, plotting, reports
from dls.tools.rows import Row
from reference import methods

NETWORKS = [*networks.CHAINS, "equal" + networks.RAW, "mlp", "cnn", "vgg16"]
"""The networks whose variances are measured unless others are named."""
NONE = "none"
"""In the place of networks: none of them."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m dls.theory`."""
    description = (theory.__doc__ or "").split("\n\n")[1]
    parser = Parser(prog=usage_name("theory"), description=description)
    _add_variance_options(parser)
    _add_property_options(parser)
    _add_data_options(parser)
    reports.add_options(parser)
    return parser


def _add_variance_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("gradient variances (Eq. 8, Eq. 9, the corrected form)")
    words = (
        f"networks whose variances are measured, of {', '.join(networks.names())}; {networks.RAW}"
        " behind one: with images from 0 up instead of centred ones"
        " (default: all chains, mlp, cnn, vgg16)"
    )
    type_ = options.list_of(networks.check, "names of networks")
    group.add_argument("--models", type=type_, default=NETWORKS, metavar="NAME,…", help=words)
    words = "networks of a name, each with other weights"
    options.add_number(group, "--seeds", options.positive, 4, "N", words)
    words = "mini-batches of a measurement"
    options.add_number(group, "--batches", options.positive, 2, "N", words)
    words = "images of a mini-batch"
    options.add_number(group, "--batch-size", options.positive, 16, "N", words)
    words = "numbers of training steps after which is measured, beside 0"
    options.add_list(group, "--steps", options.count, [20], "N", words)
    words = "learning rate of plain SGD"
    options.add_number(group, "--lr", options.rate, 0.005, "X", words)


def _add_property_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("repeated adjustments (Property 1, Property 2)")
    words = (
        "networks on whose gradients Algorithm 2 is repeated"
        f" (default mlp,cnn; {NONE}: it is not measured)"
    )
    group.add_argument(
        "--property-models",
        type=_property_models,
        default=["mlp", "cnn"],
        metavar="NAME,…",
        help=words,
    )
    options.add_densities(group, (0.1, 0.01, 0.001))
    words = "training steps of the run whose gradients are taken"
    options.add_number(group, "--record", options.positive, 30, "N", words)
    words = "largest number of adjustments of one gradient"
    options.add_number(group, "--adjustments", options.positive, 400, "N", words)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data and picture")
    words = "images (default %(default)s)"
    group.add_argument("--dataset", choices=data.names(), default="digits", help=words)
    words = "folder that holds the dataset's files"
    group.add_argument("--data-dir", type=Path, metavar="FOLDER", help=words)
    words = "also draw the figures to FILE: .png, .pdf, .svg"
    group.add_argument("--plot", type=Path, metavar="FILE", help=words)


def _property_models(text: str) -> list[str]:
    return [] if text == NONE else options.list_of(networks.check, "names of networks")(text)


def measure(given: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of all tables (`dls.theory.rows`)."""
    steps = tuple(sorted({0, *given.steps}))
    dataset = data.load(given.dataset, given.data_dir)
    plan = Plan(dataset, given.seeds, given.batches, given.batch_size, steps, given.lr)
    _check(given, plan)
    yield _settings(given, plan)
    ratios: list[RatioRow] = []
    for name in given.models:
        _show_progress(f"variances of {name}")
        for row in variance.measure(name, plan):
            ratios.append(row)
            yield row
    yield from errors.summarise(ratios)
    for name in given.property_models:
        for density in given.densities:
            _show_progress(f"adjustments of {name}, density {density:g}")
            yield from recording.measure(name, plan, density, given.record, given.adjustments)


def _settings(given: argparse.Namespace, plan: Plan) -> SettingsRow:
    return SettingsRow(
        record=given.record,
        dataset=plan.dataset.name,
        seeds=plan.seeds,
        batches=plan.batches,
        batch_size=plan.batch_size,
        steps=list(plan.steps),
        lr=plan.lr,
    )


def _check(given: argparse.Namespace, plan: Plan) -> None:
    """ValueError, before any measuring, for what cannot be built or has no budget."""
    Batches(plan.dataset, 0, plan.batch_size, 0, 1)
    for name in given.models:
        networks.build(name, plan.dataset, 0)
    for name in given.property_models:
        size = networks.build(name, plan.dataset, 0).parameters.size
        for density in given.densities:
            methods.budget(size, density)


def _show_progress(words: str) -> None:
    """What is being measured, for someone who watches a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{words} …", end="", file=sys.stderr, flush=True)


def _clear_progress() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


def _prepare(given: argparse.Namespace) -> None:
    """What cannot be written shows before the minutes of measuring."""
    reports.prepare(given)
    if given.plot:
        plotting.check_picture("--plot", given.plot)


def _finish(given: argparse.Namespace, rows: Sequence[Row]) -> None:
    tables.print_all(rows)
    if given.json:
        reports.write_json(rows, given.json)
    if given.plot:
        picture.draw(rows, given.plot)
    if given.report:
        print(f"written to {reports.write(given.report, 'theory', 'numpy', rows)}")


def _do(given: argparse.Namespace) -> None:
    _prepare(given)
    with threadpool_limits(1):
        rows = list(measure(given))
    _clear_progress()
    _finish(given, rows)


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says. Exit status: 0 done, 2 bad usage."""
    try:
        with output.unheard():
            _do(build_parser().parse_args(argv))
    except (OSError, ValueError) as error:
        print(f"dls.theory: {one_line(described(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
