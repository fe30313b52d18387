"""A run that is resumed has the bits of a run that was never interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dls.record import reader
from tests.conftest import lines
from tests.launch import finish, launch, start, train_all, wait_until, work_all
from tests.mpi.test_bits import RESIDUAL, loaded

METHODS = (
    "dense",
    "global-topk",
    "layerwise-topk",
    "dls",
    "dls --dls-steps optimal --dls-every 3",
    "dls --density-warmup 17 --nesterov --augment",
    "dense --backend numba",
    "global-topk --backend numba",
    "layerwise-topk --backend numba",
    "dls --backend numba",
    "dls --backend numba --dls-steps 2 --nesterov --augment",
)
COMMON = "--density 0.02 --batch-size 40 --threads 1 --backend numpy --mlp-widths 40"


UNDER_MPI = (
    "dense",
    "global-topk --backend numba",
    "layerwise-topk",
    "dls --backend numba --dls-steps 2 --nesterov --augment",
)
"""Those that are trained by ranks; the others by workers, whose resume is the same but for MPI."""


@pytest.mark.parametrize("ranks", [2, 3])
def test_two_halves_of_workers_are_a_whole(ranks: int, tmp_path: Path) -> None:
    """An epoch, of 17 steps on two ranks and of 11 on three, ends in one half or in both."""
    work_all(ranks, halves_and_wholes(METHODS, tmp_path))
    check_halves(METHODS, ranks, tmp_path)


def test_two_halves_of_ranks_are_a_whole(tmp_path: Path) -> None:
    train_all(3, halves_and_wholes(UNDER_MPI, tmp_path), tmp_path)
    check_halves(UNDER_MPI, 3, tmp_path)


def halves_and_wholes(methods: Sequence[str], tmp_path: Path) -> Sequence[str]:
    command = []
    for number, method in enumerate(methods):
        command += [
            f"{COMMON} --method {method} --steps 24 --out {tmp_path}/whole{number}",
            f"{COMMON} --method {method} --steps 12 --out {tmp_path}/halves{number}",
            f"--out {tmp_path}/halves{number} --resume --steps 24",
        ]
    return command


def check_halves(methods: Sequence[str], ranks: int, tmp_path: Path) -> None:
    """Of every method all arrays, the trace, and the evaluations of the second half."""
    for number, method in enumerate(methods):
        whole, halves = tmp_path / f"whole{number}", tmp_path / f"halves{number}"
        for a, b in zip(loaded(whole, ranks), loaded(halves, ranks), strict=True):
            assert a.keys() == b.keys()
            assert all(a[name].tobytes() == b[name].tobytes() for name in a), method
        one, two = reader.read(whole / "trace.h5"), reader.read(halves / "trace.h5")
        assert two.steps["step"].tolist() == list(range(1, 25))
        for name in ("loss", "k", "threshold", "residual_norm", "payload_bytes", "lr"):
            np.testing.assert_array_equal(
                one.steps[name], two.steps[name], err_msg=f"{method} {name}"
            )
        later = two.evals["step"] > 12
        expected = np.isin(one.evals["step"], two.evals["step"][later])
        np.testing.assert_array_equal(two.evals["loss"][later], one.evals["loss"][expected])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_batch_norm_statistics_survive(backend: str, tmp_path: Path) -> None:
    common = f"{RESIDUAL} --threads 1 --backend {backend}"
    command = [
        f"{common} --steps 2 --checkpoint-every 1 --out {tmp_path}/whole",
        f"{common} --steps 1 --out {tmp_path}/halves",
        f"--steps 2 --out {tmp_path}/halves --resume",
    ]
    work_all(2, command)
    for a, b in zip(loaded(tmp_path / "whole", 2), loaded(tmp_path / "halves", 2), strict=True):
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_a_run_killed_without_warning_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The trace holds rows past the checkpoint; after the resume each step stands in it once."""
    program = tmp_path / "die.py"
    program.write_text(
        "import os, signal, sys\n"
        "from dls import train\n"
        "step = train._step\n"
        "def dying(run, recorder, reporter, number):\n"
        "    if number == 75: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    step(run, recorder, reporter, number)\n"
        "train._step = dying\n"
        "train.main(sys.argv[1:])\n"
    )
    common = f"{COMMON} --steps 80 --checkpoint-every 20 --eval-every 13"
    assert launch([(2, [program, *common.split(), "--out", "killed"])], tmp_path).status != 0
    assert reader.read(tmp_path / "killed" / "trace.h5").steps["step"][-1] == 65
    train_all(2, ["--out killed --resume", f"{common} --out whole"], tmp_path)
    for a, b in zip(loaded(tmp_path / "killed", 2), loaded(tmp_path / "whole", 2), strict=True):
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert reader.read(tmp_path / "killed" / "trace.h5").steps["step"].tolist() == list(
        range(1, 81)
    )


@pytest.mark.parametrize("resume", ["--resume", "--resume=auto"])
@pytest.mark.parametrize("every", ["0", "2"])
def test_two_runs_do_not_train_in_one_folder(resume: str, every: str, tmp_path: Path) -> None:
    command = [*COMMON.split(), "--steps", "1000000", "--checkpoint-every", every, "--out", "run"]
    first = start([(2, ["-m", "dls.train", *command])], tmp_path)
    there = (
        (tmp_path / "run" / "checkpoints" / "step-00000002")
        if every == "2"
        else (tmp_path / "run" / "trace.h5")
    )
    assert wait_until(there.exists, 60, first)
    second = launch([(2, ["-m", "dls.train", *command, resume])], tmp_path)
    first.send_signal(signal.SIGTERM)
    assert second.status == 2, second
    (line,) = lines(second.err)
    assert "run is in use, by a run that goes on" in line
    assert finish(first).status == os.EX_TEMPFAIL
    assert reader.read(tmp_path / "run" / "trace.h5").steps["step"][0] == 1
