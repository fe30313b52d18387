"""The lock of a run's folder: who has it, and who cannot tell."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dls.cli import UsageError
from dls.inspect import __main__ as inspect
from dls.program import folder
from dls.program.config import Config
from dls.record import lock
from dls.record.lock import InUse, Lock, State
from dls.record.writer import Writer
from tests.launch import ROOT
from tests.tools.test_trace import header, rows

FLOCK = fcntl.flock
LOCKLESS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]


def nfs(descriptor: int, operation: int) -> None:
    """Linux's NFS client: an exclusive lock needs a descriptor that may write, a shared one that
    may read (flock(2)).
    """
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if (operation & fcntl.LOCK_EX and mode == os.O_RDONLY) or (
        operation & fcntl.LOCK_SH and mode == os.O_WRONLY
    ):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    FLOCK(descriptor, operation)


@pytest.fixture(params=[FLOCK, nfs], ids=["local", "nfs"])
def _file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", request.param)


def without_locks(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def killed_trace(folder: Path) -> Path:
    """A trace as a writer leaves it that is killed."""
    writer = Writer(folder / "aside.h5", header())
    writer.append("steps", rows(1, 3))
    (folder / "trace.h5").write_bytes((folder / "aside.h5").read_bytes())
    writer.close()
    (folder / "aside.h5").unlink()
    return folder / "trace.h5"


@pytest.mark.usefixtures("_file_system")
def test_one_has_it_and_all_others_see_that(tmp_path: Path) -> None:
    first, second = Lock(), Lock()
    assert lock.state(tmp_path) is State.FREE
    first.take(tmp_path)
    first.take(tmp_path)
    assert lock.state(tmp_path) is State.HELD
    with pytest.raises(
        InUse,
        match=(
            rf"is in use, by a run that goes on \(process {os.getpid()} on .*\); let that end first"
        ),
    ):
        second.take(tmp_path, patience=0)
    assert not second.taken
    first.release()
    assert lock.state(tmp_path) is State.FREE
    second.take(tmp_path)
    assert (second.taken, second.missing) == (True, "")
    second.release()


@pytest.mark.usefixtures("_file_system")
def test_a_living_run_is_not_called_killed_nor_repaired(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, own = killed_trace(tmp_path), Lock()
    monkeypatch.setattr(Lock.take, "__defaults__", (0.0,))
    own.take(tmp_path)
    before = path.read_bytes()
    assert inspect.main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
    assert inspect.main([str(tmp_path), "--repair"]) == 2
    assert "is in use, by a run that goes on" in capsys.readouterr().err
    assert path.read_bytes() == before
    own.release()
    assert inspect.main([str(tmp_path)]) == 0
    assert "was killed; --repair lets other programs open it" in capsys.readouterr().err
    assert inspect.main([str(tmp_path), "--repair"]) == 0
    assert "is repaired, with 3 recorded steps" in capsys.readouterr().out


@pytest.mark.parametrize("number", LOCKLESS, ids=errno.errorcode.get)
def test_without_locks_nobody_is_called_dead(
    number: int, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, own = killed_trace(tmp_path), Lock()
    without_locks(number, monkeypatch)
    assert lock.state(tmp_path) is State.FREE  # nobody ever asked for its lock
    own.take(tmp_path)
    assert (own.taken, own.missing) == (True, os.strerror(number))
    assert lock.state(tmp_path) is State.UNKNOWN
    before = path.read_bytes()
    assert inspect.main([str(tmp_path)]) == 0
    assert f"whether a run still writes {path} cannot be told here" in capsys.readouterr().err
    assert inspect.main([str(tmp_path), "--repair"]) == 2
    assert "copy it and repair that" in capsys.readouterr().err
    assert path.read_bytes() == before
    own.release()


def test_a_closed_trace_is_nobodys_where_there_are_no_locks(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(tmp_path / "trace.h5", header())
    writer.append("steps", rows(1, 3))
    writer.close()
    (tmp_path / lock.NAME).touch()
    without_locks(errno.ENOLCK, monkeypatch)
    assert inspect.main([str(tmp_path), "--follow"]) == 0
    assert capsys.readouterr().err == ""
    assert inspect.main([str(tmp_path), "--repair"]) == 0
    assert "is in order" in capsys.readouterr().out


def test_who_may_not_read_the_lock_cannot_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    assert lock.state(tmp_path) is State.UNKNOWN


HOLDER = """
import os, pathlib, subprocess, sys, time
from dls.record.lock import Lock
own = Lock()
own.take(pathlib.Path(sys.argv[1]))
sleep = ["sleep", "60"]
children = [
    subprocess.Popen(sleep, close_fds=False).pid,
    os.posix_spawnp("sleep", sleep, os.environ),
]
print(*children, flush=True)
time.sleep(60)
"""


def test_it_ends_with_its_process_whatever_that_has_started(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        children = [int(number) for number in holder.stdout.readline().split()]
        assert lock.state(tmp_path) is State.HELD
        holder.kill()
        holder.wait()
        own = Lock()
        own.take(tmp_path)
        own.release()
        for child in children:
            os.kill(child, signal.SIGKILL)  # all of them lived until now


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / lock.NAME).symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Lock().take(tmp_path)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert lock.state(tmp_path) is State.UNKNOWN


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_comes_too_late_removes_nothing(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw an empty folder, and then another run began there, or has even ended."""
    monkeypatch.setattr(Lock.take, "__defaults__", (0.0,))
    path, first = killed_trace(tmp_path), Lock()
    if begun:
        first.take(tmp_path)
    with pytest.raises(UsageError, match="is in use" if begun else "another run was faster"):
        folder.make(Config(out=str(tmp_path)), None, Lock())
    assert path.exists()
    first.release()


def test_an_error_that_is_no_want_of_locks_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lock.fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        lock.Lock().take(tmp_path)
