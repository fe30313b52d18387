"""`--workers P` trains in one process what `mpirun -n P` trains, and goes on where that stopped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dls.exchange import methods
from dls.record import checkpoint, lock, reader
from dls.train import main
from tests import cases, exchanging
from tests.cases import Case
from tests.launch import train_all, work_all
from tests.mpi.test_bits import loaded

COMMON = "--density 0.05 --mlp-widths 9,5 --batch-size 4 --threads 1 --backend numpy"
RUNS = [(name, values) for name in methods.names() for values in cases.by_collective(name)]
COLUMNS = ("loss", "k", "threshold", "residual_norm", "payload_bytes", "received_bytes", "lr")


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_and_workers_go_on_with_each_other_s_runs(ranks: int, tmp_path: Path) -> None:
    """First workers, then ranks, then workers again: as ranks alone."""
    outs = [tmp_path / str(number) for number in range(len(RUNS))]
    commands = []
    for of_method, out in zip(RUNS, outs, strict=True):
        line = f"{COMMON} {cases.flags(*of_method)}"
        work_all(ranks, [f"{line} --steps 2 --out {out}"])
        commands += [f"{line} --steps 6 --out {alone(out)}", f"--resume --steps 4 --out {out}"]
    train_all(ranks, commands, tmp_path)
    for of_method, out in zip(RUNS, outs, strict=True):
        work_all(ranks, [f"--resume --steps 6 --out {out}"])
        inexact = ranks > 2 and exchanging.sums_in_any_order(Case(*of_method))
        compare(out, alone(out), ranks, 1e-4 if inexact else 0)


def alone(out: Path) -> Path:
    return out.with_name(f"{out.name}-alone")


def compare(one: Path, other: Path, ranks: int, tolerance: float) -> None:
    """What is kept and recorded is the same, within a tolerance if there is one."""
    for a, b in zip(loaded(one, ranks), loaded(other, ranks), strict=True):
        assert a.keys() == b.keys()
        for name in set(a) - ({"weights_sha256"} if tolerance else set()):
            np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance)
            assert tolerance or a[name].tobytes() == b[name].tobytes(), name
    mine, theirs = (reader.read(out / "trace.h5").steps for out in (one, other))
    assert mine["step"].tolist() == list(range(1, 7))
    for name in COLUMNS:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=tolerance, atol=tolerance)


DIFFERS = "mpi one process, 2 workers → "
"""In the line that names on what else a run goes on, where its bits depend on that."""


def test_other_bits_are_foretold_where_the_library_sums(tmp_path: Path) -> None:
    """Sparse methods add up in an order of their own, in one process and elsewhere."""
    names = methods.names()
    work_all(2, [f"{COMMON} --method {name} --steps 1 --out {tmp_path / name}" for name in names])
    done = train_all(2, [f"--resume --steps 2 --out {tmp_path / name}" for name in names], tmp_path)
    said = re.split(r"; writing to (.*)\n", done.out)  # what each says first, and its folder
    pairs = zip(said[1::2], said[::2], strict=False)
    told = {Path(out).name: DIFFERS in words for out, words in pairs}
    assert told == {name: methods.load(name).library_sums for name in names}


@pytest.mark.parametrize("workers", ["1", "2", "3"])
def test_a_run_that_failed_leaves_its_folder_free(
    workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{COMMON} --steps 20 --workers {workers} --out"
    command = [*line.split(), str(tmp_path / "run")]
    assert main([*command, "--lr", "1e30"]) == 1
    assert lock.state(tmp_path / "run") is lock.State.FREE
    assert main([*command, "--lr", "0.05", "--resume=auto"]) == 0, capsys.readouterr().err
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 20
