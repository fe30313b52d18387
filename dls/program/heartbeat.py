"""Heartbeats: after a run was killed, the next one can say which rank died first.

About once a second each rank writes to OUT/heartbeats/rank-00000.json, … which process it is and
how many steps it has finished. When one rank dies, MPICH kills the others within 2 ms, so these
files alone do not show who was first. So each rank has a guardian, a shell that waits for the
rank's end. The first guardian whose rank ends without a farewell writes the rank's number to
OUT/heartbeats/died, which only one of them can create.
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
"""Minimum number of seconds between two heartbeats."""
GUARDIAN = 'trap "" HUP INT TERM USR1; read -r farewell || { set -C; echo "$1" > "$2"; }'
"""Shell code that reads from the rank: nothing until a farewell, or until the rank ends.

With -C, `>` creates a file and never replaces one.
"""


class Heartbeat:
    """One rank's heartbeats. `previous_failure` has made their folder."""

    def __init__(self, out: Path, comm: Comm, finished: int) -> None:
        folder = out / "heartbeats"
        self._path = folder / f"rank-{comm.rank:05d}.json"
        self._about = {"rank": comm.rank, "host": comm.host, "pid": os.getpid()}
        self._written = time.monotonic()
        self._write(finished, "running")
        self._guardian = _guardian(comm.rank, folder)

    def beat(self, finished: int) -> None:
        """So many steps are finished."""
        if time.monotonic() - self._written >= INTERVAL:
            self._written = time.monotonic()
            self._write(finished, "running")

    def end(self, finished: int) -> None:
        """The run ends normally, after so many finished steps."""
        self._write(finished, "ended")
        self.leave()

    def leave(self) -> None:
        """Say farewell to the guardian: this rank leaves the run."""
        if self._guardian is not None and self._guardian.poll() is None:
            self._guardian.communicate(b"farewell\n")

    def _write(self, finished: int, state: str) -> None:
        """Replace the file atomically. A full disk must not end the run."""
        aside = self._path.with_suffix(".new")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with suppress(OSError):
            aside.write_text(
                json.dumps(self._about | {"step": finished, "time": now, "state": state}),
                encoding="utf-8",
            )
            os.replace(aside, self._path)


def _guardian(rank: int, folder: Path) -> subprocess.Popen[bytes] | None:
    """The shell beside a rank; None where it cannot be started, which must not end the run."""
    try:
        return subprocess.Popen(
            ["sh", "-c", GUARDIAN, "guardian", str(rank), folder / "died"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # the launcher waits until its pipes are closed
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that signals to the rank's group do not reach it
        )
    except OSError:
        return None


def previous_failure(out: Path) -> list[str]:
    """A line on how the previous run failed, if it did, and one for each file that cannot go.

    Empties the folder of heartbeats for this run.
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
    """A line on the rank that died first, if one did.

    When a whole machine loses power, no guardian can tell; then the rank furthest behind is named.
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
    """A heartbeat; empty where the file is damaged."""
    try:
        with files.open_plain(path) as file:
            beat: dict[str, Any] = json.load(file)
        return beat if {"rank", "host", "pid", "step", "time"} <= beat.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}
