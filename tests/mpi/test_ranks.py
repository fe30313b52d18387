"""A run resumed on another number of ranks: residuals keep their mean, k its budget, data its place, the trace each step once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dls import checkpoint, trace
from dls.batches import Batches, Position
from dls.data import load
from dls.inspect import series
from reference import ranks
from tests.conftest import lines
from tests.launch import launch
from tests.mpi.test_bits import loaded

METHODS = ("dense", "global-topk", "layerwise-topk", "dls", "dls --dls-steps optimal --density-warmup 9 --nesterov --augment")
COMMON = "--density 0.02 --batch-size 12 --threads 1 --backend numpy --mlp-widths 20,10"


def train_all(ranks_now: int, folder: Path, arguments: list[str], program: str = "many.py") -> None:
    done = launch([(ranks_now, [Path(__file__).with_name(program), *arguments])], folder)
    assert done.status == 0, done.err


@pytest.mark.parametrize(("old", "new"), [(1, 3), (2, 4), (3, 2), (4, 1)])
def test_what_the_new_ranks_start_from(old: int, new: int, tmp_path: Path) -> None:
    outs = {method: tmp_path / str(number) for number, method in enumerate(METHODS)}
    train_all(old, tmp_path, [f"{COMMON} --method {method} --steps 5 --out {out}" for method, out in outs.items()])
    train_all(new, tmp_path, [f"--out {out} --resume --steps 9" for out in outs.values()], "resumed.py")
    for method, out in outs.items():
        before, after = loaded(out, old), [np.load(out / f"rank-{rank}.npz") for rank in range(new)]
        for state in after:
            assert state["weights"].tobytes() == before[0]["weights"].tobytes()
            assert state["momentum"].tobytes() == before[0]["momentum"].tobytes()
            assert (state["first"], state["total"], state["batch"]) == (5, 9, 12 * old // new)
        if method == "dense":
            assert "residual" not in after[0]
            continue
        means = [np.mean([state["residual"].astype(float) for state in states], axis=0) for states in (before, after)]
        bound = 2.0**-24 * np.mean([np.abs(state["residual"]) for state in after], axis=0) + 2.0**-150
        assert (np.abs(means[0] - means[1]) <= bound * (1 + 1e-6)).all(), method
        assert np.abs(means[0]).max() > 0
        assert {int(state["k"].sum()) for state in after} == {int(before[0]["k"].sum())}
        expected = [ranks.merge((s, before[p]) for p, s in ranks.shares(old, new, rank).items()) for rank in range(new)]
        for own, state in zip(expected, after, strict=True):
            assert all(own[name].tobytes() == state[name].tobytes() for name in ("residual", "k", "thresholds", "statistics"))


def test_several_changes_in_a_row_and_every_step_once(tmp_path: Path) -> None:
    outs = {method: tmp_path / str(number) for number, method in enumerate(METHODS)}
    train_all(2, tmp_path, [f"{COMMON} --method {method} --steps 3 --out {out}" for method, out in outs.items()])
    for new, steps in ((3, 5), (4, 7), (4, 9), (1, 11)):
        train_all(new, tmp_path, [f"--out {out} --resume --steps {steps}" for out in outs.values()])
    for method, out in outs.items():
        files = [trace.read(path) for path in trace.series(out)]
        assert [file.path.name for file in files] == ["trace.h5", *(f"trace-{step:08d}.h5" for step in (3, 5, 9))]
        assert [file.header.ranks for file in files] == [2, 3, 4, 1]
        assert [step for file in files for step in file.steps["step"].tolist()] == list(range(1, 12))
        assert series.load(out).steps["step"].tolist() == list(range(1, 12))
        if method in ("global-topk", "dls"):
            assert len({int(k) for file in files for k in file.steps["k"].sum(axis=2).ravel()}) == 1
        found = checkpoint.latest(out)
        assert found is not None
        assert (found.position, found.world_size) == (Position(11, 0, 11 * 24), 1)


def test_steps_recorded_past_the_checkpoint_are_dropped_from_all_files(tmp_path: Path) -> None:
    """2 ranks until 4, 3 ranks from 4 to 6, of which the checkpoint is lost: 2 ranks go on from 4."""
    train_all(2, tmp_path, [f"{COMMON} --steps 4 --out run"])
    train_all(3, tmp_path, ["--out run --resume --steps 6"])
    (tmp_path / "run/checkpoints/step-00000006/manifest.json").unlink()
    train_all(2, tmp_path, ["--out run --resume --steps 7"])
    assert [path.name for path in trace.series(tmp_path / "run")] == ["trace.h5"]
    assert trace.read(tmp_path / "run/trace.h5").steps["step"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_batch_norm_keeps_its_mean_statistics(tmp_path: Path) -> None:
    train_all(3, tmp_path, ["--model resnet20 --density 0.01 --batch-size 2 --threads 1 --backend numpy --steps 1 --out run"])
    train_all(2, tmp_path, ["--out run --resume --steps 2"], "resumed.py")
    mean = np.mean([np.load(tmp_path / f"run/rank-{rank}.npz")["statistics"] for rank in range(2)], axis=0)
    np.testing.assert_allclose(mean, loaded(tmp_path / "run", 3)[0]["mean_statistics"], rtol=1e-6, atol=1e-7)


def test_the_images_of_a_step_stay_as_many_or_are_asked_for(tmp_path: Path, train) -> None:
    common = [*COMMON.split(), "--batch-size", "5"]
    assert train(2, *common, "--steps", "2", "--out", "run").status == 0
    refused = train(3, "--out", "run", "--resume", "--steps", "4")
    assert refused.status == 2
    assert len(lines(refused.err)) == 1
    assert "was written by 2 ranks with 10 images a step, which 3 ranks cannot share equally; give --batch-size" in refused.err
    given = train(3, "--out", "run", "--resume", "--steps", "4", "--batch-size", "4")
    assert given.status == 0, given.err
    assert "ranks: 3, before 2; each goes on with the mean of those that it follows; 12 images a step, 4 a rank" in given.out
    again = train(3, "--out", "run", "--resume", "--steps", "5", "--batch-size", "5")
    assert again.status == 2
    assert "--batch-size 5 is not that of the run in run, which has 4" in again.err


def test_epochs_go_on_where_they_stood(tmp_path: Path, train) -> None:
    """4 steps of 400 images, 3 an epoch; then steps of 200, 7 an epoch: the second epoch has 5 left."""
    common = ["--mlp-widths", "8", "--threads", "1", "--backend", "numpy", "--batch-size", "200", "--method", "layerwise-topk"]
    assert train(2, *common, "--epochs", "3", "--steps", "4", "--out", "run").status == 0
    done = train(1, "--out", "run", "--resume", "--epochs", "3", "--batch-size", "200")
    assert done.status == 0, done.err
    later = trace.read(trace.series(tmp_path / "run")[-1])
    assert later.steps["step"].tolist() == list(range(5, 5 + 5 + 7))
    assert later.steps["epoch"].tolist() == [1] * 5 + [2] * 7


def test_a_change_of_batch_drops_less_than_a_batch_and_repeats_nothing() -> None:
    digits = load("digits")
    before = Batches(digits, 0, 100, 0, 2)
    after = Batches(digits, 0, 70, 0, 3, start=before.position(10))
    assert before.position(10) == Position(10, 1, 600)
    assert (after.place(10), after.position(10)) == ((1, 3), Position(10, 1, 630))
    assert (after.place(13), after.steps_until(2)) == ((2, 0), 13)
    same = Batches(digits, 0, 50, 0, 4, start=before.position(10))
    assert [same.place(step) for step in range(10, 40)] == [before.place(step) for step in range(10, 40)]
    assert same.steps_until(5) == before.steps_until(5) == 35
