"""Benchmarks of several ranks: rank 0 speaks for all, and what is measured is what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reference import wire
from tests.conftest import lines
from tests.launch import launch, outcomes


def bench(ranks: int, folder: Path, *args: str):
    return launch([(ranks, ["-m", "dls.bench", *args])], folder)


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_exchange_alone(ranks: int, tmp_path: Path) -> None:
    done = bench(
        ranks,
        tmp_path,
        "exchange",
        "--sizes",
        "20000",
        "--densities",
        "0.01",
        "--steps",
        "2",
        "--json",
        "rows.json",
    )
    assert done.status == 0, done.err
    assert not lines(done.err)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["values"], row["density"], row["ranks"]) == ("20000", 0.01, ranks)
    assert row["message, kB"] == wire.payload_size(20000, 200) / 1000
    received = row["message, kB"] * (ranks - 1)
    assert row["MB/s received"] == pytest.approx(received / row["bytes, ms"])
    assert row["with coding / Allreduce"] == pytest.approx(
        row["with coding, ms"] / row["Allreduce, ms"]
    )


def test_steps_of_every_method(tmp_path: Path) -> None:
    args = [
        "--networks",
        "resnet20",
        "--batch",
        "2",
        "--steps",
        "1",
        "--methods",
        "dense,dls/1,dls/at-end",
    ]
    done = bench(2, tmp_path, "step", *args, "--json", "rows.json")
    assert done.status == 0, done.err
    assert not lines(done.err)
    dense, layer_by_layer, at_end = json.loads((tmp_path / "rows.json").read_text())
    assert dense["kB"] == 4 * 269.722
    announced = 4 * 39 / 1000  # k of every layer
    for row in (layer_by_layer, at_end):
        assert 4 * 2.697 < row["kB"] - announced < 5.2 * 2.697
    assert layer_by_layer["kB / dense"] == pytest.approx(layer_by_layer["kB"] / dense["kB"])


REFUSED = {
    "step --methods dls/soon": "--bucket-size soon: expected a whole number",
    "step --methods topk": "unknown method 'topk'",
    "step --networks alexnet": "alexnet: expected networks",
    "exchange --sizes 0": "0: expected values",
    "exchange --json no/folder/rows.json": "cannot write no/folder/rows.json",
}


def test_refusals_are_one_line_from_one_rank(tmp_path: Path) -> None:
    happened = outcomes(3, "dls.bench.__main__", list(REFUSED), tmp_path)
    for outcome, words in zip(happened, REFUSED.values(), strict=True):
        assert outcome.statuses == [2, 2, 2]
        (line,) = lines(outcome.err)
        assert line.startswith("dls.bench: ")
        assert words in line
