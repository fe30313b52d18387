"""Output that nobody reads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest

from dls.bench.__main__ import main as bench
from dls.inspect.__main__ import main as inspect
from dls.program import output
from dls.record.writer import Writer
from dls.theory.__main__ import main as theory
from tests.tools.test_inspect import header

SMALL = {
    bench: "select --sizes 1000 --densities 0.1 --steps 1 --backend numpy --threads 1",
    theory: "--models mlp --property-models none --seeds 1 --batches 1 --steps 0",
}


@contextmanager
def left() -> Iterator[None]:
    """stdout is a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream, redirect_stdout(stream):
        yield


@contextmanager
def full() -> Iterator[None]:
    """stdout is a file on a full disk."""
    with open("/dev/full", "w", encoding="utf-8") as stream, redirect_stdout(stream):
        yield


def test_a_block_goes_on_when_its_reader_has_left() -> None:
    with left():
        with output.unheard():
            assert output.heard()
            print("a line", flush=True)
            assert not output.heard()
            print("more" * 100_000)
        print("what is behind the block goes nowhere, too", flush=True)


def test_what_is_left_in_the_buffer_is_no_error_either() -> None:
    with left():
        with output.unheard():
            print("a line")
        sys.stdout.flush()


def test_a_full_disk_is_an_error_unless_words_do_not_matter() -> None:
    with full(), output.unheard(OSError):
        print("a line", flush=True)
        assert not output.heard()
    with pytest.raises(OSError, match="No space left"), full(), output.unheard():
        print("a line")


def test_a_stream_that_was_closed_before_the_program_began() -> None:
    with redirect_stdout(None):
        with output.unheard():
            print("a line", flush=True)
            assert not sys.stdout.isatty()
        assert sys.stdout is None


def test_what_reads_and_measures_ends_well_without_a_reader(tmp_path: Path) -> None:
    for number, (main, args) in enumerate(SMALL.items()):
        file = tmp_path / f"{number}.json"
        with left():
            assert main([*args.split(), "--json", str(file)]) == 0
        assert json.loads(file.read_text())


def test_a_run_that_goes_on_is_followed_no_longer_than_somebody_reads(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "trace.h5", header())
    with left():
        assert inspect([str(tmp_path), "--follow"]) == 0
    writer.close()
