"""How a run ends in failure: one line from one rank, details in failure.txt, status 1 or 2."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

from dls.comm import local
from dls.comm.base import Comm
from dls.comm.errors import ExchangeError
from dls.program.consensus import DivergenceError
from dls.record.checkpoint import CheckpointError
from dls.record.files import described, one_line
from dls.record.schema import TraceError
from reference.ops import NonFiniteError
from reference.wire import MessageError

EXPECTED = (
    CheckpointError,
    DivergenceError,
    ExchangeError,
    KeyboardInterrupt,
    MessageError,
    NonFiniteError,
    OSError,
    TraceError,
)
"""Errors whose message says enough. Any other is a mistake in the program; its traceback is kept.
"""
ADVICE: dict[type[BaseException], str] = {
    NonFiniteError: "; a lower --lr, --clip-norm or --on-nan skip may help"
}
"""What the user can do about some errors."""
WAIT_FOR_ABORT = 5.0
"""Seconds for which a rank that fails later waits to be ended by the rank that failed first."""
HEAD_START = 0.1
"""Seconds that each rank waits for the rank before it, where no file can tell who failed first."""


def refuse(error: Exception, rank: int) -> int:
    """Print one line, on rank 0. Returns the exit status of bad usage."""
    if rank == 0:
        print(f"dls.train: {one_line(str(error))}", file=sys.stderr)
    return 2


def fail(error: BaseException, when: str, out: Path | None, comm: Comm) -> int:
    """End all ranks with status 1, and print one line on the first rank that fails.

    when: where in the run it happened. out: the run's folder, for failure.txt. A rank that is alone
    returns the status instead, to the program that called it.
    """
    if isinstance(error, local.Ended):
        raise error  # the worker that ended the run has reported it
    try:
        report = out / "failure.txt" if out else None
        line, details = _words(error, f"rank {comm.rank}, {when}", report)
        _let_first_speak(report, details, comm.rank)
        print(f"dls.train: {line}", file=sys.stderr)
    finally:
        if not comm.alone:
            comm.abort(1)
    return 1


def _words(error: BaseException, where: str, report: Path | None) -> tuple[str, str]:
    """The line for the user, and the text of failure.txt."""
    if isinstance(error, EXPECTED):
        line = f"{where}: {_expected(error)}"
        return line, line
    line = f"{where}: {type(error).__name__}: {error}"
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    more = f"; see {report}" if report else notes
    return line + more, f"{line}\n\n{traceback.format_exc()}"


def _expected(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return one_line(described(error)) + ADVICE.get(type(error), "")


def _let_first_speak(report: Path | None, text: str, rank: int) -> None:
    """Return at once on the first rank that fails, which writes the report.

    On the others wait: the first one ends them.
    """
    if report is None:
        time.sleep(HEAD_START * rank)
        return
    try:
        with report.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError:
        time.sleep(WAIT_FOR_ABORT)
    except OSError:
        time.sleep(HEAD_START * rank)
