"""Where files may be written, and what is said where not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dls.inspect import __main__ as inspect
from dls.program import heartbeat
from dls.record import checkpoint, files, lock
from dls.study import __main__ as study
from dls.theory import __main__ as theory
from tests.launch import ROOT
from tests.tools.test_trace import _whole

LONG = "x" * 300


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(
            ("file", errno.EEXIST),
            ("file/x", errno.EEXIST),
            ("dangling", errno.EEXIST),
            ("dangling/x", errno.EEXIST),
        ),
        *(
            (LONG, errno.ENAMETOOLONG),
            (f"new/{LONG}", errno.ENAMETOOLONG),
            ("folder.html", 0),
            ("new/folder", 0),
        ),
    ],
)
def test_a_folder_is_checked_before_any_work(name: str, number: int, place: Path) -> None:
    before = sorted(place.iterdir())
    try:
        files.check_folder(place / name)
    except OSError as error:
        assert error.errno == number
    else:
        assert number == 0
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(
            ("folder.html", "that is a folder"),
            ("none/x.html", "there is no folder"),
            ("file/x.html", "there is no folder"),
        ),
        *((f"{LONG}.html", "File name too long"), ("new.html", ""), ("file", "")),
    ],
)
def test_a_file_too(name: str, words: str, place: Path) -> None:
    assert files.obstacle(place / name).startswith(words)
    assert bool(files.obstacle(place / name)) == bool(words)


UNPRIVILEGED = """
import pathlib, sys
from dls.record import files
for place in map(pathlib.Path, sys.argv[1:]):
    try:
        files.check_folder(place)
    except OSError as error:
        print(error.strerror, error.filename)
    print(files.obstacle(place / "x.html"))
"""


def test_rights_count_as_they_do_for_users(tmp_path: Path) -> None:
    """Root has all rights, so that this gives them up where it is root."""
    own = tmp_path / "own"
    own.mkdir(mode=0o500)
    capabilities = (
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
        if os.geteuid() == 0
        else []
    )
    command = [*capabilities, sys.executable, "-c", UNPRIVILEGED, own, own / "new"]
    said = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    denied = "Permission denied"
    assert said == [
        f"{denied} {own}",
        denied,
        f"{denied} {own / 'new'}",
        f"there is no folder {own / 'new'}",
    ]


def test_what_cannot_be_cleared_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "page.partial").mkdir()  # a folder of somebody's
    (tmp_path / "page.partial-2").write_text("left behind")
    files.write_text(tmp_path / "page", "text")
    assert (tmp_path / "page").read_text() == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "page.partial"]


@pytest.mark.parametrize(
    "tool", ["--html", "--plot", "study --out", "study --report", "theory --plot", "theory --json"]
)
def test_tools_refuse_what_they_cannot_write_in_a_clear_line(
    tool: str, tmp_path: Path, capsys
) -> None:
    """A name that is too long is what nobody's rights get around."""
    _whole(tmp_path / "trace.h5")
    target = tmp_path / f"{LONG}.{'html' if 'html' in tool else 'png'}"
    experiments = str(ROOT / "runs/study/1-digits-mlp.toml")
    main, args = {
        "--html": (inspect.main, [str(tmp_path), "--html"]),
        "--plot": (inspect.main, [str(tmp_path), "--plot"]),
        "study --out": (study.main, [experiments, "--out"]),
        "study --report": (
            study.main,
            [experiments, "--out", str(tmp_path), "--report-only", "--report"],
        ),
        "theory --plot": (theory.main, ["--plot"]),
        "theory --json": (theory.main, ["--json"]),
    }[tool]
    assert main([*args, str(target)]) == 2
    error = capsys.readouterr().err
    assert "File name too long" in error
    assert "Errno" not in error
    assert error.count("\n") == 1


def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path, capsys) -> None:
    """It would be for ever, in a run that answers to no signal yet."""
    folder = checkpoint.place(tmp_path, 3)
    folder.mkdir(parents=True)
    for pipe in (
        folder / checkpoint.MANIFEST,
        tmp_path / "failure.txt",
        tmp_path / lock.NAME,
        tmp_path / "trace.h5",
    ):
        os.mkfifo(pipe)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"manifest\.json cannot be read \(it is no plain file"
    ):
        checkpoint.describe(folder)
    (words,) = heartbeat.previous_failure(tmp_path)
    assert (
        words
        == f"the run before failed: {tmp_path / 'failure.txt'} cannot be read (it is no plain file)"
    )
    assert lock.state(tmp_path) is lock.State.FREE
    assert inspect.main([str(tmp_path)]) == 2
    assert (
        f"{tmp_path / 'trace.h5'}: it is no plain file; a run's folder holds a trace.h5"
        in capsys.readouterr().err
    )


def test_a_free_name_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that has become read-only even what is not there cannot be removed."""

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert files.aside(tmp_path / "x") == tmp_path / "x.partial"
    (tmp_path / "x.partial").touch()
    assert files.aside(tmp_path / "x") == tmp_path / "x.partial-2"
