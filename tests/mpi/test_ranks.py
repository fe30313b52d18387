"""A run resumed on another number of ranks: residuals keep their mean, k its budget, data its
place, the trace each step once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dls.inspect import reading
from dls.record import checkpoint, reader
from dls.record.checkpoint import Position
from dls.tasks.batches import Batches
from dls.tasks.data import load
from reference import ranks
from tests.conftest import lines
from tests.launch import launch, outcomes, train_all, work_all
from tests.mpi.resumed import go_on_as_workers
from tests.mpi.test_bits import RESIDUAL, loaded

METHODS = (
    "dense",
    "global-topk",
    "layerwise-topk",
    "dls",
    "dls --dls-steps optimal --density-warmup 9 --nesterov --augment",
)
COMMON = "--density 0.02 --batch-size 12 --threads 1 --backend numpy --mlp-widths 20,10"


State = Mapping[str, np.ndarray]
CHANGES = [(1, 3, 5), (3, 2, 7), (2, 4, 9), (4, 4, 11), (4, 1, 13)]
"""From so many ranks to so many, and until which step these go on."""
UNDER_MPI = (2, 1)
"""So many go on as ranks under MPI with what workers of one process left; others as workers."""


def go_on(new: int, commands: Iterable[str], folder: Path) -> None:
    """Resume; what each rank starts from is kept beside the run."""
    if new not in UNDER_MPI:
        go_on_as_workers(new, commands)
        return
    done = launch([(new, [Path(__file__).with_name("resumed.py"), *commands])], folder)
    assert done.status == 0, done.err


def started_from(out: Path, new: int) -> list[State]:
    return [np.load(out / f"rank-{rank}.npz") for rank in range(new)]


def test_several_changes_in_a_row(tmp_path: Path) -> None:
    """What the new ranks start from, and each step in the trace once."""
    outs = {method: tmp_path / str(number) for number, method in enumerate(METHODS)}
    first = [f"{COMMON} --method {method} --steps 3 --out {out}" for method, out in outs.items()]
    work_all(1, first)
    begin = 3
    for old, new, steps in CHANGES:
        before = {out: loaded(out, old) for out in outs.values()}
        go_on(new, [f"--out {out} --resume --steps {steps}" for out in outs.values()], tmp_path)
        for method, out in outs.items():
            after = started_from(out, new)
            for state in after:
                place = state["first"], state["total"], state["batch"]
                assert place == (begin, steps, 12 // new)
                assert state["weights"].tobytes() == before[out][0]["weights"].tobytes()
                assert state["momentum"].tobytes() == before[out][0]["momentum"].tobytes()
            if method == "dense":
                assert "residual" not in after[0]
            else:
                check_shares(before[out], after)
        begin = steps
    for method, out in outs.items():
        check_traces(out, one_budget=method in ("global-topk", "dls"))
        found = checkpoint.latest(out)
        assert found is not None
        assert (found.position, found.world_size) == (Position(13, 0, 13 * 12), 1)


def check_shares(before: Sequence[State], after: Sequence[State]) -> None:
    """The mean residual stays, up to rounding, k keeps its budget, and each rank has its shares."""
    means = [mean_residual(states) for states in (before, after)]
    size = np.mean([np.abs(state["residual"]) for state in after], axis=0)
    bound = (2.0**-24 * size + 2.0**-150) * (1 + 1e-6)
    assert (np.abs(means[0] - means[1]) <= bound).all()
    assert np.abs(means[0]).max() > 0
    assert {int(state["k"].sum()) for state in after} == {int(before[0]["k"].sum())}
    for rank, state in enumerate(after):
        shares = ranks.shares(len(before), len(after), rank)
        own = ranks.merge((share, before[other]) for other, share in shares.items())
        for name in ("residual", "k", "thresholds", "statistics"):
            assert own[name].tobytes() == state[name].tobytes()


def mean_residual(states: Sequence[State]) -> np.ndarray:
    return np.mean([state["residual"].astype(float) for state in states], axis=0)


def check_traces(out: Path, one_budget: bool) -> None:
    files = [reader.read(path) for path in reader.trace_files(out)]
    later = [f"trace-{step:08d}.h5" for step in (3, 5, 7, 11)]
    assert [file.path.name for file in files] == ["trace.h5", *later]
    assert [file.header.ranks for file in files] == [1, 3, 2, 4, 1]
    steps = [step for file in files for step in file.steps["step"].tolist()]
    assert steps == reading.load(out).steps["step"].tolist() == list(range(1, 14))
    if one_budget:
        assert len({int(k) for file in files for k in file.steps["k"].sum(axis=2).ravel()}) == 1


def test_steps_recorded_past_the_checkpoint_are_dropped_from_all_files(tmp_path: Path) -> None:
    """2 ranks until 4, 3 ranks from 4 to 6, of which the checkpoint is lost: 2 ranks go on from
    4.
    """
    out = tmp_path / "run"
    work_all(2, [f"{COMMON} --steps 4 --out {out}"])
    work_all(3, [f"--out {out} --resume --steps 6"])
    (out / "checkpoints/step-00000006/manifest.json").unlink()
    train_all(2, ["--out run --resume --steps 7"], tmp_path)
    assert [path.name for path in reader.trace_files(tmp_path / "run")] == ["trace.h5"]
    assert reader.read(tmp_path / "run/trace.h5").steps["step"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_batch_norm_keeps_its_mean_statistics(tmp_path: Path) -> None:
    common = f"{RESIDUAL} --threads 1 --backend numpy"
    work_all(3, [f"{common} --steps 1 --out {tmp_path}/run"])
    before = loaded(tmp_path / "run", 3)
    go_on(2, ["--out run --resume --steps 2"], tmp_path)
    mean = np.mean([state["statistics"] for state in started_from(tmp_path / "run", 2)], axis=0)
    np.testing.assert_allclose(mean, before[0]["mean_statistics"], rtol=1e-6, atol=1e-7)


def test_the_images_of_a_step_stay_as_many_or_are_asked_for(tmp_path: Path) -> None:
    work_all(2, [f"{COMMON} --batch-size 5 --steps 2 --out {tmp_path}/run"])
    again = "--out run --resume"
    commands = [f"{again} --steps 4{more}" for more in ("", " --batch-size 4", " --batch-size 5")]
    refused, given, other = outcomes(3, "dls.train", commands, tmp_path)
    assert refused.statuses == other.statuses == [2, 2, 2]
    assert len(lines(refused.err)) == len(lines(other.err)) == 1
    written = "was written by 2 ranks with 10 images a step, which 3 ranks cannot share equally"
    assert f"{written}; give --batch-size" in refused.err
    assert given.statuses == [0, 0, 0], given.err
    words = "ranks: 3, before 2; each goes on with the mean of those that it follows"
    assert f"{words}; 12 images a step, 4 a rank" in given.out
    assert "--batch-size 5 is not that of the run in run, which has 4" in other.err


def test_epochs_go_on_where_they_stood(tmp_path: Path, train) -> None:
    """4 steps of 400 images, 3 an epoch; then steps of 200, 7 an epoch: the second epoch has 5
    left.
    """
    common = [
        "--mlp-widths",
        "8",
        "--threads",
        "1",
        "--backend",
        "numpy",
        "--batch-size",
        "200",
        "--method",
        "layerwise-topk",
    ]
    assert train(2, *common, "--epochs", "3", "--steps", "4", "--out", "run").status == 0
    done = train(1, "--out", "run", "--resume", "--epochs", "3", "--batch-size", "200")
    assert done.status == 0, done.err
    later = reader.read(reader.trace_files(tmp_path / "run")[-1])
    assert later.steps["step"].tolist() == list(range(5, 5 + 5 + 7))
    assert later.steps["epoch"].tolist() == [1] * 5 + [2] * 7


def test_a_change_of_batch_drops_less_than_a_batch_and_repeats_nothing() -> None:
    digits = load("digits")
    before = Batches(digits, 0, 100, 0, 2)
    after = Batches(digits, 0, 70, 0, 3, start=before.position(10))
    assert before.position(10) == Position(10, 1, 600)
    assert (after.epoch_and_batch(10), after.position(10)) == ((1, 3), Position(10, 1, 630))
    assert (after.epoch_and_batch(13), after.steps_until(2)) == ((2, 0), 13)
    same = Batches(digits, 0, 50, 0, 4, start=before.position(10))
    assert [same.epoch_and_batch(step) for step in range(10, 40)] == [
        before.epoch_and_batch(step) for step in range(10, 40)
    ]
    assert same.steps_until(5) == before.steps_until(5) == 35
