"""What rank 0 shows during a run: a live bar on a terminal, otherwise lines at intervals."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dls import traffic
from dls.comm import launcher
from dls.program import invocation
from dls.program.pace import Pace

LINE_INTERVAL = 10.0
"""Seconds without a line after which the next step prints one."""


class Reporter:
    """Prints the progress of a run after `finished` steps; quiet: nothing, on ranks other than 0.

    `at`: the step that is being taken, for messages about failures.
    """

    def __init__(self, style: str, finished: int, total: int, quiet: bool) -> None:
        self._quiet, self._total = quiet, total
        self.at = finished
        self._started = self._spoke = time.monotonic()
        self._resumed_after, self._sent, self._received = finished, 0, 0
        self._pace = Pace(total)
        self._last, self._warning, self._skipped = "", "", 0
        self._said: set[str] = set()
        launched = launcher.launched(os.environ)  # then output goes through it, to no terminal
        forced = {"auto": False if launched else None, "bar": True, "plain": False}[style]
        self._console = Console(force_terminal=forced, highlight=False, soft_wrap=True, quiet=quiet)
        texts = TextColumn("{task.description}"), TextColumn("{task.fields[pace]}")
        self._bar = Progress(
            texts[0], BarColumn(), MofNCompleteColumn(), texts[1], console=self._console
        )
        self._task = self._bar.add_task("training", total=total, completed=finished, pace="")
        if self._console.is_terminal and not quiet:
            self._bar.start()

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self._spoke = time.monotonic()
        self._console.print(line, markup=False)
        self._console.file.flush()

    def say_once(self, line: str) -> None:
        """Print a line, unless it was printed before."""
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def step(self, step: int, loss: float, sent: int, received: int) -> None:
        """Step number `step` is finished, with so many bytes sent and received."""
        self._pace.step(step, time.monotonic())
        self._sent += sent
        self._received += received
        self._bar.update(
            self._task, completed=step, description=f"loss {loss:.4f}", pace=str(self._pace)
        )
        if not self._bar.live.is_started and time.monotonic() - self._spoke > LINE_INTERVAL:
            self.say(f"step {step}/{self._total}  loss {loss:.4f}  {self._pace}".rstrip())

    def skipped(self, step: int, ranks: Sequence[int]) -> None:
        """All ranks left this step out, as these ranks found NaN or infinity."""
        self._skipped += 1
        who = f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"
        self.say(f"step {step}/{self._total}  skipped: NaN or infinity on {who}")

    def evaluation(self, step: int, epoch: int, loss: float, accuracy: float, warning: str) -> None:
        """Print the result of an evaluation.

        A warning is printed when the previous evaluation had none, and at the end of the run.
        """
        self._last = f"; test accuracy {accuracy:.2%}, loss {loss:.4f}"
        result = f"test loss {loss:.4f}  accuracy {accuracy:.2%}"
        self.say(f"step {step}/{self._total}  epoch {epoch}  {result}  {self._pace}".rstrip())
        if warning and not self._warning and step < self._total:
            self.say(f"so far, {warning}")
        self._warning = warning

    def done(self, out: Path, ring: int) -> None:
        """The run is complete. ring: bytes a step of a ring Allreduce of the whole gradient."""
        self.close()
        steps, seconds = self._total - self._resumed_after, time.monotonic() - self._started
        sent, received, dense = map(traffic.readable, (self._sent, self._received, steps * ring))
        skipped = f", {self._skipped} of them skipped" if self._skipped else ""
        self.say(f"done: {steps} steps in {seconds:.1f} s{skipped}{self._last}")
        self.say(
            f"rank 0 sent {sent} and received {received}; a dense ring Allreduce would"
            f" move {dense} each way"
        )
        self._warn()
        self.say(f"look into it with {shlex.join([*invocation.command('inspect'), str(out)])}")

    def stopped(self, step: int, out: Path, ranks: int) -> None:
        """The run was asked to stop, and ended after this step."""
        self.close()
        self.say(f"stopped after step {step} of {self._total}{self._last}")
        self._warn()
        self.say(f"go on with {invocation.go_on(out, ranks)}")

    def _warn(self) -> None:
        if self._warning:
            self.say(f"warning: {self._warning}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar.live.is_started:
            self._bar.stop()
