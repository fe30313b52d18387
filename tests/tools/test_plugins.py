"""Methods that a program registers, and files that --import runs: names, settings, what fails."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest

import dls
from dls.exchange import methods
from dls.exchange.methods._base import SparseSettings
from dls.exchange.methods.layerwise_topk import LayerwiseTopk
from dls.exchange.settings import UnknownChoice, setting
from dls.program import plugins, sources
from dls.program.plugins import PREFIX
from dls.record import checkpoint, reader
from dls.study import __main__ as study
from dls.train import main
from tests.conftest import lines
from tests.launch import ROOT
from tests.tools.test_study import TINY as STUDY

TINY = (
    "--mlp-widths",
    "4",
    "--batch-size",
    "4",
    "--threads",
    "1",
    "--backend",
    "numpy",
    "--steps",
    "2",
)
METHOD = """
import dls
from dataclasses import dataclass
from dls.exchange.methods._base import SparseSettings
from dls.exchange.methods.layerwise_topk import LayerwiseTopk
from dls.exchange.settings import setting
@dataclass(frozen=True)
class Settings(SparseSettings):
    {name}: {kind} = setting({default}, "of its own")
@dls.register("{method}")
class Own(LayerwiseTopk):
    Settings = Settings
"""


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers and imports is gone after it."""
    monkeypatch.setattr(methods, "_registered", dict(methods._registered))
    yield
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        del sys.modules[name]


def write(
    path: Path, method: str = "own", name: str = "knob", kind: str = "int", default: Any = 1
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(METHOD.format(method=method, name=name, kind=kind, default=default))
    return path


def register(method: str, *settings: tuple[str, type, Any]) -> None:
    chosen = make_dataclass("Settings", settings, bases=(SparseSettings,), frozen=True)
    dls.register(method)(
        type("Own", (LayerwiseTopk,), {"Settings": chosen, "__qualname__": method})
    )


# --- registering ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", " x", "a/b", "A", "a b", "a--b", "-a", "a-", "_a", "ä", "a\n"]
)
def test_a_bad_name_of_a_method_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a method's name"):
        register(name)
    assert name not in methods.names()


OTHERS = {
    "type": ("knob", float, setting(1, "a knob")),
    "default": ("knob", int, setting(2, "a knob")),
    "text": ("knob", int, setting(1, "another knob")),
    "a built-in's default": ("dls_steps", int | str, setting(7, "steps")),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_setting_of_one_name_is_one_setting(case: str) -> None:
    register("first", ("knob", int, setting(1, "a knob")))
    register("same", ("knob", int, setting(1, "a knob")))
    with pytest.raises(
        ValueError, match=r"there is a setting '(knob|dls_steps)' already, of another kind"
    ):
        register("other", OTHERS[case])
    assert "other" not in methods.names()


def test_a_method_that_is_defined_again_may_have_other_settings() -> None:
    """As in a cell of a notebook that is run again."""
    register("mine", ("knob", int, setting(1, "a knob")))
    register("mine", ("knob", float, setting(0.5, "another knob")))
    assert methods.settings()["knob"][0].default == 0.5


@pytest.mark.parametrize(
    "name",
    [
        "lr",
        "seed",
        "method",
        "workers",
        "config",
        "help",
        "own",
        "no_overlap",
        "no_resume",
        "values",
    ],
)
def test_a_setting_with_the_name_of_another_flag_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "own.py", name=name)
    taken = name != "no_resume"
    for argv in (["--workers", "1"], ["--workers", "2"]):
        status = main(
            [f"--import={path}", *TINY, *argv, "--method", "own", "--out", str(tmp_path / argv[1])]
        )
        said = capsys.readouterr().err
        assert status == (2 if taken else 0), said
        words = "has the name of another setting or flag; rename it"
        assert said == (f"dls.train: the method's setting {name!r} {words}\n" if taken else "")


def test_a_setting_that_turns_another_off_by_its_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(
        "mine",
        ("fine", bool, setting(False, "fine")),
        ("no_fine", bool, setting(False, "not fine")),
    )
    assert main([*TINY, "--workers", "1", "--out", str(tmp_path / "run")]) == 2
    assert "'no_fine'" in capsys.readouterr().err


# --- files that cannot be run ---------------------------------------------------------------------

BROKEN = {
    "exits": ("import sys; sys.exit('gives up')", "SystemExit: gives up"),
    "syntax": ("def (\n", "SyntaxError: invalid syntax"),
    "raises": ("raise KeyError('gone')", "KeyError: 'gone'"),
    "many lines": ("raise ValueError('one\\ntwo')", "ValueError: one"),
    "absent": (None, "there is no such file"),
    "no python": ("", "its name ends in .py"),
}


def broken(folder: Path, case: str) -> Path:
    path = folder / ("words.txt" if case == "no python" else f"{case.replace(' ', '_')}.py")
    if (text := BROKEN[case][0]) is not None:
        path.write_text(text)
    return path


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_run_is_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where flags that it should have brought are not known then."""
    path = broken(tmp_path, case)
    for more in ([], ["--workers", "2"], ["--workers", "2", "--method", "own", "--knob", "3"]):
        assert main(["--import", str(path), *more]) == 2
        (line,) = lines(capsys.readouterr().err)
        assert line.startswith(f"dls.train: --import {path}: ")
        assert BROKEN[case][1] in line
    (tmp_path / "tiny.toml").write_text(STUDY)
    assert (
        study.main(
            [str(tmp_path / "tiny.toml"), f"--import={path}", "--out", str(tmp_path / "out")]
        )
        == 2
    )
    (line,) = lines(capsys.readouterr().err)
    assert line.startswith(f"dls.study: --import {path}: ")
    assert not (tmp_path / "out").exists()


def test_a_file_that_failed_can_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "own.py")
    whole = path.read_text()
    path.write_text(whole + "\nraise ValueError('not yet')\n")
    command = [
        f"--import={path}",
        *TINY,
        "--workers",
        "1",
        "--method",
        "own",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(command) == 2
    path.write_text(whole)
    assert main(command) == 0, capsys.readouterr().err


# --- several files --------------------------------------------------------------------------------


def two_files(folder: Path) -> list[str]:
    """Of one name, in two folders."""
    files = [write(folder / name / "own.py", name, f"{name}_knob") for name in ("a", "b")]
    return [f"--import={path}" for path in files]


def test_two_files_of_one_name_are_both_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imports = two_files(tmp_path)
    for name in ("a", "b"):
        line = [
            *imports,
            *TINY,
            "--workers",
            "1",
            "--method",
            name,
            f"--{name}-knob",
            "3",
            "--out",
            str(tmp_path / "out" / name),
        ]
        assert main(line) == 0, capsys.readouterr().err
        (state,) = reader.read(tmp_path / "out" / name / "trace.h5").header.attributes["sources"]
        named = {line.partition(" ")[2] for line in str(state).splitlines()}
        assert {"own.py", "b/own.py"} <= named


def test_files_of_one_name_have_as_many_folders_as_tell_them_apart(tmp_path: Path) -> None:
    files = [
        write(tmp_path / place / "c" / "own.py", place.replace("/", "-"))
        for place in ("a", "b/x", "d/x")
    ]
    for path in files:
        plugins.run(path)
    named = sources.state("dls").files
    assert [name for name in named if name.endswith("own.py")] == [
        "own.py",
        "c/own.py",
        "x/c/own.py",
    ]


def test_a_study_passes_all_files_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imports = two_files(tmp_path)
    table, _ = STUDY.split("[methods]")
    rows = (
        'a = { method = "a" }',
        'b = { method = "b", b_knob = 2 }',
        'layerwise-topk = { method = "layerwise-topk" }',
    )
    (tmp_path / "tiny.toml").write_text("\n".join([table, "[methods]", *rows]))
    command = [
        str(tmp_path / "tiny.toml"),
        *imports,
        "--workers",
        "--only=*seed0",
        "--out",
        str(tmp_path / "out"),
    ]
    assert study.main(command) == 0, capsys.readouterr()
    for name in ("a", "b"):
        log = (tmp_path / "out" / "tiny" / f"{name}-0.1-seed0.log").read_text()
        assert all(each in log for each in imports), log
    capsys.readouterr()
    assert study.main([*command, "--report-only"]) == 0
    assert study.main(command) == 0  # of one state of the code
    assert "3 of 3 runs are complete already" in capsys.readouterr().out


def test_the_version_is_that_of_imported_files_too(tmp_path: Path) -> None:
    """Ranks are compared by it."""
    without, path = sources.version(), write(tmp_path / "own.py")
    plugins.run(path)
    one = sources.version()
    path.write_text(path.read_text() + "# other\n")
    assert len({without, one, sources.version()}) == 3


# --- what a method keeps --------------------------------------------------------------------------

KEEPS = """
import dls, numpy as np
from dls.exchange.methods.layerwise_topk import LayerwiseTopk
@dls.register("keeps")
class Keeps(LayerwiseTopk):
    def state(self):
        return super().state() | {"statistics": np.zeros(1, np.float32)}
"""


def test_a_name_that_another_part_keeps_is_said_at_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keeps.py").write_text(KEEPS)
    out = tmp_path / "run"
    for workers in ("1", "2"):
        shown = out.with_name(workers)
        command = [
            f"--import={tmp_path / 'keeps.py'}",
            *TINY,
            "--workers",
            workers,
            "--method",
            "keeps",
        ]
        assert main([*command, "--out", str(shown)]) == 1
        (line,) = lines(capsys.readouterr().err)
        assert "step 2: ValueError: two parts of the run keep something called 'statistics'" in line
        assert checkpoint.latest(shown) is None


# --- what travels ---------------------------------------------------------------------------------


def test_an_unknown_choice_travels() -> None:
    error = UnknownChoice("lr_schedule", "stairs", ("constant", "step"))
    error.add_note("a note")
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there)) == (UnknownChoice, str(error))
    assert (there.name, there.value, there.choices) == (error.name, error.value, error.choices)


@dataclass
class Said:
    """What a slip in a command line of workers is answered with."""

    argv: list[str]
    words: str


@pytest.mark.parametrize(
    "case",
    [
        Said(
            ["--workers", "2", "--densty", "0.1"],
            "unrecognized arguments: --densty 0.1; did you mean --density?",
        ),
        Said(["--workers", "65"], "--workers 65: expected a whole number up to 64"),
        Said(["--workers=2", "--density", "2"], "--density 2.0 is outside (0, 1]"),
        Said(["--import", "absent.py"], "--import absent.py: there is no such file"),
    ],
    ids=lambda case: " ".join(case.argv),
)
def test_workers_hear_of_a_slip_without_mpi(case: Said, tmp_path: Path) -> None:
    environment = os.environ | {"MPI4PY_LIBMPI": "/nonexistent/libmpi.so", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dls.train", *case.argv]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = lines(done.stderr)
    assert case.words in line
