"""What an exchange moves: the figures of docs/cluster.md, and traces from before received bytes
were recorded.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dls import traffic
from dls.inspect import __main__ as inspect
from dls.inspect.reading import load
from dls.inspect.summary import summarise
from dls.record import reader
from dls.record.repair import go_on
from dls.record.schema import UNKNOWN, columns_of
from reference import methods, wire
from tests.launch import ROOT
from tests.tools.test_inspect import rows, write


def ring(values: int, ranks: int) -> list[int]:
    """Bytes that each rank receives in a ring Allreduce, piece by piece: P − 1 to be summed, then P
    − 1 sums to be told.
    """
    pieces = [len(piece) for piece in np.array_split(np.arange(values), ranks)]
    received = [0] * ranks
    for turn in range(2 * (ranks - 1)):
        for rank in range(ranks):
            received[rank] += 4 * pieces[(rank - 1 - turn) % ranks]
    return received


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_a_ring_piece_by_piece(ranks: int) -> None:
    for received in ring(420, ranks):
        assert received == traffic.ring_bytes(420, ranks)
    assert sum(ring(421, ranks)) / ranks == pytest.approx(traffic.ring_bytes(421, ranks), abs=1)


@pytest.mark.parametrize("value_dtype", wire.VALUE_BYTES)
@pytest.mark.parametrize("density", traffic.DENSITIES)
def test_more_than_a_ring_from_the_first_rank_on_that_is_told(
    density: float, value_dtype: str
) -> None:
    n = 1_000_000
    first = traffic.break_even(n, density, value_dtype)
    message = wire.payload_size(n, methods.budget(n, density), value_dtype)
    for ranks, more in ((first - 1, False), (first, True)):
        received, whole = message * (ranks - 1), 8 * n * (ranks - 1) / ranks
        assert (received > whole) is more
        assert traffic.share_of_ring(n, density, ranks, value_dtype) == pytest.approx(
            received / whole
        )


def test_everything_costs_more_from_two_ranks_on() -> None:
    """At density 1 a message holds indices as well."""
    assert traffic.break_even(1000, 1.0) == 2


def test_the_page_has_these_figures() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert "\n".join(traffic.table()) in text
    limits = [
        f"{traffic.break_even(traffic.VALUES, density, 'bfloat16'):,}"
        for density in traffic.DENSITIES
    ]
    assert f"rises to {limits[0]}, {limits[1]}, {limits[2]} and {limits[3]} ranks" in re.sub(
        r"\s+", " ", text
    )


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (1_234_567, "1.23 MB"),
        (8e18, "8000.00 PB"),
    ],
)
def test_bytes_for_people(count: float, words: str) -> None:
    assert traffic.readable(count) == words


def older(folder: Path) -> Path:
    """As a trace was before received bytes were recorded."""
    with h5py.File(
        write(folder / "trace.h5", rows([1, 2]), [(2, 0.5, 0.5)]) / "trace.h5", "r+"
    ) as file:
        del file["steps/received_bytes"]
    return folder


def test_a_trace_without_received_bytes_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = older(tmp_path / "old")
    assert (reader.read(folder / "trace.h5").steps["received_bytes"] == UNKNOWN).all()
    found = summarise(load(folder)).traffic
    assert found is not None
    assert np.isnan([found.received_bytes_per_step, found.share_of_ring]).all()
    assert (found.bytes_per_step, found.ring_bytes_per_step) == (50, 400)
    for options in ([], ["--json"], ["--html", str(tmp_path / "x.html")]):
        assert inspect.main([str(folder), *options]) == 0
    assert "nan" not in capsys.readouterr().out.lower()


def test_a_run_goes_on_with_an_older_trace(tmp_path: Path) -> None:
    folder = older(tmp_path / "old")
    header = replace(reader.read(folder / "trace.h5").header, columns=columns_of())
    writer = go_on(folder, 1, header)
    writer.append("steps", rows([2], received_bytes=7))
    writer.close()
    assert reader.read(folder / "trace.h5").steps["received_bytes"].tolist() == [
        [UNKNOWN] * 2,
        [7, 7],
    ]


def test_one_rank_receives_nothing(tmp_path: Path) -> None:
    found = summarise(load(write(tmp_path / "trace.h5", rows([1, 2], ranks=1), ranks=1))).traffic
    assert found is not None
    assert (found.received_bytes_per_step, found.ring_bytes_per_step) == (0, 0)
    assert np.isnan(found.share_of_ring)


@pytest.mark.parametrize("value", [3, "one text", [1, 2]])
def test_sources_that_are_no_list_of_texts_do_not_count(value: object, tmp_path: Path) -> None:
    folder = write(tmp_path / "x" / "trace.h5", rows([1, 2]), [(2, 0.5, 0.5)])
    with h5py.File(folder / "trace.h5", "r+") as file:
        file.attrs["sources"], file.attrs["hosts"] = value, value
    attributes = reader.read(folder / "trace.h5").header.attributes
    assert "sources" not in attributes
    assert "hosts" not in attributes
    assert inspect.main([str(folder)]) == 0
