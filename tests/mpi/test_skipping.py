"""`--on-nan skip`: a step in which one rank meets NaN or infinity is, on all ranks, as if it had
never been.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from dls.record import reader
from reference import methods
from tests.conftest import lines
from tests.launch import launch
from tests.mpi.test_bits import RESIDUAL, SETTINGS, STEPS, loaded, reference_run

SPOILT = """
import sys
import numpy as np
from mpi4py import MPI
from dls import train
from dls.tasks import batches, models
from tests.mpi import many
step, batch, backward = train._step, batches.Batches.batch, models.Model.backward
now, last = 0, MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1
def counted(run, recorder, reporter, number):
    global now
    now = number
    step(run, recorder, reporter, number)
def spoilt_batch(self, number):
    images, labels = batch(self, number)
    return (images * np.float32("nan") if number == 2 and last else images), labels
def spoilt_backward(self, dlogits, on_gradient):
    def spoil(layer):
        if now == 5 and layer == 0 and last: self.gradients[3] = np.inf
        on_gradient(layer)
    backward(self, dlogits, spoil)
train._step, batches.Batches.batch, models.Model.backward = counted, spoilt_batch, spoilt_backward
many.train_all(sys.argv[1:])
"""
SKIPPED = (3, 5)
"""The steps that the last rank spoils: one by NaN in its images, and so in its loss, one by
infinity in the last gradient.
"""


def spoilt(folder: Path, ranks: int, *commands: str):
    program = folder / "spoilt.py"
    program.write_text(SPOILT)
    return launch(
        [(ranks, [program, *(f"{c} --on-nan skip --threads 1 --backend numpy" for c in commands)])],
        folder,
    )


CHOSEN = {
    "global-topk": ("--method global-topk", methods.GlobalTopk()),
    "layerwise": ("--method layerwise-topk --no-overlap", methods.LayerwiseTopk()),
    "dls": ("--method dls --bucket-size 1", methods.Dls(1)),
    "optimal": ("--method dls --dls-steps optimal --dls-every 2", methods.Dls("optimal", 2)),
}


@pytest.mark.parametrize("ranks", [1, 3])
def test_skipped_steps_leave_nothing_behind(ranks: int, tmp_path: Path) -> None:
    runs = list(itertools.product(("mlp", "warm", "clip"), CHOSEN))
    commands = [
        f"{CHOSEN[name][0]} {SETTINGS[setting]} --steps {STEPS} --out {setting}-{name}"
        for setting, name in runs
    ]
    done = spoilt(tmp_path, ranks, *commands)
    assert done.status == 0, done.err
    skipped = f"step 3/{STEPS}  skipped: NaN or infinity on rank {ranks - 1}\n"
    assert done.out.count(skipped) == len(runs)
    ended = done.out.count(f"{STEPS} steps in ")
    assert ended == done.out.count(" s, 2 of them skipped; ") == len(runs)
    for setting, name in runs:
        out = tmp_path / f"{setting}-{name}"
        expected = reference_run(SETTINGS[setting], CHOSEN[name][1], ranks, skipped=SKIPPED)
        for rank, state in enumerate(loaded(out, ranks)):
            where = f"{setting} {name} rank {rank}"
            assert state["weights"].tobytes() == expected.models[0].parameters.tobytes(), where
            assert state["momentum"].tobytes() == expected.momentum.tobytes(), where
            assert state["residual"].tobytes() == expected.residuals[rank].tobytes(), where
            same_k = state["k"].tolist() == expected.k[rank].tolist()
            assert name == "global-topk" or same_k, where
        steps = reader.read(out / "trace.h5").steps
        spoilt_rows = np.isin(steps["step"], SKIPPED)
        assert (np.isnan(steps["loss"]) == spoilt_rows[:, None]).all()
        assert (steps["payload_bytes"] > 0).all()


def test_dense_and_batch_norm_too(tmp_path: Path) -> None:
    dense, residual = "--density 1 --batch-size 8", RESIDUAL
    commands = (
        f"{dense} --method dense --steps {STEPS} --out dense",
        f"{residual} --steps 5 --out residual",
    )
    done = spoilt(tmp_path, 2, *commands)
    assert done.status == 0, done.err
    expected = reference_run(dense, methods.LayerwiseTopk(), 2, skipped=SKIPPED)
    for state in loaded(tmp_path / "dense", 2):
        np.testing.assert_allclose(
            state["weights"], expected.models[0].parameters, rtol=2e-4, atol=2e-5
        )
    expected = reference_run(residual, methods.Dls(1), 2, steps=5, skipped=SKIPPED)
    for rank, state in enumerate(loaded(tmp_path / "residual", 2)):
        assert state["weights"].tobytes() == expected.models[0].parameters.tobytes()
        assert state["statistics"].tobytes() == expected.models[rank].statistics.tobytes()


def test_without_it_the_run_stops(tmp_path: Path) -> None:
    program = tmp_path / "spoilt.py"
    program.write_text(SPOILT)
    done = launch(
        [
            (
                2,
                [
                    program,
                    "--mlp-widths 8 --batch-size 4 --threads 1 --backend numpy --steps 9 --out run",
                ],
            )
        ],
        tmp_path,
    )
    assert done.status == 1
    assert lines(done.err) == [
        "dls.train: rank 1, step 3: the loss is nan; a lower --lr, --clip-norm or --on-nan skip may"
        " help"
    ]


LARGE = """
import sys
from dls.tasks import models
from tests.mpi import many
backward = models.Model.backward
def large(self, dlogits, on_gradient):
    def enlarge(layer):
        if layer == 0: self.gradients[3] = 1e5
        on_gradient(layer)
    backward(self, dlogits, enlarge)
models.Model.backward = large
many.train_all(sys.argv[1:])
"""


def test_a_value_that_is_only_too_large_for_its_type_skips_and_stops_nothing(
    tmp_path: Path,
) -> None:
    program = tmp_path / "large.py"
    program.write_text(LARGE)
    tiny = (
        "--mlp-widths 8 --batch-size 4 --threads 1 --backend numpy --value-dtype float16 --lr 1e-9"
        " --steps 4"
    )
    done = launch(
        [(2, [program, *(f"{tiny} --on-nan {mode} --out {mode}" for mode in ("stop", "skip"))])],
        tmp_path,
    )
    assert done.status == 0, done.err
    assert "skipped" not in done.out
    for mode in ("stop", "skip"):
        for state in loaded(tmp_path / mode, 2):
            assert state["residual"][3] == 4 * (1e5 - 65504)
