"""`make` sets up .venv in two stages: for training, and for tests and the linter.

Python is a stand-in here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch import ROOT

PYTHON = """#!/bin/sh
echo "$*" >> calls.txt
case "$*" in
    *venv*) sleep 0.2; rm -rf .venv; mkdir -p .venv/bin; cp python .venv/bin;;
esac
"""
"""It notes how it is called, and makes environments that hold nothing but itself.

Slowly, so that two can meet.
"""
TRAIN, DEV = ".ready-train-mpich", ".ready-dev-mpich"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def start(checkout: Path, *stages: str, mpi: str = "mpich") -> subprocess.Popen[str]:
    command = ["make", *(f".venv/{stage}" for stage in stages), "PYTHON=./python", f"MPI={mpi}"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.Popen(command, cwd=checkout, env=outside, stdout=subprocess.PIPE, text=True)


def make(checkout: Path, *stages: str, mpi: str = "mpich") -> list[str]:
    """What Python was called for: "venv", or the extras that pip installed, since the last time."""
    (checkout / "calls.txt").write_text("")
    with start(checkout, *stages, mpi=mpi) as program:
        assert program.wait(60) == 0
    return calls(checkout)


def calls(checkout: Path) -> list[str]:
    return re.findall(r"venv(?= --clear)|(?<=\.\[).*(?=\])", (checkout / "calls.txt").read_text())


def stages(checkout: Path) -> list[str]:
    return sorted(path.name for path in (checkout / ".venv").glob(".ready*"))


def test_training_needs_the_first_stage_alone_and_tests_add_theirs_to_it(checkout: Path) -> None:
    assert make(checkout, TRAIN) == ["venv", "mpich,plot"]
    assert make(checkout, TRAIN) == []
    assert make(checkout, DEV) == ["mpich,dev"]
    assert make(checkout, TRAIN, DEV) == []


def test_a_new_pyproject_or_another_mpi_begins_anew(checkout: Path) -> None:
    make(checkout, DEV)
    later = (checkout / ".venv" / DEV).stat().st_mtime + 1
    os.utime(checkout / "pyproject.toml", (later, later))
    assert make(checkout, TRAIN) == ["venv", "mpich,plot"]
    assert stages(checkout) == [TRAIN]
    os.utime(checkout / "pyproject.toml", (0, 0))
    assert make(checkout, ".ready-dev-openmpi", mpi="openmpi") == [
        "venv",
        "openmpi,plot",
        "openmpi,dev",
    ]
    assert stages(checkout) == [".ready-dev-openmpi", ".ready-train-openmpi"]


def test_an_environment_of_before_the_stages_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".ready-mpich").touch()
    assert make(checkout, DEV) == ["venv", "mpich,plot", "mpich,dev"]


def test_two_at_once_set_up_one_after_the_other(checkout: Path) -> None:
    with start(checkout, TRAIN) as one, start(checkout, DEV) as other:
        assert (one.wait(60), other.wait(60)) == (0, 0)
    assert calls(checkout) == ["venv", "mpich,plot", "mpich,dev"]


def test_help_has_a_line_for_every_target() -> None:
    said = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    assert sorted(re.findall(r"^make (\S+) +\S", said, re.MULTILINE)) == sorted(targets[1].split())
