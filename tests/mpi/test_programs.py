"""How the program meets its surroundings: launchers, readers, signals, machines without MPI, and
programs that call it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from dls.program import sources
from dls.record import checkpoint, reader
from dls.tools.programs import mpirun
from tests.conftest import lines
from tests.launch import OPEN_MPI, ROOT, finish, launch, start, wait_until

SCRIPT = Path(sys.executable).with_name("dls")
TINY = ("--mlp-widths", "8", "--batch-size", "4", "--threads", "1", "--backend", "numpy")
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3"}
NO_MPI = {"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"}


def python(
    *args: str, cwd: Path, text: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run Python, with `text` on its stdin."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"} | environ
    command = [sys.executable, *args]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "program", [["-m", "dls.train", *TINY, "--steps", "1"], ["-m", "dls.bench", "step"]]
)
def test_ranks_that_mpi_does_not_see_are_refused_once(program: list[str], tmp_path: Path) -> None:
    """As of srun without PMI: each process is a world of its own, and the launcher's rank 0 says
    so.
    """
    ended = [python(*program, cwd=tmp_path, **STEP, SLURM_PROCID=rank) for rank in ("0", "2")]
    assert [done.returncode for done in ended] == [2, 2]
    assert [done.stdout + done.stderr for done in ended[1:]] == [""]
    (line,) = lines(ended[0].stderr)
    assert line.startswith(
        f"{program[1]}: SLURM_STEP_NUM_TASKS=3: the launcher started more processes than the 1"
        " that "
    )
    assert not list(tmp_path.iterdir())


WITHOUT = """
import importlib, sys
sys.modules["numba"] = None
modules = ("train", *(f"{part}.__main__" for part in sys.argv[2:]))
mains = [importlib.import_module(f"dls.{name}").main for name in modules]
for main in mains:
    for flag in ("--help", "--version"):
        try:
            status = main([flag])
        except SystemExit as end:
            status = end.code
        assert not status, (main, flag)
assert "mpi4py.MPI" not in sys.modules
sys.exit(mains[0]([]))
"""


def test_without_an_mpi_library_there_is_help_and_a_line_that_says_what_to_do(
    tmp_path: Path,
) -> None:
    done = python("-c", WITHOUT, "", "inspect", "bench", "study", "theory", cwd=tmp_path, **NO_MPI)
    assert done.returncode == 2, done.stderr
    (line,) = lines(done.stderr)
    assert line.startswith(
        "dls.train: there is no MPI library: pip install 'dls[mpich]', or load the cluster's MPI"
    )
    assert done.stdout.count("usage: ") == 5
    assert len([line for line in lines(done.stdout) if line.startswith("dls ")]) == 5
    done = python("-m", "dls.bench", "exchange", cwd=tmp_path, **NO_MPI)
    assert (done.returncode, len(lines(done.stderr))) == (2, 1), done.stderr


ASKED_EARLY = """
import os, runpy, signal, sys
class Ask:
    def find_spec(self, name, *rest):
        if name == "dls.comm": os.kill(os.getpid(), signal.SIGUSR1)
sys.meta_path.insert(0, Ask())
"""
MODULE = """
sys.argv[0] = "dls.train"
runpy.run_module("dls.train", run_name="__main__", alter_sys=True)
"""
PROGRAM = """
sys.argv[:1] = ["dls", "train"]
from dls.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("called", [MODULE, PROGRAM])
def test_a_signal_during_the_imports_stops_the_run_after_its_first_step(
    called: str, tmp_path: Path
) -> None:
    args = [*TINY, "--steps", "9", "--out", "run"]
    done = python("-c", ASKED_EARLY + called, *args, cwd=tmp_path)
    assert done.returncode == os.EX_TEMPFAIL, done.stderr
    assert "stopped after step 1 of 9" in done.stdout


def test_a_signal_ends_the_wait_for_a_configuration_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    opened: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):  # until there is a reader
            opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    program = start([(0, ["-m", "dls.train", "--config", pipe])], tmp_path)
    assert wait_until(is_read, 60, program)
    program.send_signal(signal.SIGTERM)
    done = finish(program)
    os.close(opened[0])
    assert (done.status, done.err) == (1, "dls.train: rank 0, at the start: interrupted\n")


@pytest.mark.parametrize("before", [[str(SCRIPT)], [sys.executable, "-m", "dls"]])
def test_one_program_trains_on_ranks_and_goes_on(before: list[str], tmp_path: Path) -> None:
    """`mpirun -n 2 dls train` is stopped, and names the command that goes on."""
    command = [mpirun(), "-n", "2", *before, "train", *TINY, "--steps", "1000000", "--out", "run"]
    environment = os.environ | OPEN_MPI | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    program = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert "2 ranks" in program.stdout.readline()
    assert wait_until(lambda: (tmp_path / "run" / "trace.h5").exists(), 60, program)
    program.send_signal(signal.SIGUSR1)
    done = finish(program)
    assert (done.status, done.err) == (os.EX_TEMPFAIL, "")
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    *_, last = lines(done.out)
    typed = shlex.split(last.removeprefix("go on with "))
    assert typed == [mpirun(), "-n", "2", *before, "train", "--resume", "--out", "run"]
    again = subprocess.run(
        [*typed, "--steps", str(found.step + 1)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    trace = reader.read(tmp_path / "run" / "trace.h5")
    assert sources.states(trace.header.attributes)[-1].digest == sources.state("dls").digest


CALLED = """
import os, shlex, signal, sys, threading
from dls.train import main
before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
tiny = sys.argv[1:]
print(main([*tiny, "--steps", "2", "--out", "good"]))
print(main([*tiny, "--steps", "9", "--lr", "3e38", "--out", "bad"]))
print(main(["--method", "best"]))
statuses = []
again = [*tiny, "--steps", "3", "--out", "good", "--resume"]
thread = threading.Thread(target=lambda: statuses.append(main(again)))
thread.start()
thread.join()
print(*statuses)
numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
assert before == [signal.getsignal(number) for number in numbers]
print("alive")
"""


def test_a_program_that_calls_main_goes_on_whatever_becomes_of_the_run(tmp_path: Path) -> None:
    """Alone, a rank ends nothing but itself; here the program comes from a pipe, as one in a
    notebook has no file either.
    """
    done = python("-", *TINY, cwd=tmp_path, text=CALLED)
    assert done.returncode == 0, done.stderr
    assert [line for line in lines(done.stdout) if len(line) == 1 or line == "alive"] == [
        "0",
        "1",
        "2",
        "0",
        "alive",
    ]
    failed, refused = lines(done.stderr)
    assert failed.startswith("dls.train: rank 0, step ")
    assert refused.startswith("dls.train: unknown method 'best'")
    assert (tmp_path / "bad" / "failure.txt").read_text().startswith("rank 0, step ")


def test_a_run_goes_on_when_nobody_reads_its_words(tmp_path: Path) -> None:
    flags = " ".join((*TINY, "--steps 30 --eval-every 1 --out run"))
    program = f"set -o pipefail; {sys.executable} -m dls.train {flags} 2>&1 | true"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"} | OPEN_MPI
    done = subprocess.run(
        [mpirun(), "-n", "3", "bash", "-c", program],
        cwd=tmp_path,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 30


def test_a_full_disk_behind_its_words_ends_no_run_but_what_only_prints(tmp_path: Path) -> None:
    for args, status in (([*TINY, "--steps", "2", "--out", "run"], 0), (["run"], 2)):
        program = "dls.train" if "--steps" in args else "dls.inspect"
        with open("/dev/full", "w", encoding="utf-8") as full:
            command = [sys.executable, "-m", program, *args]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            environment.pop(
                "PYTHONUNBUFFERED", None
            )  # else nothing is left for Python to write when it ends
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env=environment,
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert done.returncode == status, done.stderr


EXITS = """
import sys
from mpi4py import MPI
from dls import train
step = train._step
def leaving(run, recorder, reporter, number):
    if number == 3 and MPI.COMM_WORLD.rank == 1: sys.exit(0)
    step(run, recorder, reporter, number)
train._step = leaving
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_rank_that_exits_ends_all(tmp_path: Path) -> None:
    done = launch([(3, ["-c", EXITS, *TINY, "--steps", "9", "--out", "run"])], tmp_path)
    assert done.status == 1
    assert lines(done.err) == ["dls.train: rank 1, step 3: SystemExit: 0; see run/failure.txt"]


@pytest.mark.parametrize(
    "args",
    [
        ("dls.train", *TINY, "--steps", "1"),
        ("dls.bench", "exchange", "--sizes", "1000", "--steps", "1"),
    ],
)
def test_a_process_alone_among_others_says_so_where_none_may_know_of_all(
    args: tuple[str, ...], tmp_path: Path
) -> None:
    """Its launcher tells which process it is, and not how many there are."""
    done = python("-m", *args, cwd=tmp_path, PALS_RANKID="5")
    (line,) = lines(done.stderr)
    assert (done.returncode, line.startswith(f"{args[0]}: PALS_RANKID=5: ")) == (2, True)
