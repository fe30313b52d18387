"""What a GPU's tests and measurements leave when they fail, hang, or find no GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dls.bench import __main__ as bench
from dls.tools import reports
from dls.tools.rows import Row
from tests import card, system
from tests.launch import ROOT

TESTS = """
import pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
@pytest.mark.parametrize("n", [1, 2])
def test_left_out(n): pytest.skip("no card")
def test_broken(missing): pass
"""
ABOUT = {"device": "Card 9"}


def test_the_outcome_is_kept_as_it_goes(tmp_path: Path) -> None:
    """One process counts what two of xdist's find."""
    path = card.Outcome.begin(tmp_path, ABOUT).path
    assert json.loads(path.read_text())["complete"] is False
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.card",
        "-p",
        "xdist.plugin",
        "-n",
        "2",
        "-q",
        str(tmp_path),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        card.RESULT: str(path),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    subprocess.run(
        [*command, "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    found = json.loads(path.read_text())
    assert path.name == "test-gpu-card-9.json"
    assert (found["measured_on"], found["complete"]) == (ABOUT, True)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 2)
    assert found["skipped because"] == {"Skipped: no card": 2}
    assert sorted(failure["test"] for failure in found["failures"]) == [
        "test_it.py::test_broken",
        "test_it.py::test_wrong",
    ]


def test_a_part_that_hangs_or_fails_leaves_the_others_their_turn(
    capfd: pytest.CaptureFixture[str],
) -> None:
    start = time.monotonic()
    assert card._run("slow", ["-c", "import time; time.sleep(100)"], start)
    assert card._run("wrong", ["-c", "raise SystemExit(3)"], start + 100)
    assert not card._run("right", ["-c", "pass"], start + 100)
    assert capfd.readouterr().err.splitlines() == [
        "tests.card: slow: cut off after 1 seconds",
        "tests.card: wrong: ended with status 3",
    ]


def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.card", "--results", str(tmp_path / "results")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no GPU can be used" in done.stderr
    assert not (tmp_path / "results").exists()


@dataclass(frozen=True)
class Layers(Row):
    """A row of a measurement."""

    layers: str


def test_a_measurement_that_is_cut_off_leaves_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(options: object) -> Iterator[Layers]:
        """Two rows, and the end."""
        yield Layers("1")
        yield Layers("2")
        raise KeyboardInterrupt

    command = replace(bench.COMMANDS["select"], rows=rows)
    monkeypatch.setitem(bench.COMMANDS, "select", command)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["select", "--backend", "numpy", "--report", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    assert (found["rows"], found["complete"]) == ([{"layers": "1"}, {"layers": "2"}], False)


def test_a_complete_measurement_says_so(tmp_path: Path) -> None:
    path = reports.write(tmp_path, "select", "numpy", [Layers("1")])
    assert json.loads(path.read_text())["complete"] is True


def test_a_machines_own_python_gets_what_it_has_no_version_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = {"numpy": "1.0", "h5py": "9", "pytest": "8.4"}

    def version(name: str) -> str:
        if name not in here:
            raise system.metadata.PackageNotFoundError(name)
        return here[name]

    monkeypatch.setattr(system.metadata, "version", version)
    wanted = [re.split("[<>]", line)[0] for line in system.missing()]
    assert {"mpich", "rich", "numba", "mpi4py", "pytest-xdist"} <= set(wanted)
    assert not set(here) & set(wanted)
    left = [re.split("[<>]", line)[0] for line in system.requirements(wanted)]
    assert set(left) == set(here)
