"""What the tests share: ranks started from plain pytest."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dls import traffic
from dls.exchange import methods
from gpu.cupy import device
from reference import collectives
from tests import compiled, newcomers
from tests.gpu_on_host import Host
from tests.launch import ROOT, Finished, launch

COMPILED = "dls/compiled"
"""Where pytest's cache keeps the fingerprint of what is compiled."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would the programs that tests interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Before there are workers, compile for all of them, where that was not done before."""
    config = session.config
    cache = getattr(config, "cache", None)
    workers = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if workers and cache and cache.get(COMPILED, None) != compiled.fingerprint():
        compiled.compile_all()
        cache.set(COMPILED, compiled.fingerprint())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every test has its folder's marker: laws, backends, mpi, tools or torch."""
    for item in items:
        item.add_marker(item.path.relative_to(ROOT / "tests").parts[0])
    waiting = [item for item in items if item.get_closest_marker("gpu")]
    if waiting and not os.environ.get("DLS_TEST_GPU") and not has_gpu():
        let_one_speak(waiting, items, config)


def has_gpu() -> bool:
    try:
        return importlib.import_module("cupy").cuda.runtime.getDeviceCount() > 0
    except Exception:  # whatever a driver that is absent or broken raises
        return False


def let_one_speak(
    waiting: Sequence[pytest.Item], items: list[pytest.Item], config: pytest.Config
) -> None:
    """One skipped test says how many need a GPU; the others are not there."""
    first, others = waiting[0], list(waiting[1:])
    reason = f"{len(waiting)} cases wait for a GPU: make test-gpu runs them"
    first.add_marker(pytest.mark.skip(reason=reason))
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Finished]:
    """Run `python -m dls.train ARGS…` on so many ranks, from a folder that is not the checkout."""

    def run(ranks: int, *args: str | Path, cwd: Path = tmp_path) -> Finished:
        return launch([(ranks, ["-m", "dls.train", *args])], cwd)

    return run


@pytest.fixture(scope="session")
def gpu_or_host(tmp_path_factory: pytest.TempPathFactory) -> device.Device:
    """The CuPy backend's device: the GPU where there is one, else the CPU; with DLS_TEST_GPU=1
    nothing but the GPU.
    """
    try:
        return device.current()
    except ImportError as error:
        if os.environ.get("DLS_TEST_GPU"):
            pytest.exit(f"DLS_TEST_GPU is set, but {error}", returncode=1)
        device.use(Host(tmp_path_factory.mktemp("kernels")))
    return device.current()


@pytest.fixture
def newcomers_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods and a collective of tests/newcomers.py, registered for one test."""
    monkeypatch.setattr(methods, "_registered", dict(methods._registered))
    for registry in (collectives.COLLECTIVES, traffic.COLLECTIVES):
        monkeypatch.setitem(registry, newcomers.RING, None)
    newcomers.register()


def lines(text: str) -> Sequence[str]:
    """The lines that hold something."""
    return [line for line in text.splitlines() if line.strip()]
