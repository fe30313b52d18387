"""Signs of life: when a run breaks off without a word, the next one tells which rank was the first to die.

OUT/heartbeats/rank-00000.json, … say of each rank who it is and, about once a second, how far. That does not tell the dead from
the survivors, whom MPICH kills within 2 ms. So each rank has a guardian, a shell that waits for its end: the first guardian whose
rank ends without a farewell writes the rank's number to OUT/heartbeats/died, which only one of them can create.
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

from dls.comm import Comm

INTERVAL = 1.0
"""Seconds between two heartbeats, at least."""
GUARDIAN = 'trap "" HUP INT TERM USR1; read -r farewell || { set -C; echo "$1" > "$2"; }'
"""Reads what the rank says to it: nothing until a farewell, or the end of the rank. -C: `>` creates, and replaces nothing."""


class Heartbeat:
    """One rank's signs of life, from `step` finished steps on. The folder is there, made by `last_words`."""

    def __init__(self, out: Path, comm: Comm, step: int) -> None:
        folder = out / "heartbeats"
        self._path = folder / f"rank-{comm.rank:05d}.json"
        self._about = {"rank": comm.rank, "host": comm.host, "pid": os.getpid()}
        self._written = time.monotonic()
        self._write(step, "running")
        self._guardian = subprocess.Popen(
            ["sh", "-c", GUARDIAN, "guardian", str(comm.rank), folder / "died"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # the launcher waits until nobody holds its pipes
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of what kills the rank
        )

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
        if self._guardian.poll() is None:
            self._guardian.communicate(b"farewell\n")

    def _write(self, step: int, state: str) -> None:
        """Replace the file at once. A disk that is full for a moment must not end the run."""
        aside = self._path.with_suffix(".new")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with suppress(OSError):
            aside.write_text(json.dumps(self._about | {"step": step, "time": now, "state": state}), encoding="utf-8")
            os.replace(aside, self._path)


def last_words(out: Path) -> str | None:
    """How the run before came to a bad end, in one line; None where it did not. Makes the folder anew, for this run."""
    words = _failure(out / "failure.txt") or _death(out / "heartbeats")
    (out / "failure.txt").unlink(missing_ok=True)
    shutil.rmtree(out / "heartbeats", ignore_errors=True)
    (out / "heartbeats").mkdir(exist_ok=True)
    return words


def _failure(report: Path) -> str | None:
    if not report.exists():
        return None
    line, _, _ = report.read_text(encoding="utf-8").partition("\n")
    return f"the run before failed: {line}"


def _death(folder: Path) -> str | None:
    """What guardians and heartbeats tell; where a whole machine went down no guardian speaks, and the last rank is named."""
    running = [beat for beat in map(_read, sorted(folder.glob("rank-*.json"))) if beat.get("state") == "running"]
    if not running:
        return None
    died = folder / "died"
    first = died.read_text(encoding="utf-8").strip() if died.exists() else ""
    dead = next((beat for beat in running if str(beat["rank"]) == first), None)
    beat, fate = (dead, "was the first to die") if dead else (min(running, key=_progress), "was the furthest behind")
    who = f"rank {beat['rank']} (process {beat['pid']} on {beat['host']})"
    return f"the run before broke off: {who} {fate}, last heard of after step {beat['step']} at {beat['time']}"


def _progress(beat: dict[str, Any]) -> tuple[int, str]:
    return beat["step"], beat["time"]


def _read(path: Path) -> dict[str, Any]:
    """A heartbeat; nothing where it is damaged."""
    try:
        beat: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return beat if {"rank", "host", "pid", "step", "time"} <= beat.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}
