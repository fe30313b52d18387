"""Looking into runs: every figure against one worked out by hand, the two forms of output, and what
is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import pytest

from dls.inspect import __main__ as inspect
from dls.inspect.groups import labels
from dls.inspect.reading import load
from dls.inspect.summary import Summary, smooth, summarise, to_json
from dls.record.schema import LAYER_FIELDS, SECONDS, Header
from dls.record.writer import Writer
from tests.launch import Finished, launch

CONFIG = """
method = "{method}"
density = 0.1
dls_steps = 2
model = "mlp"
dataset = "digits"
backend = "numpy"
lr = 0.05
seed = 7
"""
SIZES = (80, 20)
T = TypeVar("T")
Evaluation = tuple[int, float, float]
PHASES = {
    "forward": 1.0,
    "backward": 2.0,
    "select": 0.5,
    "exchange": 0.25,
    "decode": 0.25,
    "update": 0.5,
}
PHASES |= {"adjust": 0.5, "exposed": 4.0, "total": 10.0}
"""Seconds; they leave 1.0 of the total to no phase."""


def header(ranks: int = 2, method: str = "dls", **attributes: Any) -> Header:
    """Two layers, of 80 and 20 values."""
    layers: dict[str, list[Any]] = {name: [1, 1] for name in LAYER_FIELDS}
    layers |= {"name": ["conv1", "linear1"], "kind": ["conv2d", "linear"], "size": [*SIZES]}
    known: dict[str, Any] = {
        "config": CONFIG.format(method=method),
        "world_size": ranks,
        "version": "1.2",
    }
    known |= {"commit": "abc", "hosts": ["left"] * ranks, "started": "2026-01-01T00:00:00+00:00"}
    return Header(known | attributes, layers)


def rows(steps: Sequence[int], ranks: int = 2, **given: Any) -> dict[str, np.ndarray]:
    """Rows of a trace; what is given is spread to its dataset's shape."""
    count = len(steps)
    shapes = {
        "step": (),
        "epoch": (),
        "lr": (),
        "loss": (ranks,),
        "payload_bytes": (ranks,),
        "received_bytes": (ranks,),
    }
    shapes |= dict.fromkeys(("k", "threshold", "residual_norm"), (ranks, 2))
    values = {
        "step": steps,
        "epoch": 0,
        "lr": 0.05,
        "loss": 1.0,
        "payload_bytes": 50,
        "received_bytes": 50 * (ranks - 1),
    }
    values |= {"k": [8, 2], "threshold": [1.0, 2.0], "residual_norm": 0.0} | given
    table = {
        name: np.broadcast_to(np.asarray(values[name]), (count, *shape))
        for name, shape in shapes.items()
    }
    seconds = PHASES | given.get("seconds", {})
    return table | {
        f"seconds/{name}": np.broadcast_to(seconds[name], (count, ranks)) for name in SECONDS
    }


def write(
    path: Path,
    table: Mapping[str, np.ndarray] | None,
    evals: Sequence[Evaluation] = (),
    **about: Any,
) -> Path:
    """A trace file; its folder's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = Writer(path, header(**about))
    if table is not None:
        writer.append("steps", table)
    for each in evals:
        writer.evaluation(*each)
    writer.close()
    return path.parent


def summary(run: Path) -> Summary:
    """What a run comes to."""
    return summarise(load(run))


def made(figures: T | None) -> T:
    """Figures that are there, as something was recorded."""
    assert figures is not None
    return figures


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two ranks, three steps."""
    table = rows(
        [1, 2, 3],
        loss=[[4.0, 2.0], [2.0, 2.0], [1.0, 0.0]],
        payload_bytes=[[100, 60], [50, 50], [40, 60]],
        received_bytes=[[60, 100], [50, 50], [60, 40]],
        k=[[[8, 2], [8, 2]], [[7, 3], [9, 1]], [[4, 6], [9, 1]]],
        threshold=[[[1.0, 4.0], [2.0, 4.0]], [[1.0, 3.0], [2.0, 2.0]], [[0.5, 0.25], [1.0, 1.5]]],
        seconds={
            "total": [[100.0, 80.0], [10.0, 10.0], [10.0, 10.0]],
            "exposed": [[9.0, 9.0], [3.0, 5.0], [2.0, 6.0]],
        },
    )
    return write(
        tmp_path / "mine" / "trace.h5", table, [(1, 0.5, 0.75), (2, 0.4, 0.875), (3, 0.25, 0.8)]
    )


def test_what_the_run_was(run: Path) -> None:
    about = summary(run).run.to_json()
    assert about == {
        "path": str(run),
        "method": "dls",
        "density": 0.1,
        "dls_steps": 2,
        "model": "mlp",
        "dataset": "digits",
        "backend": "numpy",
        "lr": 0.05,
        "seed": 7,
        "ranks": [2],
        "steps": 3,
        "hosts": ["left", "left"],
        "version": "1.2",
        "commit": "abc",
        "started": "2026-01-01T00:00:00+00:00",
        "config": about["config"],
    }
    assert about["config"]["density"] == 0.1


def test_the_curve_and_the_end(run: Path) -> None:
    found = summary(run)
    assert (found.recorded, found.window) == (3, 1)
    assert found.curve.to_json() == {
        "step": [1, 2, 3],
        "loss": [3.0, 2.0, 0.5],
        "accuracy": [0.75, 0.875, 0.8],
        "set_size": [(3.0 + 2.0) / 2, (2.0 + 0.0) / 2, (0.25 + 0.5) / 2],
        "threshold_ratio": [(4.0 + 2.0) / 2, (3.0 + 1.0) / 2, (2.0 + 1.5) / 2],
        "global_share": [None] * 3,
    }
    best = {"best_accuracy": 0.875, "best_step": 2}
    assert found.final.to_json() == {"train_loss": 0.5, "test_loss": 0.25, "accuracy": 0.8} | best


def test_k_of_the_layers(run: Path) -> None:
    assert summary(run).layers.to_json() == {
        "name": ["conv1", "linear1"],
        "kind": ["conv2d", "linear"],
        "size": [80, 20],
        "k_first": [8.0, 2.0],
        "k_rank0_first": [8, 2],
        "ratio_first": [0.1, 0.1],
        "threshold_first": [1.5, 4.0],
        "residual_norm_first": [0.0, 0.0],
        "k_last": [6.5, 3.5],
        "k_rank0_last": [4, 6],
        "ratio_last": [6.5 / 80, 3.5 / 20],
        "threshold_last": [0.75, 0.875],
        "residual_norm_last": [0.0, 0.0],
    }


def test_bytes_against_dense(run: Path) -> None:
    assert made(summary(run).traffic).to_json() == {
        "bytes_per_step": 60.0,
        "dense_bytes_per_step": 400,
        "share_of_dense": 0.15,
        "total_bytes": 80.0 + 50.0 + 50.0,
        "dense_total_bytes": 1200,
        "compression": 400 / 60,
        "received_bytes_per_step": 60.0,
        "ring_bytes_per_step": 400.0,
        "share_of_ring": 0.15,
        "total_received_bytes": 180.0,
        "ring_total_bytes": 1200.0,
        "uploaded_share": 0.1,
    }


def test_time_without_the_first_step(run: Path) -> None:
    timing = made(summary(run).timing)
    assert (timing.steps, timing.seconds["total"], timing.seconds["exposed"]) == (
        2,
        10.0,
        4.0,
    )
    assert timing.seconds["other"] == 1.0
    assert timing.share == {name: seconds / 10 for name, seconds in timing.seconds.items()}
    assert sum(share for name, share in timing.share.items() if name != "total") == pytest.approx(
        1.0
    )


def test_a_single_step_is_no_warm_up(tmp_path: Path) -> None:
    timing = made(summary(write(tmp_path / "trace.h5", rows([1]))).timing)
    assert (timing.steps, timing.seconds["total"]) == (1, 10.0)


def test_a_smoothed_mean_leaves_skipped_steps_out() -> None:
    """Their loss is NaN; 60 rows give a window of three."""
    loss = np.ones(60)
    loss[[10, 20, 21, 22]] = np.nan
    assert np.flatnonzero(np.isnan(smooth(loss))).tolist() == [22]
    assert np.nanmax(smooth(loss)) == 1


def test_smoothing_and_eight_points(tmp_path: Path) -> None:
    """100 steps: a window of 5; the loss is the step's number, so that a trailing mean lags by
    2.
    """
    steps = range(1, 101)
    table = rows(steps, ranks=1, loss=np.array(steps)[:, None])
    found = summary(write(tmp_path / "trace.h5", table, [(50, 0.1, 0.5)], ranks=1))
    assert found.window == 5
    assert found.curve.step == [1, 15, 29, 43, 58, 72, 86, 100]
    assert found.curve.loss == [1.0, 13.0, 27.0, 41.0, 56.0, 70.0, 84.0, 98.0]
    assert found.curve.accuracy == [None] * 4 + [0.5] * 4


def test_thresholds_of_zero(tmp_path: Path) -> None:
    """Above zero against zero is infinite, zero against zero is undefined; JSON has a null for
    both.
    """
    table = rows([1, 2, 3], threshold=[[[0.0, 1.0]] * 2, [[0.0, 0.0]] * 2, [[2.0, 1.0]] * 2])
    folder = write(tmp_path / "trace.h5", table)
    ratio = summary(folder).curve.threshold_ratio
    assert ratio[0] == np.inf
    assert np.isnan(ratio[1])
    assert json.loads(to_json([summary(folder)]))["runs"][0]["curve"]["threshold_ratio"] == [
        None,
        None,
        2.0,
    ]


def test_tables_say_what_is_infinite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = dict.fromkeys(SECONDS, 0.0)
    table = rows(
        [1, 2], threshold=[[[0.0, 1.0]] * 2, [[0.0, 0.0]] * 2], payload_bytes=0, seconds=nothing
    )
    folder = write(tmp_path / "trace.h5", table)
    assert inspect.main([str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "1.0000", "-", "1", "inf"] in lines
    assert ["2", "1.0000", "-", "0", "-"] in lines
    assert ["total", "0.000", "-"] in lines
    assert inspect.main([str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["runs"][0]
    assert (found["traffic"]["compression"], found["timing"]["share"]["total"]) == (None, None)


def test_dense_has_no_density(tmp_path: Path) -> None:
    table = rows([1, 2], k=list(SIZES), threshold=0.0, payload_bytes=400)
    found = summary(write(tmp_path / "trace.h5", table, method="dense"))
    assert (found.run.density, found.run.dls_steps, found.run.config["density"]) == (
        None,
        None,
        0.1,
    )
    assert (made(found.traffic).compression, made(found.traffic).uploaded_share) == (1.0, 1.0)


def test_a_series_is_one_run(tmp_path: Path) -> None:
    """Ten steps on two ranks, then from step 7 on three; the steps that were taken twice count
    once.
    """
    first = rows(range(1, 11), payload_bytes=[100, 200], loss=1.0)
    total = [[50.0] * 3, [20.0] * 3]
    second = rows(
        range(7, 9), ranks=3, payload_bytes=[30, 60, 90], loss=2.0, seconds={"total": total}
    )
    write(tmp_path / "trace.h5", first, [(5, 1.0, 0.5), (10, 1.0, 0.75)])
    write(
        tmp_path / "trace-00000006.h5",
        second,
        [(8, 0.5, 0.625)],
        ranks=3,
        started="2026-02-02T00:00:00+00:00",
    )
    found = summary(tmp_path)
    assert (found.run.ranks, found.run.steps, found.recorded) == ([2, 3], 8, 8)
    assert found.run.started.startswith("2026-01")
    assert found.run.hosts == ["left"] * 3
    assert found.curve.step == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.curve.loss == [1.0] * 6 + [2.0] * 2
    assert found.curve.accuracy == [None] * 4 + [0.5] * 3 + [0.625]
    assert made(found.traffic).total_bytes == 6 * 150 + 2 * 60
    assert (made(found.timing).steps, made(found.timing).seconds["total"]) == (6, (5 * 10 + 20) / 6)
    assert summary(tmp_path / "trace.h5").recorded == 10


def test_a_resumed_file_without_steps_yet(tmp_path: Path) -> None:
    write(tmp_path / "trace.h5", rows([1, 2]))
    write(tmp_path / "trace-00000002.h5", None, ranks=3)
    assert summary(tmp_path).recorded == 2


def test_attributes_may_be_missing(run: Path) -> None:
    with h5py.File(run / "trace.h5", "r+") as file:
        for name in set(file.attrs) - {"schema", "world_size"}:
            del file.attrs[name]
    about = summary(run).run.to_json()
    assert (about["ranks"], about["steps"], about["hosts"]) == ([2], 3, [])
    assert all(about[name] is None for name in ("method", "density", "seed", "version", "started"))
    assert inspect.main([str(run)]) == 0


def test_an_empty_trace_says_what_the_run_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "new" / "trace.h5", None)
    assert inspect.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert ["method", "dls"] in [line.split() for line in out.splitlines()]
    assert out.splitlines()[-1] == "nothing recorded yet"
    assert inspect.main([str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"][0]
    assert (found["recorded"], found["traffic"], found["timing"], found["curve"]["step"]) == (
        0,
        {},
        {},
        [],
    )
    assert inspect.main([str(folder), str(folder)]) == 0
    assert ["bytes", "per", "step", "-", "-"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_tables_of_one_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(run)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["hosts", "left"] in lines
    assert ["best", "accuracy", "87.50%"] in lines
    assert ["1", "3.0000", "75.00%", "2.5", "3"] in lines
    assert ["linear1", "linear", "20", "2.0", "2", "10.000%", "3.5", "6", "17.500%"] in lines
    assert ["linear1", "4", "0.875", "0", "0"] in lines
    assert ["a", "step", "60", "400", "60", "400"] in lines
    assert ["exposed", "4000.000", "40.0%"] in lines


def test_several_runs_side_by_side(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run's folder bears the name of a figure."""
    other = write(
        tmp_path / "dense" / "trace.h5",
        rows([1, 2], threshold=0.0, payload_bytes=400),
        method="dense",
    )
    assert inspect.main([str(run), str(other)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["mine", "dense"]
    for expected in (
        "method dls dense",
        "density 0.1 -",
        "accuracy 80.00% -",
        "train loss 0.5000 1.0000",
        "set size 0.375 0",
        "threshold ratio 1.75 -",
        "bytes per step 60 400",
        "share of dense 15.00% 100.00%",
        "total ms 10000.000 10000.000",
        "exposed ms 4000.000 4000.000",
    ):
        assert expected.split() in lines
    assert inspect.main([str(run), str(other), "--json"]) == 0
    assert [each["run"]["method"] for each in json.loads(capsys.readouterr().out)["runs"]] == [
        "dls",
        "dense",
    ]


def test_runs_of_one_name_stand_under_their_paths(run: Path) -> None:
    assert labels([str(run), "elsewhere/other"]) == ["mine", "other"]
    assert labels([str(run / "trace.h5"), "other"]) == ["mine", "other"]
    assert labels([str(run), "elsewhere/mine"]) == [str(run), "elsewhere/mine"]


def test_a_run_twice_has_two_columns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(run), str(run)]) == 0
    assert ["method", "dls", "dls"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_nothing_is_cut_off_where_the_output_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / ("a[b]" + "x" * 200) / "trace.h5", rows([1]))
    assert inspect.main([str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out


def _bytes(content: bytes) -> Callable[[Path], Any]:
    return lambda path: (path / "trace.h5").write_bytes(content)


def _schema(path: Path) -> None:
    with h5py.File(write(path / "trace.h5", None) / "trace.h5", "r+") as file:
        file.attrs["schema"] = "dls-trace/99"


def _no_group(path: Path) -> None:
    with h5py.File(write(path / "trace.h5", None) / "trace.h5", "r+") as file:
        del file["steps"]


def _other_model(path: Path) -> None:
    write(path / "trace.h5", rows([1]))
    write(path / "trace-1.h5", rows([2]))
    with h5py.File(path / "trace-1.h5", "r+") as file:
        file["layers/size"][0] = 81


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.rmdir(), "no such file"),
    "no trace": (lambda path: None, "holds no trace.h5"),
    "empty file": (_bytes(b""), "trace.h5 is empty"),
    "random bytes": (_bytes(bytes(range(256)) * 9), "cannot be read as HDF5"),
    "other schema": (_schema, "dls-trace/99"),
    "no groups": (_no_group, "not a trace"),
    "not TOML": (lambda path: write(path / "trace.h5", None, config="a = = b"), "not valid TOML"),
    "other model": (_other_model, "different models"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = REFUSED[case]
    folder = tmp_path / "odd"
    folder.mkdir()
    make(folder)
    _check_refusal([str(folder)], words, capsys)


@pytest.mark.parametrize(
    ("args", "words"), [([], "RUN"), (["RUN", "--bad"], "--bad"), (["RUN", "--plot"], "--plot")]
)
def test_bad_usage_in_one_line(
    args: list[str], words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _check_refusal([str(run) if arg == "RUN" else arg for arg in args], words, capsys)


def _check_refusal(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dls.inspect: ")
    assert err.count("\n") == 1
    assert words in err


def test_no_matplotlib(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    _check_refusal([str(run), "--plot", "x.png"], "pip install 'dls[plot]'", capsys)


def test_plot(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra 'plot'")
    dense = write(tmp_path / "dense" / "trace.h5", rows([1, 2], threshold=0.0), method="dense")
    empty = write(tmp_path / "new" / "trace.h5", None)
    for i, runs in enumerate([[run], [dense], [empty], [run, dense], [dense, empty]]):
        file = tmp_path / f"{i}.png"
        assert inspect.main([*map(str, runs), "--plot", str(file)]) == 0
        assert file.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    _check_refusal([str(run), "--plot", str(tmp_path / "x.foo")], "foo", capsys)
    _check_refusal(
        [str(run), "--plot", str(tmp_path / "none" / "x.png")], "there is no folder", capsys
    )


def test_from_another_folder(run: Path, tmp_path: Path) -> None:
    """As a program: tables, JSON, a refusal."""

    def call(*args: str) -> Finished:
        return launch([(0, ["-m", "dls.inspect", *args])], cwd=tmp_path)

    shown, read, refused = call("mine"), call("mine", "mine", "--json"), call("nowhere")
    assert (shown.status, read.status, refused.status) == (0, 0, 2)
    assert "threshold ratio" in shown.out
    assert len(json.loads(read.out)["runs"]) == 2
    assert (refused.out, refused.err.count("\n")) == ("", 1)
    assert (shown.err, read.err) == ("", "")


def test_what_cannot_be_repaired_keeps_no_other_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "c"):
        write(tmp_path / name / "trace.h5", rows([1, 2]), [(2, 0.5, 0.5)])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "trace.h5").write_bytes(b"damaged")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert inspect.main([str(tmp_path), "--repair"]) == 2
    said = capsys.readouterr()
    assert [line.split(" is in order")[0] for line in said.out.splitlines()] == [
        f"{tmp_path}/{name}/trace.h5" for name in "ac"
    ]
    assert str(tmp_path / "b") in said.err
