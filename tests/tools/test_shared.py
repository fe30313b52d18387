"""What the tools share: rows and their JSON, turns, options, networks and variants."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from dls.bench.network import NetworkRow
from dls.bench.step import StepRow
from dls.bench.targets import judge
from dls.cli import UsageError
from dls.tools import networks, numbers, options, plotting, reports, turns, variants
from dls.tools.rows import Row, Spread, Title
from reference import nn
from tests.launch import ROOT


@dataclass(frozen=True)
class Error(Row):
    mean: Annotated[float, Title("")]
    worst_by: Annotated[float, Title("worst by")]


@dataclass(frozen=True)
class Example(Row):
    table: str = field(default="example", init=False)
    step_ms: Annotated[float, Title("step, ms")]
    loss: float | None
    forms: Annotated[Mapping[str, Error], Spread(("a", "b"), Error)]
    predicted: Annotated[Mapping[str, float], Spread(("x", "y"))]
    ratio: Annotated[float | None, Title("step / dense")] = None


WHOLE = {
    "table": "example",
    "step, ms": 1.5,
    "loss": None,
    "a": 0.5,
    "a, worst by": 2.0,
    "x": 3.0,
    "step / dense": 0.25,
}


# --- rows -----------------------------------------------------------------------------------------


def test_a_row_by_its_titles() -> None:
    """None stays where a field must be given, and leaves the row where it need not."""
    forms, predicted = {"a": Error(0.5, 2.0)}, {"x": 3.0}
    row = Example(1.5, None, forms, predicted, 0.25)
    assert row.to_json() == WHOLE
    assert [*row.to_json()] == [*WHOLE]
    short = Example(1.5, None, {}, {})
    assert short.to_json() == {"table": "example", "step, ms": 1.5, "loss": None}


@pytest.mark.parametrize("left_out", [(), ("step / dense",), ("a", "a, worst by"), ("x",)])
def test_a_row_is_read_back(left_out: Sequence[str]) -> None:
    record = {name: value for name, value in WHOLE.items() if name not in left_out}
    assert Example.from_json(record).to_json() == record


@pytest.mark.parametrize("title", ["step, ms", "loss", "a, worst by"])
def test_what_a_row_needs_is_named_where_it_is_missing(title: str) -> None:
    with pytest.raises(KeyError, match=title):
        Example.from_json({name: value for name, value in WHOLE.items() if name != title})


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    reports.write_json([Example(float("nan"), 1.0, {}, {})], tmp_path / "rows.json")
    (record,) = json.loads((tmp_path / "rows.json").read_text(), parse_constant=pytest.fail)
    assert record["step, ms"] is None


COMMITTED = json.loads((ROOT / "runs/results/network-amd-epyc.json").read_text())["rows"]


def test_the_committed_steps_over_networks_are_read_and_written_without_a_loss() -> None:
    assert [NetworkRow.from_json(record).to_json() for record in COMMITTED] == COMMITTED
    assert {*StepRow.from_json(COMMITTED[0]).to_json()} == {*COMMITTED[0]} - {"rate", "hosts"}


def test_targets_by_hand() -> None:
    """Communication of 20 ms can hide behind a backward pass of 50; 10 ms of it are exposed."""
    times = {"forward, ms": 30.0, "backward, ms": 50.0, "select, ms": 1.0, "decode, ms": 1.0}
    about = {"rate": "1gbit", "hosts": 2, "model": "mlp", "ranks": 2, "update, ms": 1.0, "kB": 1.0}

    def row(method: str, step: float, exposed: float) -> NetworkRow:
        shown = {"step, ms": step, "exposed, ms": exposed, "compute, ms": step - exposed}
        return NetworkRow.from_json(about | times | shown | {"method": method})

    rows = [row("dls", 110, 10), row("dls/at-end", 120, 20), row("layerwise-topk", 110, 10)]
    assert list(judge(rows)) == []
    (target,) = judge([*rows, row("global-topk", 100, 1)])
    assert (target.communication, target.hidden) == (0.4, 0.5)
    assert (target.as_layerwise, target.as_bound, target.as_global) == (1, 1.1, 1.1)
    assert target.missed == "exposed / at the end"  # Global Top-k hardly waits, and does not count
    (target,) = judge([*rows, row("global-topk", 100, 10), row("dense", 220, 9)])
    assert (target.missed, target.as_dense) == ("exposed / at the end, step / global", 0.5)


# --- turns ----------------------------------------------------------------------------------------


def test_contenders_take_turns_and_the_warm_up_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "WARM_UP", 2)
    order: list[tuple[str, int]] = []

    def contender(name: str) -> Callable[[int], int]:
        def turn(number: int) -> int:
            order.append((name, number))
            return 10 * number

        return turn

    taken = turns.take({name: contender(name) for name in "ab"}, turns.numbers(2))
    assert order == [(name, number) for number in range(4) for name in "ab"]
    assert taken == {"a": [20, 30], "b": [20, 30]}


# --- options --------------------------------------------------------------------------------------


def test_a_list_keeps_each_value_once_and_says_what_it_takes() -> None:
    parser = argparse.ArgumentParser()
    options.add_densities(parser)
    assert parser.parse_args([]).densities == [0.01, 0.001]
    assert parser.parse_args(["--densities", "0.5, 1,0.5"]).densities == [0.5, 1]
    help_ = " ".join(parser.format_help().split())
    assert "shares of the gradient that are sent (default 0.01,0.001)" in help_


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (options.list_of(options.size, "sizes"), "3,0", "3,0: expected sizes"),
        (options.list_of(options.density, "x"), "0.1,2", r"2: expected a number in \(0, 1\]"),
        (options.list_of(variants.check, "methods"), "topk", "unknown method 'topk'"),
        (options.positive, "0", "0: expected a whole number from 1 up"),
        (options.positive, "1.5", "'1.5': expected a whole number from 1 up"),
        (options.count, "-1", "-1: expected a whole number from 0 up"),
        (options.rate, "inf", "inf: expected a number above 0"),
        (options.threads, "100000", r"100000 is outside \[1, "),
    ],
)
def test_what_an_option_does_not_take(kind: Callable[[str], Any], text: str, words: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        kind(text)


# --- networks, variants, numbers, pictures --------------------------------------------------------


@pytest.mark.parametrize("name", [*networks.LAYERED, "lenet"])
def test_a_network_is_the_one_that_its_settings_train(name: str) -> None:
    network, model = networks.network(name), networks.network(name).build(nn)
    settings = network.settings()
    assert (model.name, model.input_size) == (settings["model"], settings["synthetic_shape"])
    assert networks.layer_sizes(name, nn) == [layer.size for layer in model.layers]
    assert "mlp_widths" not in settings


def test_variants_of_a_method() -> None:
    assert variants.settings_of("dls") == {"method": "dls"}
    assert variants.settings_of("dls/at-end") == {"method": "dls", "overlap": False}
    assert variants.settings_of("dls/512") == {"method": "dls", "bucket_size": 512}
    assert variants.settings_of("dls/dls-reserve=0") == {"method": "dls", "dls_reserve": 0.0}
    for name in ("dls/soon", "dls/method=dense", "dls/nothing=1"):
        with pytest.raises(UsageError):
            variants.settings_of(name)


def test_how_numbers_are_written() -> None:
    assert numbers.percent([0.5]) == "50.00"
    assert numbers.percent([0.5, 0.75]) == "62.50 ± 17.68"
    assert numbers.plus_minus(1, None, "+.1f") == "+1.0"
    assert numbers.cell("1234567") == "1,234,567"
    assert (numbers.cell(0.123456), numbers.cell(3), numbers.or_missing(None)) == (
        "0.123",
        "3",
        "-",
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.foo", "--chart .*x.foo: choose one of .*png"),
        ("none/x.png", "--chart .*x.png: there is no folder"),
        (".", "that is a folder"),
    ],
)
def test_a_picture_that_cannot_be(name: str, words: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra 'plot'")
    plotting.check_picture("--chart", tmp_path / "x.png")
    with pytest.raises(UsageError, match=words):
        plotting.check_picture("--chart", tmp_path / name)
