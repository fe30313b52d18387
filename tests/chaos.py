"""`make chaos`: runs that are killed, frozen, stopped, cut off and starved of disk at random
moments, and go on each time.

A run is disturbed again and again until it is complete; then its bits must be those of a run that
nobody disturbed. Every fault is followed by a resume. What counts as lost: a checkpoint that was
complete and no longer is, a run that never ends by itself, a bit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dls.record import checkpoint, reader
from dls.record.schema import TraceError
from dls.tools.hosts import Hosts
from dls.tools.programs import mpirun
from tests.launch import OPEN_MPI, ROOT, wait_until

RANKS = 3
STEPS = 600
SETTINGS = (
    *(
        "--mlp-widths",
        "96,48",
        "--batch-size",
        "8",
        "--density",
        "0.02",
        "--threads",
        "1",
        "--backend",
        "numpy",
    ),
    *("--steps", str(STEPS), "--checkpoint-every", "25", "--eval-every", "150", "--timeout", "3"),
)
START = 4.0
"""Seconds in which a run has begun to train, at most; faults come within them and a little later.
"""
HANG = 60.0
"""Seconds after a fault in which a run must have ended, or gone on to its end."""
AWAITED = 10.0
"""Seconds in which a run writes a checkpoint or a part of its trace."""
DISK = "24m"
"""Size of the disk that is filled."""


@dataclass
class Report:
    """What happened."""

    faults: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    steps_lost: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    runs: int = 0
    equal: int = 0

    def lines(self) -> Iterator[str]:
        """For people."""
        for name in sorted(self.faults):
            yield f"{name:28s} {self.faults[name]:4d} tried {self.survived[name]:4d} survived"
        lost = self.steps_lost
        yield f"{'in all':28s} {self.faults.total():4d} tried {self.survived.total():4d} survived"
        yield f"steps done again after a fault: {sum(lost)} in all, {max(lost, default=0)} at most"
        yield f"runs with the bits of the undisturbed one: {self.equal} of {self.runs}"
        yield from (f"PROBLEM: {problem}" for problem in self.problems)


@dataclass(frozen=True)
class World:
    """Where runs take place: a folder, and what starts ranks."""

    out: Path
    command: Callable[[Sequence[str]], list[str]]
    hosts: Hosts | None = None


class Chaos:
    """Disturbs runs in a world until enough faults have been tried."""

    def __init__(self, seed: int) -> None:
        self.random, self.report = random.Random(seed), Report()

    def run(self, world: World, undisturbed: bytes, faults: Sequence[Fault]) -> None:
        """One run, disturbed by each of the faults in turn, then left alone to its end."""
        shutil.rmtree(world.out, ignore_errors=True)
        self.report.runs += 1
        for fault in faults:
            if self._is_complete(world):
                break
            self._disturb(world, fault)
        with self._started(world) as program:
            self._wait(program, "the last resume")
        state = _final_state(world.out)
        self.report.equal += state == undisturbed
        if state != undisturbed:
            self.report.problems.append(f"{world.out}: other bits than the undisturbed run")
        recorded = Counter(reader.read(world.out / "trace.h5").steps["step"].tolist())
        wrong = [
            step
            for step in {*range(1, STEPS + 1), *recorded}
            if recorded[step] != (1 <= step <= STEPS)
        ]
        if wrong:
            tried = ", ".join(fault.__name__ for fault in faults)
            self.report.problems.append(
                f"after {tried}: the trace does not hold {len(wrong)} steps from {min(wrong)} on"
                " once"
            )

    def _disturb(self, world: World, fault: Fault) -> None:
        name = fault.__name__.strip("_")
        before = _newest(world.out)
        with self._started(world) as program:
            self.report.faults[name] += 1
            fault(self, world, program)
            ended = self._wait(program, name)
        after = _newest(world.out)
        if after < before:
            self.report.problems.append(
                f"{name}: the checkpoint of step {before} is lost, the newest is of {after}"
            )
        elif ended:
            self.report.survived[name] += 1
            self.report.steps_lost.append(max(0, _reached(world.out) - after))

    @contextmanager
    def _started(self, world: World) -> Iterator[subprocess.Popen[bytes]]:
        command = world.command(
            ["-m", "dls.train", *SETTINGS, "--out", str(world.out), "--resume=auto"]
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"} | OPEN_MPI
        with subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as program:
            try:
                yield program
            finally:
                for process in [*ranks(world.out).values(), program.pid]:
                    _signal(process, signal.SIGKILL)

    def _wait(self, program: subprocess.Popen[bytes], what: str) -> bool:
        """Whether the program ended by itself."""
        try:
            program.wait(timeout=HANG)
        except subprocess.TimeoutExpired:
            self.report.problems.append(f"{what}: the run hangs")
            return False
        return True

    def _is_complete(self, world: World) -> bool:
        return _newest(world.out) == STEPS

    def pause(self, longest: float = START) -> None:
        """Until a random moment."""
        time.sleep(self.random.uniform(0.3, longest))

    def some_rank(self, world: World) -> int | None:
        """The process of a random rank, None where none is there."""
        found = ranks(world.out)
        return found[self.random.choice(sorted(found))] if found else None


Fault = Callable[[Chaos, World, "subprocess.Popen[bytes]"], None]


# Faults -------------------------------------------------------------------------------------------


def _kill_a_rank(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    chaos.pause()
    _signal(chaos.some_rank(world), signal.SIGKILL)


def _kill_in_a_checkpoint(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    """While a checkpoint is being written aside."""
    wait_until(lambda: any((world.out / "checkpoints").glob("*.partial")), AWAITED, program)
    time.sleep(chaos.random.uniform(0, 0.01))
    _signal(chaos.some_rank(world), signal.SIGKILL)


def _kill_in_a_flush(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    """While rank 0 writes to the trace."""
    chaos.pause(1.5)
    before = _stamp(world.out / "trace.h5")
    wait_until(lambda: _stamp(world.out / "trace.h5") != before, AWAITED, program)
    _signal(ranks(world.out).get(0), signal.SIGKILL)


def _kill_mpirun(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    chaos.pause()
    program.kill()
    if not wait_until(lambda: not ranks(world.out), HANG):
        chaos.report.problems.append("kill_mpirun: its ranks go on without it")


def _freeze_a_rank(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    """Past the timeout."""
    chaos.pause()
    _signal(chaos.some_rank(world), signal.SIGSTOP)


def _freeze_for_a_moment(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    """A late rank is waited for; the run goes on."""
    chaos.pause()
    process = chaos.some_rank(world)
    _signal(process, signal.SIGSTOP)
    time.sleep(chaos.random.uniform(0.1, 1))
    _signal(process, signal.SIGCONT)


def _ask_a_rank_to_stop(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    chaos.pause()
    _signal(chaos.some_rank(world), chaos.random.choice([signal.SIGTERM, signal.SIGUSR1]))


def _ask_mpirun_to_stop(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    chaos.pause()
    _signal(program.pid, chaos.random.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))


def _fill_the_disk(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    """Until the run ends; then there is room again."""
    chaos.pause()
    filler = world.out.parent / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
    except OSError:
        wait_until(lambda: program.poll() is not None, HANG)
    finally:
        filler.unlink(missing_ok=True)


def _cut_a_link(chaos: Chaos, world: World, program: subprocess.Popen[bytes]) -> None:
    """For a second or for longer than the timeout."""
    chaos.pause()
    assert world.hosts is not None
    host = chaos.random.randrange(world.hosts.count)
    world.hosts.set_link(host, up=False)
    time.sleep(chaos.random.choice([0.5, 1, 2, 5]))
    world.hosts.set_link(host, up=True)


ANYWHERE: Sequence[Fault] = (
    *(_kill_a_rank, _kill_in_a_checkpoint, _kill_in_a_flush, _kill_mpirun, _freeze_a_rank),
    *(_freeze_for_a_moment, _ask_a_rank_to_stop, _ask_mpirun_to_stop),
)


# Looking at runs ----------------------------------------------------------------------------------


def ranks(out: Path) -> dict[int, int]:
    """The processes of a run: rank to process number."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = dict(
                item.partition(b"=")[::2]
                for item in (process / "environ").read_bytes().split(b"\0")
            )
        except OSError:
            continue
        if b"dls.train" in words and str(out).encode() in words and b"PMI_RANK" in environment:
            found[int(environment[b"PMI_RANK"])] = int(process.name)
    return found


def _signal(process: int | None, number: int) -> None:
    if process is not None:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            return


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _newest(out: Path) -> int:
    """The step of the newest checkpoint that verifies, 0 where there is none."""
    found = checkpoint.latest(out)
    return found.step if found else 0


def _reached(out: Path) -> int:
    """The last step that the trace tells of."""
    try:
        steps = reader.read(out / "trace.h5").steps["step"]
    except TraceError:
        return 0
    return int(steps[-1]) if len(steps) else 0


def _final_state(out: Path) -> bytes:
    """Weights, momentum, residuals and k of all ranks after the last step."""
    found = checkpoint.latest(out)
    if found is None or found.step != STEPS:
        return b""
    parts = [checkpoint.load(found, rank) for rank in range(RANKS)]
    return b"".join(
        array.tobytes()
        for shared, own in parts
        for part in (shared, own)
        for _, array in sorted(part.items())
    )


# The worlds ---------------------------------------------------------------------------------------


def _plainly(args: Sequence[str]) -> list[str]:
    return [mpirun(), "-n", str(RANKS), sys.executable, *args]


def _in_one_process(args: Sequence[str]) -> list[str]:
    return [sys.executable, *args, "--workers", str(RANKS)]


@contextmanager
def _small_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def disturb(count: int, seed: int, say: Callable[[str], None] = lambda line: None) -> Report:
    """Try about `count` faults, with root's means where this is root, and report."""
    chaos = Chaos(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        worlds = [(World(folder / "run", _plainly), ANYWHERE)]
        if os.geteuid() == 0:
            worlds.append(
                (World(stack.enter_context(_small_disk()) / "run", _plainly), (_fill_the_disk,))
            )
            hosts = stack.enter_context(Hosts(RANKS))
            linked = World(
                folder / "linked", lambda args: hosts.mpirun(RANKS, [sys.executable, *args]), hosts
            )
            worlds.append((linked, (_cut_a_link,)))
        quiet = World(folder / "undisturbed", _in_one_process)  # the same bits, sooner
        with chaos._started(quiet) as program:
            chaos._wait(program, "the undisturbed run")
        undisturbed = _final_state(quiet.out)
        assert undisturbed, "the undisturbed run did not come to its end"
        for world, faults in itertools.cycle(worlds):
            if chaos.report.faults.total() >= count:
                return chaos.report
            chosen = [
                chaos.random.choice(faults)
                for _ in range(min(8 if faults is ANYWHERE else 2, count))
            ]
            chaos.run(world, undisturbed, chosen)
            latest = "".join(f"; the last: {problem}" for problem in chaos.report.problems[-1:])
            say(
                f"{chaos.report.faults.total()} of {count} faults, {len(chaos.report.problems)}"
                f" problems{latest}"
            )
    raise AssertionError("unreachable")


def main() -> int:
    """Exit status: 0 where nothing was lost, 1 otherwise."""
    parser = argparse.ArgumentParser(description="Disturb runs and look at what is lost.")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    report = disturb(options.faults, options.seed, lambda line: print(line, flush=True))
    print("\n".join(report.lines()))
    return 1 if report.problems or report.survived.total() != report.faults.total() else 0


if __name__ == "__main__":
    sys.exit(main())
