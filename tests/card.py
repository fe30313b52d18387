"""`python -m tests.card`: every test of the CuPy backend on this machine's GPU, then its times, to
runs/results/ as it goes.

Each part is a process of its own with a limit of time, so that a part that hangs leaves the others
their turn, and what it has written so far. `--host` puts the CPU in the GPU's place, to see that
all of this works.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dls import backends
from dls.bench import __main__ as bench
from dls.record import files
from dls.tools import machine, reports
from gpu.cupy import device
from tests.launch import ROOT

RESULTS = ROOT / "runs" / "results"
TESTS = (
    "tests/backends/test_gpu_logic.py",
    "tests/backends/test_backends.py",
    "tests/backends/test_backend_nn.py",
    "tests/backends/test_replay.py",
    "tests/tools/test_bench.py",
)
TORCH = ("tests/torch/test_attach.py",)
"""What is added where PyTorch reaches the GPU as well."""
CARD = "not numba and not numpy"
"""What of these is for the card, as pytest's -k has it: the turns of numpy and numba need none."""
PLUGINS = ("pytest_timeout", "xdist.plugin", "_hypothesis_pytestplugin")
"""Those of pytest that are used where they are there, and no others, of which a machine may have
many.
"""
WORKERS = 4
"""Processes that share the tests out: most of them wait for Python, not for the card."""
LIMIT, OF_TESTS = 345.0, 0.6
"""Seconds in all, and the share of the tests, which leave the rest to the measurements."""
SIZES = {"select": "1000000,25600000,vgg16,resnet20,100000000", "adjust": "vgg16,resnet20"}
"""What is measured, the longest last: 100,000,000 values take 5 GB of the card's memory."""
ON_HOST = {"select": "2000,resnet20", "adjust": "resnet20"}
RESULT, HOST, OF_TORCH = "DLS_TEST_RESULT", "DLS_TEST_HOST", "DLS_TEST_TORCH"
"""Variables that tell a part where the tests' outcome goes, whether the CPU stands in, and where
PyTorch's tensors are.
"""


# The parts ----------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Test and measure.

    Exit status: 0 all is well, 1 a part failed or came to its limit, 2 there is no card.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.card", description="Test and measure the CuPy backend on a GPU."
    )
    parser.add_argument(
        "--host", action="store_true", help="with the CPU in the GPU's place, on tiny sizes"
    )
    parser.add_argument(
        "--limit", type=float, default=LIMIT, metavar="SECONDS", help="in all (default %(default)g)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="where results go (default %(default)s)",
    )
    options, of_pytest = parser.parse_known_args(argv)
    os.environ[HOST if options.host else "DLS_TEST_GPU"] = "1"
    try:
        _use_host_if_told()
        backends.load("cupy")
    except backends.BackendMissing as error:
        print(f"tests.card: {error}", file=sys.stderr)
        return 2
    outcome = Outcome.begin(options.results, machine.describe("cupy"))
    print(f"{outcome.about['device']}: results go to {options.results}", flush=True)
    deadline = time.monotonic() + options.limit
    os.environ[RESULT] = str(outcome.path)
    failed = [_run("tests", _pytest(of_pytest), deadline - (1 - OF_TESTS) * options.limit)]
    failed += [_run(name, _bench(name, options), deadline) for name in SIZES]
    return int(any(failed))


def _pytest(more: Sequence[str]) -> list[str]:
    """The tests' command. Warnings of packages in other versions than ours end no test."""
    plugins = [name for name in PLUGINS if importlib.util.find_spec(name.split(".")[0])]
    named = [word for name in (*plugins, "tests.card") for word in ("-p", name)]
    workers = ["-n", str(WORKERS), "--dist", "worksteal"] if "xdist.plugin" in plugins else []
    tests = list(TESTS)
    if _torch_has_a_card():
        os.environ[OF_TORCH] = "cuda"
        tests += TORCH
    return ["-m", "pytest", *named, *workers, "-W", "default", "-k", CARD, *tests, *more]


def _torch_has_a_card() -> bool:
    """Whether there is PyTorch, and it uses this GPU as well."""
    if os.environ.get(HOST) or importlib.util.find_spec("torch") is None:
        return False
    return bool(importlib.import_module("torch").cuda.is_available())


def _bench(name: str, options: argparse.Namespace) -> list[str]:
    """A measurement's command, on all cores for what stands beside the card."""
    sizes = (ON_HOST if options.host else SIZES)[name]
    threads = str(len(os.sched_getaffinity(0)))
    program = "import sys; from tests import card; sys.exit(card.measure(sys.argv[1:]))"
    flags = [
        "--backend",
        "cupy",
        "--sizes",
        sizes,
        "--threads",
        threads,
        "--report",
        str(options.results),
    ]
    return ["-c", program, name, *flags]


def measure(argv: list[str]) -> int:
    """`dls.bench`, on the card or on what stands in for it."""
    _use_host_if_told()
    return bench.main(argv)


def _run(part: str, arguments: Sequence[str], deadline: float) -> bool:
    """Run Python with these arguments until the deadline at most; whether it failed, which a line
    says.
    """
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    seconds = max(1.0, deadline - time.monotonic())
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            status = process.wait(seconds)
            end = f"ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            end = f"cut off after {seconds:.0f} seconds"
        finally:
            with contextlib.suppress(ProcessLookupError):  # none of its own processes outlives it
                os.killpg(process.pid, signal.SIGKILL)
    if end:
        print(f"tests.card: {part}: {end}", file=sys.stderr, flush=True)
    return bool(end)


def _use_host_if_told() -> None:
    """Put the CPU in the GPU's place where the variable says so."""
    if os.environ.get(HOST):
        from tests.gpu_on_host import Host

        with tempfile.TemporaryDirectory() as folder:  # what is loaded needs its file no more
            device.use(Host(Path(folder)))


# The tests' outcome -------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How the tests went so far, and on what: a plugin of pytest that keeps it in a file."""

    path: Path
    about: dict[str, Any]
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def begin(cls, folder: Path, about: dict[str, Any]) -> Outcome:
        """With no test done yet, in a file that is named after the device."""
        folder.mkdir(parents=True, exist_ok=True)
        outcome = cls(folder / f"test-gpu-{reports.slug(about['device'])}.json", about)
        outcome.write()
        return outcome

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """As it was begun."""
        return cls(path, json.loads(path.read_text(encoding="utf-8"))["measured_on"])

    def write(self) -> None:
        """Keep what there is."""
        counts = {name: self.counts[name] for name in ("passed", "failed", "skipped")}
        found = {
            "complete": self.complete,
            **counts,
            "skipped because": self.reasons,
            "failures": self.failures,
        }
        files.write_text(
            self.path, json.dumps({"measured_on": self.about, **found}, indent=2) + "\n"
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that is over, one whose setup or teardown failed as well."""
        if report.when == "call" or not report.passed:
            self.counts[report.outcome] += 1
            if isinstance(report.longrepr, tuple):  # where a test was skipped, and why
                self.reasons[report.longrepr[2]] += 1
            if report.failed:
                self.failures.append({"test": report.nodeid, "words": report.longreprtext[-2000:]})
            self.write()

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """All tests have had their turn, unless the session was broken off."""
        self.complete = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        self.write()


def pytest_configure(config: pytest.Config) -> None:
    """Watch the tests, in the process that starts the others."""
    path = os.environ.get(RESULT)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcome.read(Path(path)))


if __name__ == "__main__":
    sys.exit(main())
