"""Signs of life: when a run breaks off without a word, the next one tells which rank was the first
to die.

OUT/heartbeats/rank-00000.json, … say of each rank who it is and, about once a second, how far. That
does not tell the dead from the survivors, whom MPICH kills within 2 ms. So each rank has a
guardian, a shell that waits for its end: the first guardian whose rank ends without a farewell
writes the rank's number to OUT/heartbeats/died, which only one of them can create.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dls.comm.base import Comm
from dls.record import files

INTERVAL = 1.0
"""Seconds between two heartbeats, at least."""
GUARDIAN = 'trap "" HUP INT TERM USR1; read -r farewell || { set -C; echo "$1" > "$2"; }'
"""Reads what the rank says to it: nothing until a farewell, or the end of the rank. -C: `>`
creates, and replaces nothing.
"""


class Heartbeat:
    """One rank's signs of life, from `step` finished steps on.

    The folder is there, made by `last_words`.
    """

    def __init__(self, out: Path, comm: Comm, step: int) -> None:
        folder = out / "heartbeats"
        self._path = folder / f"rank-{comm.rank:05d}.json"
        self._about = {"rank": comm.rank, "host": comm.host, "pid": os.getpid()}
        self._written = time.monotonic()
        self._write(step, "running")
        self._guardian = _guardian(comm.rank, folder)

    def beat(self, step: int) -> None:
        """So many steps are finished."""
        if time.monotonic() - self._written >= INTERVAL:
            self._written = time.monotonic()
            self._write(step, "running")

    def end(self, step: int) -> None:
        """The run ends here as it should."""
        self._write(step, "ended")
        self.leave()

    def leave(self) -> None:
        """No longer part of this run, dead or alive."""
        if self._guardian is not None and self._guardian.poll() is None:
            self._guardian.communicate(b"farewell\n")

    def _write(self, step: int, state: str) -> None:
        """Replace the file at once. A disk that is full for a moment must not end the run."""
        aside = self._path.with_suffix(".new")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with suppress(OSError):
            aside.write_text(
                json.dumps(self._about | {"step": step, "time": now, "state": state}),
                encoding="utf-8",
            )
            os.replace(aside, self._path)


def _guardian(rank: int, folder: Path) -> subprocess.Popen[bytes] | None:
    """The shell beside a rank; None where the system has no room for it, which must not end the
    run.
    """
    try:
        return subprocess.Popen(
            ["sh", "-c", GUARDIAN, "guardian", str(rank), folder / "died"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # the launcher waits until nobody holds its pipes
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of what kills the rank
        )
    except OSError:
        return None


def last_words(out: Path) -> list[str]:
    """How the run before came to a bad end, in one line, where it did; and a line for what it left
    behind that stays.

    Makes the folder anew, for this run.
    """
    report, folder = out / "failure.txt", out / "heartbeats"
    words = [*_failure(report), *_death(folder)][:1]
    try:
        report.unlink(missing_ok=True)
    except OSError as error:
        words.append(f"{report} cannot be removed ({files.reason(error)}): it is of the run before")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
    except OSError as error:
        words.append(
            f"{folder} cannot be made anew ({files.reason(error)}): what it says may be of the run"
            " before"
        )
    return words


def _failure(report: Path) -> list[str]:
    try:
        with files.open_plain(report) as file:
            line = file.readline(files.LONGEST_LINE).decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"the run before failed: {report} cannot be read ({files.reason(error)})"]
    return [f"the run before failed: {files.one_line(line)}"]


def _death(folder: Path) -> list[str]:
    """What guardians and heartbeats tell; where a whole machine went down no guardian speaks, and
    the last rank is named.
    """
    running = [
        beat
        for beat in map(_read, sorted(folder.glob("rank-*.json")))
        if beat.get("state") == "running"
    ]
    if not running:
        return []
    first = ""
    with suppress(OSError, ValueError), files.open_plain(folder / "died") as file:
        first = file.readline(files.LONGEST_LINE).decode().strip()
    dead = next((beat for beat in running if str(beat["rank"]) == first), None)
    beat, fate = (
        (dead, "was the first to die")
        if dead
        else (min(running, key=_progress), "was the furthest behind")
    )
    who = f"rank {beat['rank']} (process {beat['pid']} on {beat['host']})"
    return [
        f"the run before broke off: {who} {fate}, last heard of after step {beat['step']} at"
        f" {beat['time']}"
    ]


def _progress(beat: dict[str, Any]) -> tuple[int, str]:
    return beat["step"], beat["time"]


def _read(path: Path) -> dict[str, Any]:
    """A heartbeat; nothing where it is damaged."""
    try:
        with files.open_plain(path) as file:
            beat: dict[str, Any] = json.load(file)
        return beat if {"rank", "host", "pid", "step", "time"} <= beat.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}
