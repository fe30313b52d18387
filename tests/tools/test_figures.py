"""Figures for print, one look a method, figures as a table, and all runs below a folder."""

from __future__ import annotations

import csv
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dls.inspect import __main__ as inspect
from dls.inspect import finding, groups, pictures, points, reading, sheets
from dls.inspect.panels import over_steps
from dls.tools import drawing
from tests.tools.test_inspect import CONFIG, rows, write

pytest.importorskip("matplotlib", reason="drawing needs the extra 'plot'")

METHODS = ("dense", "global-topk", "layerwise-topk", "dls")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, which a test may change."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def make(tmp_path: Path) -> Path:
    """A folder of four methods with two seeds each, some two levels down; and things that are no
    runs.
    """
    for method in METHODS:
        for seed in (0, 1):
            config = CONFIG.format(method=method).replace("seed = 7", f"seed = {seed}")
            table = rows(range(1, 7), loss=1.0 + seed, payload_bytes=100, seconds={"total": 2.0})
            evals = [(step, 1.0, 0.5 + step / 20 + seed / 100) for step in (2, 4, 6)]
            write(
                tmp_path / "runs" / method / f"{method}-{seed}" / "trace.h5",
                table,
                evals,
                config=config,
            )
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes" / "words.txt").write_text("no run")
    return tmp_path / "runs"


def check_refusal(args: Sequence[Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([*map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dls.inspect: ") and err.count("\n") == 1
    assert words in err


# --- runs below a folder --------------------------------------------------------------------------


def test_all_runs_below_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(folder)]) == 0
    out, err = capsys.readouterr()
    assert (
        "dense (2 seeds) dls (2 seeds) global-topk (2 seeds) layerwise-topk (2 seeds)"
        in " ".join(out.split())
    )
    assert err == ""  # what is no run needs no word


def test_what_cannot_be_read_is_skipped_with_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes" / "trace.h5").write_bytes(b"")
    assert inspect.main([str(folder)]) == 0
    assert capsys.readouterr().err.startswith(
        f"dls.inspect: 1 of the runs found are skipped: {folder}/notes/trace.h5 is empty"
    )
    check_refusal([folder / "notes"], "trace.h5 is empty", capsys)


def test_a_run_has_no_runs_below_it_and_hidden_folders_are_left_alone(folder: Path) -> None:
    run = folder / "dls" / "dls-0"
    write(run / "checkpoints" / "trace.h5", rows([1]))
    write(folder / ".hidden" / "trace.h5", rows([1]))
    assert finding.find([run]) == [(run, True)]
    assert len(finding.find([folder])) == 8


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refusal([tmp_path], "holds no trace.h5, and no folder below it does", capsys)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [str(tmp_path / place / "a-seed0") for place in ("x", "y")]
    assert groups.labels(paths) == ["x/a-seed0", "y/a-seed0"]


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*pictures.OF_GROUPS[:6], "bytes", "time"])
def test_a_figure_has_its_size_and_covers_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    """Of four methods, in a column of a paper: no two texts overlap, and none is cut off."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    found, _ = finding.load_all([folder])
    picture = pictures.named(groups.by_seed(found), name)
    with sheets.style(size=8):
        figure = Figure(figsize=(3.4, 2.2), layout="constrained", dpi=300)
        sheets.draw(picture, figure)
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    (axes,) = figure.axes
    ticks = {
        text
        for axis in (axes.xaxis, axes.yaxis)
        for text in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True))
    }
    named = [
        each for text, each in zip(texts, boxes, strict=True) if text not in ticks
    ]  # ticks beyond the axes are not drawn
    assert len(named) >= 2
    for i, (words, box) in enumerate(named):
        assert (
            box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        ), words
        assert not [other for other, place in named[:i] if box.overlaps(place)], words


def test_a_figure_as_every_kind_of_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("png", "pdf", "svg"):
        file = tmp_path / f"x.{kind}"
        for _ in range(2):  # the same runs make the same file
            before = file.read_bytes() if file.exists() else None
            assert (
                inspect.main(
                    [str(folder), "--figure", "loss", "--plot", str(file), "--size", "3.4x2.2"]
                )
                == 0
            )
            assert before in (None, file.read_bytes())
    assert struct.unpack(">II", (tmp_path / "x.png").read_bytes()[16:24]) == (
        1020,
        660,
    )  # 300 pixels an inch
    pdf = (tmp_path / "x.pdf").read_bytes()
    assert b"/MediaBox [ 0 0 244.8 158.4 ]" in pdf
    assert b"/Subtype /Type0" in pdf and b"/FontFile2" in pdf and b"/Type3" not in pdf  # TrueType
    svg = (tmp_path / "x.svg").read_text()
    assert "<text" not in svg and 'width="244.8pt"' in svg
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--figure", "los", "--plot", "x.png"],
            "there is no 'los'; all are loss, accuracy, ",
        ),
        (["--figure", "loss"], "--figure needs --plot FILE to draw it, or --csv FILE"),
        (["--size", "3x2", "--plot", "x.png"], "--size needs --figure and --plot"),
        (
            ["--figure", "layer-k", "--plot", "x.png"],
            "shows the layers of one method, and these runs are of 4: dense",
        ),
        (["--figure", "global-share", "--plot", "x.png"], "nothing of that was recorded"),
        (["--figure", "loss", "--plot", "x.foo"], "--plot x.foo: choose one of "),
        (["--csv", "trace.h5"], "a table's name ends in .csv"),
        (["--csv", "no/x.csv"], "there is no folder no"),
        *(
            (
                ["--figure", "loss", "--plot", "x.png", f"--size={size}"],
                f"--size {size}: give width and height in inches",
            )
            for size in ("3", "3x", "axb", "0x2", "3x1e9", "100x2", "-3x2", "1..2x2", "nanx2")
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(
    options: list[str],
    words: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    check_refusal([folder, *options], words, capsys)


def test_accuracy_over_all_bytes_and_seconds_until_then(folder: Path) -> None:
    run = reading.load(folder / "dls" / "dls-0")
    assert run.evals["sent_bytes"].tolist() == [200, 400, 600]
    assert run.evals["seconds"].tolist() == [4, 8, 12]


def test_steps_that_were_not_recorded_count_as_the_next_that_was(tmp_path: Path) -> None:
    run = reading.load(
        write(
            tmp_path / "trace.h5",
            rows([3, 6, 9], payload_bytes=[[1], [2], [4]]),
            [(6, 1, 1), (9, 1, 1)],
        )
    )
    assert run.evals["sent_bytes"].tolist() == [9, 21]


def test_the_table_has_every_runs_own_points(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(folder), "--csv", str(tmp_path / "x.csv")]) == 0
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == points.HEADS
    assert {row["figure"] for row in found} >= {
        "loss",
        "accuracy",
        "accuracy-bytes",
        "bytes",
        "time",
        "layer-k",
    }
    own = [
        row for row in found if row["figure"] == "accuracy-bytes" and row["run"].endswith("dls-1")
    ]
    assert [float(row["x"]) for row in own] == pytest.approx([2e-4, 4e-4, 6e-4])
    assert [float(row["y"]) for row in own] == pytest.approx([61, 71, 81])
    assert {(row["group"], row["method"], row["seed"]) for row in own} == {
        ("dls (2 seeds)", "dls", "1")
    }
    assert {(row["x_name"], row["y_name"]) for row in own} == {
        ("handed to MPI by a rank (MB)", "test accuracy (%)")
    }
    parts = {
        row["part"]: float(row["y"])
        for row in found
        if row["figure"] == "bytes" and row["run"].endswith("dls-1")
    }
    assert parts == {"sent": 100, "received": 50, "ring Allreduce": 400}
    capsys.readouterr()
    assert inspect.main([str(folder), "--figure", "loss", "--csv", str(tmp_path / "x.csv")]) == 0
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        assert {row["figure"] for row in csv.DictReader(file)} == {"loss"}


def test_names_of_a_table_are_no_formulas() -> None:
    assert [points.plain(cell) for cell in ("=1+1", "@x", "a\nb", 3)] == ["'=1+1", "'@x", "a b", 3]


# --- looks ----------------------------------------------------------------------------------------


def test_a_method_has_one_colour_wherever_it_is_drawn() -> None:
    alone = {name: drawing.looks([name])[0] for name in (*METHODS, "own", "other-topk")}
    assert len({look.colour for name, look in alone.items() if name in METHODS}) == len(METHODS)
    assert len({look.marker for name, look in alone.items() if name in METHODS}) == len(METHODS)
    for order in (METHODS, METHODS[::-1], ("own", *METHODS, "other-topk")):
        assert drawing.looks(order) == [alone[name] for name in order]


def test_variants_of_a_method_differ_in_dash_or_shade() -> None:
    found = drawing.looks(["dls", "dense", "dls", "dls", "dls"])
    variants = [look for look in found if look.marker == found[0].marker]
    assert len(variants) == 4
    assert len({look.dash for look in variants}) == len({look.colour for look in variants}) == 4


@pytest.mark.parametrize(
    ("name", "method"), [("dls(1)", "dls"), ("dls/at-end", "dls"), ("global-topk", "global-topk")]
)
def test_the_method_of_a_label(name: str, method: str) -> None:
    assert drawing.family(name) == method


@pytest.mark.parametrize("gap", [0.0, 0.1, 0.3])
def test_names_at_the_ends_keep_apart_and_in_order(gap: float) -> None:
    rng = np.random.default_rng(3)
    for heights in (
        rng.random(4),
        np.zeros(4),
        np.ones(4),
        np.array([0.5, 0.5, 0.51, 0.1]),
        np.array([0.2]),
    ):
        placed = over_steps.spread(heights, gap)
        order = np.argsort(heights, kind="stable")
        assert (np.diff(placed[order]) >= gap - 1e-12).all()
        if gap * (len(heights) - 1) <= 1:
            assert placed.min() >= -1e-12 and placed.max() <= 1 + 1e-12
    assert over_steps.spread(np.array([0.2, 0.8]), 0.1).tolist() == pytest.approx([0.2, 0.8])
