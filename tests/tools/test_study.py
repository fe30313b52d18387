"""The study: its statistics against numbers known from tables, and runs that are made once, go on,
and are never mixed up.
"""

from __future__ import annotations

import json
import math
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import h5py
import numpy as np
import pytest

from dls.cli import UsageError
from dls.program import sources
from dls.program.sources import State
from dls.study import __main__ as study
from dls.study import experiments, findings, page, processes, provenance, results, sentences
from dls.study import report as study_report
from dls.study.rows import StudyRow
from tests.checkout import commit_all, write
from tests.launch import ROOT

TINY = """
workload = "tiny"
ranks = 1
seeds = [0, 1]
densities = [0.1]
[settings]
model = "mlp"
mlp_widths = [4]
dataset = "synthetic"
synthetic_shape = [1, 4, 4]
synthetic_size = 32
batch_size = 4
steps = 2
threads = 1
backend = "numpy"
diagnose_every = 1
[methods]
dense = { method = "dense", density = 1 }
layerwise-topk = { method = "layerwise-topk" }
"dls(1)" = { method = "dls", dls_steps = 1 }
"""


FIGURES = ("accuracy", "loss", "ms", "kB", "overlap", "spread", "k")
"""What a row of the report lists, seed by seed."""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path / "tiny.toml"


# --- statistics -----------------------------------------------------------------------------------

TABLE = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    9: 2.262,
    10: 2.228,
    30: 2.042,
    120: 1.980,
}
"""Student's t at 97.5 %, as tables print it."""


@pytest.mark.parametrize("freedom", TABLE)
def test_the_width_is_that_of_tables(freedom: int) -> None:
    values = [float(i) for i in range(freedom + 1)]
    half = findings.interval(values)[1]
    assert half / (stdev(values) / math.sqrt(len(values))) == pytest.approx(
        TABLE[freedom], abs=6e-4
    )


def test_an_interval_by_hand() -> None:
    """Of 1, 2, 3, 4, 5: mean 3, deviation √2.5, and t of 4 degrees of freedom."""
    mean, half = findings.interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert half == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    assert findings.interval([7.0]) == (7.0, math.inf)


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = random.Random(3)
    held = 0
    for _ in range(4000):
        mean, half = findings.interval([rng.gauss(10, 2) for _ in range(5)])
        held += abs(mean - 10) <= half
    assert 0.935 <= held / 4000 <= 0.965


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, 1.1, 0.9], "better"),
        ([-1.0, -1.1, -0.9], "worse"),
        ([1.0, -1.1, 0.2], "no difference to be told from chance"),
        ([1.0], "too few seeds to tell"),
    ],
)
def test_verdicts(values: list[float], words: str) -> None:
    assert findings.verdict(values) == words


def row(
    method: str, accuracy: dict[int, float], density: float | None = 0.1, **others: Any
) -> StudyRow:
    """A row as `results.collect` makes them."""
    known = {
        "workload": "w",
        "method": method,
        "density": density,
        "planned": 5,
        "failed": {},
        "commits": ["c"],
        "ranks": 4,
    }
    known |= {"places": ["numpy on h"]}
    figures = {
        "accuracy": list(accuracy.values()),
        "loss": [1.0] * len(accuracy),
        "ms": [1.0] * len(accuracy),
    }
    figures |= {
        "kB": [1.0] * len(accuracy),
        "overlap": [None] * len(accuracy),
        "k": [[3.0, 1.0]] * len(accuracy),
    }
    stated = {
        "density": density or 1,
        "batch_size": 1,
        "lr": 0.1,
        "momentum": 0.9,
        "clip_norm": 0,
        "weight_decay": 0,
    }
    stated |= {"lr_schedule": "cosine"}
    settings = stated | {"model": "mlp", "dataset": "digits", "steps": 7}
    about = {"seeds": list(accuracy), "settings": settings, "repeat": "r"}
    return StudyRow.from_json(known | figures | about | others)


def test_pairs_are_runs_of_one_seed() -> None:
    own, other = row("a", {0: 0.9, 1: 0.8, 3: 0.7}), row("b", {1: 0.75, 2: 0.1, 3: 0.75})
    assert findings.differences(own, other) == pytest.approx({1: 5, 3: -5})


def test_the_split_by_hand() -> None:
    """Of K = 4: three in the first layer beside one, then all beside none; seed 2 has no pair."""
    own = row("a", {0: 0.9, 1: 0.8, 2: 0.7}, k=[[3.0, 1.0], [4.0, 0.0], [2.0, 2.0]])
    other = row("b", {1: 0.9, 0: 0.8}, k=[[0.0, 4.0], [1.0, 3.0]])
    assert findings.split(own, other) == [0.5, 0.0]


def test_differences_by_hand() -> None:
    """Of five pairs: 1, 2, 3, 4, 5 points; and at a second density, where seed 4 is missing, minus
    one point each.
    """
    base = {seed: 0.5 for seed in range(5)}
    rows = [
        row("dense", {0: 0.9}, None),
        row("layerwise-topk", base),
        row("dls(1)", {seed: 0.51 + 0.01 * seed for seed in range(5)}),
        row("layerwise-topk", base, 0.01),
        row("dls(1)", {seed: 0.49 for seed in range(4)}, 0.01),
    ]
    found = findings.comparisons(rows)
    assert [(each.density, each.method, each.against) for each in found] == [
        (density, "dls(1)", "layerwise-topk") for density in (0.1, 0.01, None)
    ]
    first, second, together = found
    assert (first.mean, first.verdict) == (pytest.approx(3), "better")
    assert first.half == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    assert (second.mean, second.verdict) == (pytest.approx(-1), "worse")
    assert together.values == pytest.approx(
        (0, 0.5, 1, 1.5)
    )  # the mean of both, for the seeds that both have


def test_global_is_compared_with_layerwise_and_no_baseline_with_itself() -> None:
    rows = [
        row(name, {0: 0.5, 1: 0.6})
        for name in ("global-topk", "layerwise-topk", "dls(1)", "dls(optimal)")
    ]
    assert {(each.method, each.against) for each in findings.comparisons(rows)} == {
        ("global-topk", "layerwise-topk"),
        ("dls(1)", "layerwise-topk"),
        ("dls(1)", "global-topk"),
        ("dls(optimal)", "layerwise-topk"),
        ("dls(optimal)", "global-topk"),
    }


@pytest.mark.parametrize(("shift", "words"), [(2, (1, 0)), (-2, (0, 1)), (0, (0, 0))])
def test_the_words_follow_the_data(shift: float, words: tuple[int, int]) -> None:
    noise = (0.1, -0.1, 0.05, -0.05, 0)
    own = {seed: 0.5 + (shift + noise[seed]) / 100 for seed in range(5)}
    rows = [
        row(name, {seed: 0.5 for seed in range(5)}) for name in ("layerwise-topk", "global-topk")
    ] + [row("dls(1)", own)]
    told = {
        line.partition("**: ")[0]: line for line in sentences.sentences(findings.comparisons(rows))
    }
    for baseline in ("layerwise-topk", "global-topk"):
        better, worse = (" (w, 0.1)" if count else "" for count in words)
        beginning = (
            f"- **dls(1) against {baseline}**: better in {words[0]}{better}, worse in"
            f" {words[1]}{worse} of 1 cells"
        )
        assert told[f"- **dls(1) against {baseline}"].startswith(beginning)
    width = findings.interval(noise)[1]
    assert (
        f"of up to {max(0, width - shift):.2f} points (w, 0.1)."
        in told["- **dls(1) against global-topk"]
    )
    assert "shortfall" not in told["- **dls(1) against layerwise-topk"]


def test_findings_count_cells_with_all_seeds() -> None:
    def three(method: str, density: float, *accuracy: float) -> StudyRow:
        return row(method, dict(enumerate(accuracy)), density, planned=3)

    rows = [three("layerwise-topk", 0.1, 0.5, 0.6, 0.7), three("dls(1)", 0.1, 0.61, 0.7, 0.79)]
    rows += [three("layerwise-topk", 0.01, 0.5, 0.6, 0.7), three("dls(1)", 0.01, 0.4, 0.7, 0.7)]
    rows += [
        three("layerwise-topk", 0.001, 0.5, 0.6, 0.7),
        three("dls(1)", 0.001, 0.1, 0.2),
    ]  # a seed is missing
    line, chance = sentences.sentences(findings.comparisons(rows))
    assert line.startswith(
        "- **dls(1) against layerwise-topk**: better in 1 (w, 0.1), worse in 0 of 2 cells"
    )
    assert line.endswith("+5.00 points on average, from +0.00 (w, 0.01) to +10.00 (w, 0.1).")
    assert "Of these 2 intervals about 0.1 are expected" in chance


def test_a_method_that_fails_does_not_look_better_for_it() -> None:
    """At 0.001 it failed on two of five seeds, and lost on the others."""
    base, first = {seed: 0.5 for seed in range(5)}, {0: 0.51, 1: 0.52, 2: 0.53, 3: 0.52, 4: 0.51}
    rows = [row("layerwise-topk", base), row("dls(1)", first), row("layerwise-topk", base, 0.001)]
    rows += [row("dls(1)", {0: 0.1, 1: 0.1, 2: 0.1}, 0.001, failed={3: "NaN", 4: "NaN"})]
    line, _ = sentences.sentences(findings.comparisons(rows))
    assert "better in 1 (w, 0.1), worse in 0 of 1 cells" in line
    assert line.endswith("Not counted, as runs failed: w, 0.001: 2 of 5 seeds.")
    rows[-1] = row("dls(1)", {}, 0.001, failed=dict.fromkeys(range(5), "NaN"))
    (line, _), text = (
        sentences.sentences(findings.comparisons(rows)),
        "\n".join(page.lines(rows)),
    )
    assert line.endswith("Not counted, as runs failed: w, 0.001: 5 of 5 seeds.")
    assert (
        "| 0.001 | dls(1) | layerwise-topk | none | 0 of 5, 5 failed | too few seeds to tell |"
        in text
    )


@pytest.mark.parametrize(
    ("planned", "accuracy", "words"),
    [
        (1, {0: 0.5}, "With one seed of each there is no interval."),
        (2, {0: 0.5}, "No comparison has all its seeds."),
        (
            2,
            {0: 0.5, 1: 0.6},
            "- Of these 1 intervals about 0.1 are expected to miss the true difference by chance"
            " alone.",
        ),
    ],
)
def test_the_last_word_says_why_there_is_no_other(
    planned: int, accuracy: dict[int, float], words: str
) -> None:
    rows = [row(name, accuracy, planned=planned) for name in ("layerwise-topk", "dls(1)")]
    assert list(sentences.sentences(findings.comparisons(rows)))[-1] == words


def test_settings_in_which_rows_differ_have_all_their_values() -> None:
    rows = [row("a", {0: 0.5}), row("b", {0: 0.5})]
    rows[1] = replace(rows[1], settings={**rows[1].settings, "lr": 0.2, "clip_norm": 3})
    text = "\n".join(page.lines(rows))
    settings = (
        "4 ranks of 1 images, 7 steps, learning rate 0.1 or 0.2 (cosine schedule), momentum 0.9,"
        " clip norm 0 or 3"
    )
    assert f"{settings}; numpy on h." in text


def test_the_report_is_json_and_names_are_no_formulas(tmp_path: Path) -> None:
    rows = [
        row("a$^$", {0: 0.5}, workload="$_$"),
        row("b", {0: 0.1}, loss=[math.nan]),
        row("c", {0: 0.1}, None, workload="x"),
    ]
    study_report.write(rows, tmp_path)
    found = json.loads(
        (tmp_path / "study.json").read_text(), parse_constant=lambda word: pytest.fail(word)
    )
    assert [each["loss"] for each in found["rows"]] == [[1], [None], [1]]


def test_a_report_of_nothing_and_of_a_part() -> None:
    text = "\n".join(page.lines([row("dense", {}, None)]))
    assert (
        "0 of 5 planned runs are complete. Verdicts on fewer seeds than planned are interim."
        in text
    )
    assert "No method was run at a density of layerwise-topk or global-topk." in text
    assert "not run yet" in text
    rows = [row("layerwise-topk", {0: 0.5}), row("dls(1)", {0: 0.6}, failed={1: "its loss is NaN"})]
    text = "\n".join(page.lines(rows))
    assert "2 of 10 planned runs are complete." in text
    assert "- w, dls(1) at density 0.1, seed 1, failed: its loss is NaN" in text
    assert "1 of 5, 1 failed" in text
    assert (
        "| 0.1 | dls(1) | layerwise-topk | +10.00 | 1 of 5, 1 failed | too few seeds to tell |"
        in text
    )
    assert "not recorded" in text


# --- runs -----------------------------------------------------------------------------------------


def test_a_study_is_run_once_and_reported(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out", tmp_path / "report"
    assert study.main([str(tiny), "--out", str(out), "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "6 of 6: " in printed
    assert "6 of 6 planned runs are complete." in printed
    logs = {path: path.read_text() for path in out.rglob("*.log")}
    assert len(logs) == 6
    assert study.main([str(tiny), "--out", str(out)]) == 0
    assert {path: path.read_text() for path in out.rglob("*.log")} == logs  # nothing was run again
    found = json.loads((report / "study.json").read_text())
    rows = {(row["method"], row["density"]): row for row in found["rows"]}
    assert rows.keys() == {("dense", None), ("layerwise-topk", 0.1), ("dls(1)", 0.1)}
    for row in rows.values():
        assert row["seeds"] == [0, 1]
        assert all(0 <= share <= 1 for share in row["overlap"])
        assert f"`{row['repeat']}`" in (report / "study.md").read_text()
    assert rows["dense", None]["overlap"] == [1, 1]
    (compared,) = found["comparisons"]
    assert found["reported_by"]["packages"]["numpy"] and rows["dense", None]["places"] == [
        f"numpy on {platform.node()}"
    ]
    assert (compared["method"], compared["against"], len(compared["values"])) == (
        "dls(1)",
        "layerwise-topk",
        2,
    )
    own, theirs = rows["dls(1)", 0.1]["accuracy"], rows["layerwise-topk", 0.1]["accuracy"]
    assert compared["mean"] == pytest.approx(100 * (fmean(own) - fmean(theirs)))
    spread = 100 * stdev(rows["dense", None]["accuracy"])
    assert f"{100 * fmean(rows['dense', None]['accuracy']):.2f} ± {spread:.2f}" in printed
    assert (report / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_is_added_to_on_another_machine(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ["--report", str(tmp_path / "report")]
    assert study.main([str(tiny), "--out", str(tmp_path / "one"), *report, "--only=*seed0"]) == 0
    before = json.loads((tmp_path / "report/study.json").read_text())["rows"]
    capsys.readouterr()
    assert study.main([str(tiny), "--out", str(tmp_path / "two"), *report, "--add"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 6 runs are complete already" in printed
    assert "6 of 6 planned runs are complete." in printed
    assert sorted(path.name for path in (tmp_path / "two/tiny").glob("*.log")) == [
        *("dense-seed1.log", "dls(1)-0.1-seed1.log", "layerwise-topk-0.1-seed1.log"),
    ]
    for old, new in zip(
        before, json.loads((tmp_path / "report/study.json").read_text())["rows"], strict=True
    ):
        assert (old["seeds"], new["seeds"]) == ([0], [0, 1])
        assert all(old[name] == new[name][:1] for name in FIGURES)
    assert study.main([str(tiny), "--out", str(tmp_path / "three"), *report, "--add"]) == 0
    assert not (tmp_path / "three/tiny").exists()


def test_a_report_of_other_settings_is_not_added_to(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ["--out", str(tmp_path / "out"), "--report", str(tmp_path / "report")]
    assert study.main([str(tiny), *report]) == 0
    tiny.write_text(TINY.replace("batch_size = 4", "batch_size = 2"))
    assert study.main([str(tiny), *report[:1], str(tmp_path / "new"), *report[2:], "--add"]) == 2
    assert "was run with other settings" in capsys.readouterr().err
    assert study.main([str(tiny), "--out", str(tmp_path / "out"), "--add"]) == 2
    assert "--add needs the report that it adds to: --report FOLDER" in capsys.readouterr().err
    (tmp_path / "report/study.json").write_text("{}")
    assert study.main([str(tiny), *report[:1], str(tmp_path / "new"), *report[2:], "--add"]) == 2
    assert "is no report to add to" in capsys.readouterr().err


def test_the_spread_by_hand() -> None:
    """Thresholds of 1 and e² have logarithms 0 and 2, a standard deviation of 1; equal ones have
    none.
    """
    assert results.spread(np.array([[[1, math.e**2]], [[5, 5]]])) == pytest.approx(0.5)
    assert results.spread(np.array([[[0.0, 0.0]]])) is None


def test_the_command_in_a_row_repeats_that_row(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = experiments.load([tiny])
    rows = {row.method: row for row in results.collect(runs, tmp_path / "out")}
    assert {row.planned for row in rows.values()} == {2}
    program, *arguments = shlex.split(rows["dls(1)"].repeat)
    assert (program, arguments[:2]) == ("python", ["-m", "dls.study"])
    assert study.main([*arguments[2:], "--out", str(tmp_path / "out")]) == 0
    assert "2 of 2 planned runs" in capsys.readouterr().out
    assert study.main([str(tiny), "--report-only", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "2 of 6 planned runs are complete." in printed
    assert "not run yet" in printed


def test_the_command_in_a_row_repeats_no_other(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(
        TINY.replace("seeds = [0, 1]", "seeds = [1, 10]")
        + 'dense-seed = { method = "dense", density = 1 }\n'
    )
    runs = experiments.load([tiny])
    for found in results.collect(runs, tmp_path):
        pattern = shlex.split(found.repeat)[-1].removeprefix("--only=")
        names = {each.cell for each in runs if fnmatchcase(each.name, pattern)}
        assert names == {("tiny", found.density, found.method)}


def test_a_partial_study_reports_on_all_of_it(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file would otherwise lose what an earlier one said; the screen has what was asked for."""
    out = ["--out", str(tmp_path / "out"), "--report", str(tmp_path / "report")]
    for pattern in ("*/dense-*", "*/dls*"):
        assert study.main([str(tiny), *out, f"--only={pattern}"]) == 0
    assert (
        "2 of 2 planned runs are complete."
        in capsys.readouterr().out.rpartition("dls(1)-0.1-seed1")[0]
    )
    assert "4 of 6 planned runs are complete." in (tmp_path / "report" / "study.md").read_text()
    before = (tmp_path / "report" / "study.md").read_bytes()
    assert study.main([str(tiny), "--out", str(tmp_path / "typo"), *out[2:], "--report-only"]) == 2
    assert "typo is no folder; there is nothing to report on" in capsys.readouterr().err
    assert (tmp_path / "report" / "study.md").read_bytes() == before


def test_the_last_words_of_a_log_are_of_the_last_start(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(
        "$ mpirun\ndls.train: old\n$ mpirun\ndls.train: rank 1, step 3: its own\nmpirun: many"
        " words\n"
    )
    assert processes.last_words(log) == "dls.train: rank 1, step 3: its own"
    log.write_text("$ mpirun\ndls.train: old\n$ mpirun\nmpirun: many words\n")
    assert processes.last_words(log) == "it said nothing of its own"


@pytest.mark.parametrize("status", [2, 10, 255])
def test_a_run_that_dies_of_the_request_to_stop_has_not_failed(
    status: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, runs = processes.Stop(), experiments.load([tiny])

    def perform(*_: object) -> int:
        stop.made = True
        return status

    monkeypatch.setattr(processes, "perform", perform)
    assert list(processes.run_all(runs, tmp_path, 1, stop)) == []


def test_two_files_share_no_run(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([str(tiny), str(tiny)]) == 2
    assert (
        capsys.readouterr().err == f"dls.study: {tiny}: tiny/dense-seed0 is named more than once\n"
    )


def test_a_trace_that_is_not_that_of_the_end_is_refused(tiny: Path, tmp_path: Path) -> None:
    run, *_ = experiments.load([tiny])
    assert study.main([str(tiny), "--out", str(tmp_path), f"--only={run.name}"]) == 0
    path = tmp_path / run.name / "trace.h5"
    shutil.copy(path, path.with_name("trace-00000001.h5"))
    with pytest.raises(UsageError, match="several numbers of ranks"):
        results.result(run, tmp_path)
    path.with_name("trace-00000001.h5").unlink()
    with h5py.File(path, "a") as file:
        file["evals/step"][-1] = 1
    with pytest.raises(UsageError, match="lacks the end of its trace"):
        results.result(run, tmp_path)


def test_what_was_cut_off_goes_on(tiny: Path, tmp_path: Path) -> None:
    run, *_ = experiments.load([tiny])
    assert not experiments.is_complete(run, tmp_path)
    assert processes.perform(run, tmp_path, processes.Stop()) == 0
    assert experiments.is_complete(run, tmp_path)
    manifest = next((tmp_path / run.name).glob("checkpoints/*/manifest.json"))
    manifest.unlink()
    assert not experiments.is_complete(run, tmp_path)


def test_other_settings_are_never_reused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--only=*/dense-seed0"]
    assert study.main([str(tiny), *out]) == 0
    tiny.write_text(TINY.replace("batch_size = 4", "batch_size = 8"))
    assert study.main([str(tiny), *out]) == 2
    assert (
        "tiny/dense-seed0 was run with --batch-size 4, not 8; move it away"
        in capsys.readouterr().err
    )


def test_other_ranks_are_never_reused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--only=*/dense-seed0"]
    tiny.write_text(TINY.replace("ranks = 1", "ranks = 2"))
    assert study.main([str(tiny), *out]) == 0
    tiny.write_text(TINY)
    assert study.main([str(tiny), *out, "--report-only"]) == 2
    assert "tiny/dense-seed0 was run on 2 ranks, not 1; move it away" in capsys.readouterr().err


def test_a_run_that_fails_is_counted_and_the_others_go_on(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_text(TINY.replace('method = "dense"', 'method = "dense", lr = 1e38'))
    assert study.main([str(tiny), "--only=*seed0", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert (
        f"tiny/dense-seed0 failed, see {tmp_path / 'out' / 'tiny' / 'dense-seed0.log'}: dls.train:"
        " rank " in printed
    )
    assert "2 of 6 planned runs are complete." in printed  # of the rows that were asked for
    assert "- tiny, dense at density 1, seed 0, failed: rank " in printed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("ranks = 1", ""), "needs ranks"),
        (("steps = 2", ""), "need steps"),
        (('model = "mlp"', 'model = "mlq"'), "unknown model 'mlq'"),
        (('model = "mlp"', "colour = 3"), "colour"),
        (("workload", "workloads"), "needs workload"),
        (("seeds = [0, 1]", "seeds = 3"), "needs seeds, a list"),
        (("ranks = 1", "ranks = 1\nextra = 1"), "no use for extra"),
        (("ranks = 1", "ranks = ["), "cannot read"),
        (("[methods]", "[methods]\nother = 3"), "other"),
        (("[methods]", "[method]"), "needs methods, a table"),
        (("[methods]", '[methods]\n"a/b" = { method = "dls" }'), "'a/b' cannot be a folder's name"),
        (('"tiny"', '"../tiny"'), "'../tiny' cannot be a folder's name"),
        (('"tiny"', '".."'), "'..' cannot be a folder's name"),
        (("ranks = 1", "ranks = 0"), "ranks must be 1 or more"),
        (("ranks = 1", "ranks = true"), "needs ranks, a whole number"),
        (("seeds = [0, 1]", "seeds = [0, 0]"), "tiny/dense-seed0 is named more than once"),
        (
            ("densities = [0.1]", "densities = [0.1, 0.1]"),
            "tiny/layerwise-topk-0.1-seed0 is named more than once",
        ),
        (("densities = [0.1]", "densities = [2]"), "--density 2.0 is outside (0, 1]"),
        (("[settings]", "[settings]\nseed = 3"), "seed cannot stand in settings"),
        (("[settings]", "[settings]\ndensity = 0.5"), "density cannot stand in settings"),
        (('method = "dense", ', 'method = "dense", seed = 3, '), "seed cannot stand in dense"),
        (
            ("densities = [0.1]", 'densities = ["0.1"]'),
            "densities must be a number or a whole number each",
        ),
        (("seeds = [0, 1]", "seeds = [0, 1.5]"), "seeds must be a whole number each"),
        (("seeds = [0, 1]", "seeds = [true]"), "seeds must be a whole number each"),
        (("seeds = [0, 1]", "seeds = []"), "needs seeds, one at least"),
        (("seeds = [0, 1]", f"seeds = {'[' * 5000}"), "cannot read"),
    ],
)
def test_bad_experiments(
    change: tuple[str, str], words: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_text(TINY.replace(*change))
    assert study.main([str(tiny)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dls.study: ") and words in line


BAD_USAGE = (
    ["missing.toml"],
    ["--jobs=0"],
    ["--only=nothing-like-it"],
    ["--any"],
    ["--report=/dev/null/x"],
)


@pytest.mark.parametrize("args", BAD_USAGE)
def test_bad_usage(args: list[str], tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([*args, *([] if "missing.toml" in args else [str(tiny)])]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("library", ["scipy", "matplotlib"])
def test_a_missing_library_shows_before_the_runs(library: str, tiny: Path, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules['{library}'] = None; from dls.study.__main__ import main;"
        " sys.exit(main())"
    )
    command = [sys.executable, "-c", program, str(tiny), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (
        2,
        f"dls.study: the report needs {library}: pip install 'dls[study]'\n",
    )
    assert not (tmp_path / "out").exists()


STUDY = ROOT / "runs" / "study"


@pytest.mark.parametrize(
    "name", ["1-digits-mlp.toml", "2-fashion-lenet.toml", "3-fashion-cnn.toml"]
)
def test_the_committed_experiments_are_whole_and_tuned(name: str) -> None:
    runs, tuning = experiments.load([STUDY / name]), experiments.load([STUDY / "tuning" / name])
    densities = {run.density for run in runs if run.density is not None}
    assert {0.1, 0.01, 0.001} <= densities
    assert len(runs) == 5 * (1 + len(densities) * 4)
    assert not {run.seed for run in runs} & {run.seed for run in tuning}
    shared = ("model", "dataset", "batch_size", "steps", "momentum", "lr_schedule")
    assert len({tuple(run.settings[name] for name in shared) for run in (*runs, *tuning)}) == 1
    assert runs[0].settings["lr"] in {
        run.settings["lr"] for run in tuning if run.settings["method"] == "dense"
    }


def test_more_seeds_are_of_the_same_runs() -> None:
    more, first = (
        experiments.load([STUDY / name])
        for name in ("4-fashion-lenet-more.toml", "2-fashion-lenet.toml")
    )
    assert not {run.seed for run in more} & {run.seed for run in first}
    of = {(run.method, run.density): dict(run.settings) | {"seed": None} for run in first}
    assert all(dict(run.settings) | {"seed": None} == of[run.method, run.density] for run in more)


def test_the_page_says_what_the_committed_report_does() -> None:
    """Every accuracy, and every difference, by its own figures; bold where the verdict says so."""
    found = json.loads((ROOT / "runs" / "results" / "study.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    for each in found["rows"]:
        assert (
            f"{100 * fmean(each['accuracy']):.2f} ± {100 * stdev(each['accuracy']):.2f}" in page
        ), each["repeat"]
    for each in found["comparisons"]:
        if each["density"] is not None:
            figures = f"{each['mean']:+.2f} ± {each['half']:.2f}"
            bold = each["verdict"] in ("better", "worse")
            assert f"| **{figures}** |" in page if bold else f"| {figures} |" in page, each


def test_the_pages_say_what_the_report_on_the_reserve_does() -> None:
    """Each cell that has runs, and the default's differences; README has those at 0.001."""
    found = json.loads(
        (ROOT / "runs" / "results" / "reserve" / "study.json").read_text(encoding="utf-8")
    )
    study_page, readme = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("docs/study.md", "README.md")
    )
    rows = [each for each in found["rows"] if len(each["seeds"]) > 1]
    assert len(rows) >= 13
    for each in rows:
        assert (
            f"{100 * fmean(each['accuracy']):.2f} ± {100 * stdev(each['accuracy']):.2f}"
            in study_page
        ), each["repeat"]
    for each in found["comparisons"]:
        if (
            len(each["values"]) > 1
            and each["density"] is not None
            and each["method"] == "dls(1)"
            and each["workload"] == "lenet"
        ):
            figures = f"{each['mean']:+.2f} ± {each['half']:.2f}"
            assert figures in study_page, each
            if each["density"] == 0.001:
                assert figures.lstrip("+") in readme, each


def test_the_reserve_is_judged_on_seeds_that_chose_nothing() -> None:
    runs = experiments.load(sorted((STUDY / "reserve").glob("*.toml")))
    assert len(runs) == 480
    others = experiments.load([*STUDY.glob("*.toml"), *(STUDY / "tuning").glob("*.toml")])
    assert not {run.seed for run in runs} & ({run.seed for run in others} | set(range(100, 110)))


def test_other_settings_are_named_before_anything_runs(tiny: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert study.main([str(tiny), *out, "--only=*/dls(1)-0.1-seed1"]) == 0  # the last of the six
    before = set((tmp_path / "out").rglob("*"))
    tiny.write_text(TINY.replace("batch_size = 4", "batch_size = 8"))
    assert study.main([str(tiny), *out]) == 2
    assert set((tmp_path / "out").rglob("*")) == before


def _perform(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, statuses: list[int | Exception], started: list[str]
) -> list[str]:
    """The names of the runs that were started, where the first ones end so and the others with
    0.
    """

    def perform(run: experiments.Experiment, out: Path, stop: processes.Stop) -> int:
        started.append(run.name)
        end = statuses[len(started) - 1] if len(started) <= len(statuses) else 0
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(processes, "perform", perform)
    list(processes.run_all(experiments.load([tiny]), Path(), 1, processes.Stop()))
    return started


def test_a_run_that_was_stopped_stops_the_study(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(_perform(tiny, monkeypatch, [], [])) == 6
    assert len(_perform(tiny, monkeypatch, [1, 1], [])) == 6
    assert len(_perform(tiny, monkeypatch, [0, processes.STOPPED], [])) == 2


def test_an_error_starts_no_further_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    with pytest.raises(UsageError, match="no space"):
        _perform(tiny, monkeypatch, [0, UsageError("no space left")], started)
    assert len(started) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_study_with_a_checkpoint_and_it_goes_on(
    number: int, tiny: Path, tmp_path: Path
) -> None:
    longer = TINY.replace("ranks = 1", "ranks = 2").replace("steps = 2", "steps = 100_000")
    tiny.write_text(longer.replace("diagnose_every = 1\n", ""))
    command = [sys.executable, "-m", "dls.study", str(tiny), "--out", str(tmp_path / "out")]
    log = tmp_path / "out/tiny/dense-seed0.log"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        _wait_until(lambda: log.exists() and "/100000 " in log.read_text())
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (
        processes.STOPPED,
        "dls.study: stopped; the same command goes on\n",
    )
    assert [path.name for path in sorted((tmp_path / "out/tiny").iterdir())] == [
        "dense-seed0",
        "dense-seed0.log",
    ]
    (manifest,) = (tmp_path / "out/tiny/dense-seed0/checkpoints").glob("*/manifest.json")
    reached = int(manifest.parent.name.removeprefix("step-"))
    assert 0 < reached < 100_000
    text = tiny.read_text().replace("steps = 100_000", f"steps = {reached + 2}")
    settings = tmp_path / "out/tiny/dense-seed0/config.toml"
    settings.write_text(settings.read_text().replace("steps = 100000", f"steps = {reached + 2}"))
    tiny.write_text(text)
    assert study.main([str(tiny), "--out", str(tmp_path / "out"), "--only=*/dense-seed0"]) == 0
    assert f"from step {reached} on" in log.read_text()


def _wait_until(met: Callable[[], bool]) -> None:
    for _ in range(1200):
        if met():
            return
        time.sleep(0.05)
    pytest.fail("it did not come")


# --- code -----------------------------------------------------------------------------------------


def test_all_that_training_loads_counts() -> None:
    program = (
        "import sys, dls.train, dls.exchange.methods as m; m.load('dls');"
        "print(*(n for n in sys.modules if n[:4] == 'dls.'))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    files = sources.training_files("dls")
    for name in loaded:
        path = name.replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py"} & set(files), name
    assert not any(name.startswith(("dls/study", "dls/inspect", "dls/bench")) for name in files)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Sources of a training, with two methods, a tool and a page beside them."""
    root = tmp_path / "checkout"
    names = (
        "dls/train.py",
        "dls/exchange/methods/own.py",
        "dls/exchange/methods/dense.py",
        "gpu/own.py",
        "reference/README.md",
    )
    write(root, dict.fromkeys((*names, "dls/inspect/page.py"), ""))
    commit_all(root)
    return root


def _head(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "name", ["dls/train.py", "gpu/own.py", "gpu/new.py", "dls/exchange/methods/own.py"]
)
def test_what_a_run_reads_counts_as_changed(name: str, checkout: Path) -> None:
    assert provenance.changed(State("", _head(checkout)), "own", checkout) == []
    with (checkout / name).open("a") as file:
        file.write("# other\n")
    assert provenance.changed(State("", _head(checkout)), "own", checkout) == [name]


NOT_READ = (
    "dls/exchange/methods/dense.py",
    "dls/exchange/methods/new.py",
    "dls/inspect/page.py",
    "reference/README.md",
)


@pytest.mark.parametrize("name", NOT_READ)
def test_what_a_run_does_not_read_does_not_count(name: str, checkout: Path) -> None:
    (checkout / name).write_text("# other\n")
    assert provenance.changed(State("", _head(checkout)), "own", checkout) == []


def test_code_of_which_nothing_is_known(checkout: Path) -> None:
    for commit in ("", _head(checkout) + "+", "0" * 40, "--output=x"):
        assert provenance.changed(State("", commit), "own", checkout) is None


def test_code_that_is_no_commits_is_known_by_its_hash(checkout: Path) -> None:
    (checkout / "dls/exchange/methods/new.py").write_text("one")
    (old,) = sources.states(
        {"commit": f"{_head(checkout)}+{sources.training_hash('new', checkout)}"}
    )
    state = sources.state("new", checkout)
    assert (
        provenance.changed(old, "new", checkout) == provenance.changed(state, "new", checkout) == []
    )
    (checkout / "dls/exchange/methods/new.py").write_text("two")
    assert provenance.changed(old, "new", checkout) == ["files that were of no commit"]
    assert provenance.changed(state, "new", checkout) == ["dls/exchange/methods/new.py"]


def test_every_commit_of_a_run_that_was_gone_on_with_counts(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, *_ = experiments.load([tiny])
    assert study.main([str(tiny), "--out", str(tmp_path), f"--only={run.name}"]) == 0
    with h5py.File(tmp_path / run.name / "trace.h5", "a") as file:
        file.attrs["commit"] = "one two+hash"
        del file.attrs["sources"]  # as of a trace that has its commit alone
    found = {
        (state.commit, state.digest, method): names
        for (state, method), names in provenance.states([run], tmp_path).items()
    }
    assert found == {("one", "", "dense"): [run.name], ("two+hash", "hash", "dense"): [run.name]}
    assert results.result(run, tmp_path).commits == ["one", "two+hash"]


def test_a_damaged_trace_of_a_run_that_starts_afresh_is_no_matter(
    tiny: Path, tmp_path: Path
) -> None:
    run, *_ = experiments.load([tiny])
    (tmp_path / run.name).mkdir(parents=True)
    (tmp_path / run.name / "trace.h5").write_bytes(b"")
    assert (
        study.main([str(tiny), "--out", str(tmp_path), f"--only={run.name}", "--report-only"]) == 0
    )
    assert study.main([str(tiny), "--out", str(tmp_path), f"--only={run.name}"]) == 0
    assert experiments.is_complete(run, tmp_path)


def test_changed_code_is_named_before_anything_runs_unless_any_will_do(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--only=*seed0"]
    assert study.main([str(tiny), *out]) == 0
    monkeypatch.setattr(
        provenance, "changed", lambda state, method, root: ["dls/tasks/task.py", "a", "b", "c", "d"]
    )
    capsys.readouterr()
    assert study.main([str(tiny), *out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "dls.study: code has changed since runs were made (tiny/dense-seed0: since "
    )
    assert "dls/tasks/task.py, a, b and 2 more; tiny/layerwise-topk-0.1-seed0: since " in line
    assert line.endswith(
        "dls/tasks/task.py, a, b and 2 more); move those runs away, or keep them with --any-code"
    )
    for flag in ("--any-code", "--report-only"):
        assert study.main([str(tiny), *out, flag]) == 0
        assert capsys.readouterr().out.startswith(
            "kept, though code has changed: tiny/dense-seed0: since "
        )
    monkeypatch.setattr(provenance, "changed", lambda state, method, root: None)
    assert study.main([str(tiny), *out]) == 0
    assert capsys.readouterr().out.startswith(
        "whether code has changed cannot be told: tiny/dense-seed0: "
    )


def test_a_reader_may_leave_early(tiny: Path, tmp_path: Path) -> None:
    """As `| head` does."""
    command = [
        sys.executable,
        "-m",
        "dls.study",
        str(tiny),
        "--report-only",
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, "")


# --- baselines ------------------------------------------------------------------------------------


def test_a_study_names_its_baselines(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(f'baselines = ["dense", "dls(1)"]\n{TINY}')
    runs = experiments.load([tiny])
    assert {run.baselines for run in runs} == {("dense", "dls(1)")}
    assert {tuple(row.baselines) for row in results.collect(runs, tmp_path)} == {
        ("dense", "dls(1)")
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('"dense"', "baselines must be a list of its methods' names, one at least"),
        ("[]", "baselines must be a list of its methods' names, one at least"),
        ("[3]", "baselines must be a list of its methods' names, one at least"),
        (
            '["dls"]',
            "baselines names 'dls', which is none of its methods, dense, layerwise-topk, dls(1)",
        ),
        ('["dense", "dense"]', "baselines names 'dense' more than once"),
    ],
)
def test_bad_baselines(
    value: str, words: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_text(f"baselines = {value}\n{TINY}")
    assert study.main([str(tiny)]) == 2
    assert capsys.readouterr().err == f"dls.study: {tiny}: {words}\n"


def test_the_report_follows_the_baselines() -> None:
    """dense has a density of its own, and stands beside the others at each of theirs; the last
    baseline is the goal.
    """
    named = {"baselines": ["dense", "a"]}
    own = {seed: 0.6 + 0.01 * seed for seed in range(5)}
    rows = [row("dense", {seed: 0.5 for seed in range(5)}, None, **named)]
    rows += [
        row(method, own, density, **named)
        for density in (0.1, 0.01)
        for method in ("a", "b", "global-topk")
    ]
    found = findings.comparisons(rows)
    pairs = [
        ("a", "dense"),
        *((method, against) for method in ("b", "global-topk") for against in ("dense", "a")),
    ]
    assert list(dict.fromkeys((each.method, each.against) for each in found)) == pairs
    assert [(each.density, each.mean) for each in found[:3]] == [
        (d, pytest.approx(12)) for d in (0.1, 0.01, None)
    ]
    text = "\n".join(page.lines(rows))
    assert (
        "b against a**" in text
        and "shortfall behind a of up to 0.00 points" in text
        and "shortfall behind dense" not in text
    )
    assert "a's own run of the same seed" in text


@pytest.mark.parametrize(
    "folder", [ROOT / "runs" / "results", ROOT / "runs" / "results" / "reserve"]
)
def test_the_committed_report_is_that_of_its_rows(folder: Path) -> None:
    rows = results.read(folder / "study.json")
    assert (folder / "study.md").read_text(encoding="utf-8") == page.page(rows)


@pytest.mark.parametrize(
    "folder", [ROOT / "runs" / "results", ROOT / "runs" / "results" / "reserve"]
)
def test_the_committed_rows_are_read_and_written_without_a_loss(folder: Path) -> None:
    """An older row gets nothing but what it did not know: `spread`, `sources`, `baselines`."""
    found = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    again = json.loads(study_report.to_json(results.read(folder / "study.json")))
    for old, new in zip(found["rows"], again["rows"], strict=True):
        assert new.keys() - old.keys() <= {"spread", "sources", "baselines"}
        assert {name: new[name] for name in old} == old
    assert again["comparisons"] == found["comparisons"]
