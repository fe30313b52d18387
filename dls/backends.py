"""The backends by name, loaded on demand: who computes the primitives, Algorithm 2, the messages and the network's layers."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class BackendMissing(ValueError):
    """A backend that was asked for cannot be loaded here."""


@dataclass(frozen=True)
class Backend:
    """A backend's modules: the functions of `reference.ops`, `.adjustment`, `.wire` and `.nn`, same names, same signatures."""

    name: str
    ops: ModuleType
    adjustment: ModuleType
    wire: ModuleType
    nn: ModuleType
    compiled: bool = True
    """Whether its code lay ready on this machine when it was loaded; else the first steps wait for a compiler."""
    notes: tuple[str, ...] = ()
    """What the user should know of it on this machine, a line each."""


class _Home(NamedTuple):
    """Where a backend's modules lie, and what they need."""

    modules: tuple[str, ...]
    """Those of Backend, in its order."""
    install: str
    """How the packages that they import come here."""
    needs: str = ""
    """What there must be beside packages."""


def _parts(prefix: str) -> tuple[str, ...]:
    return tuple(prefix + part for part in ("ops", "adjustment", "wire", "nn"))


_HOMES = {
    "numpy": _Home(_parts("reference."), "pip install numpy"),
    "numba": _Home(_parts("gpu.numba_"), "pip install numba"),
    "cupy": _Home(
        _parts("gpu.cupy_"),
        "pip install 'dls[cuda]'",
        "a GPU with its driver, and CUDA's compiler and libraries, which pip install 'dls[cuda]' brings",
    ),
}


def names() -> tuple[str, ...]:
    """All backends that exist, installed or not."""
    return tuple(_HOMES)


def default() -> str:
    """numba, the fastest without a GPU, where it is installed; else the reference itself."""
    return "numba" if importlib.util.find_spec("numba") else "numpy"


def load(name: str, rank_on_node: int = 0) -> Backend:
    """The backend of that name, on this rank's share of the machine's devices.

    BackendMissing, with what is to do, where its packages, compiler or device are absent.
    """
    try:
        ops, adjustment, wire, nn = map(importlib.import_module, _HOMES[name].modules)
        ops.set_device(rank_on_node)
        backend = Backend(name, ops, adjustment, wire, nn, ops.is_compiled(), ops.notes())
        _try(backend)
        return backend
    except Exception as error:  # whatever a driver, a compiler or a library raises
        raise BackendMissing(f"the backend '{name}' {_why(error, _HOMES[name])}") from error


def _why(error: BaseException, home: _Home) -> str:
    """What is wrong with a backend, and what to do. An install command only where a package is missing."""
    words = next(iter(str(error).splitlines()), type(error).__name__)  # a compiler has many
    if _is_missing_package(error):
        return f"is not installed ({words}); install it with: {home.install}"
    needs = f"; it needs {home.needs}" if home.needs else ""
    return f"cannot be used here: {words}{needs}"


def _is_missing_package(error: BaseException | None) -> bool:
    """Whether a module was not found, in the error or in one that it comes from."""
    if error is None:
        return False
    return isinstance(error, ModuleNotFoundError) or _is_missing_package(error.__cause__ or error.__context__)


def _try(backend: Backend) -> None:
    """Compute a little: a device, a compiler or a library for matrices that is missing shows here."""
    one = backend.ops.zeros(1)
    backend.ops.top_k(one, 1)
    backend.nn.linear_input_gradient(one.reshape(1, 1), one.reshape(1, 1))


def device(name: str) -> dict[str, str]:
    """On what the backend of that name computes: its name under "device", and what else there is to know for a measurement."""
    if name == "cupy":
        described: dict[str, str] = importlib.import_module("gpu.device").current().describe()
        return described
    return {"device": processor(), "cores": str(len(os.sched_getaffinity(0)))}


def version(name: str) -> str:
    """The backend of that name, which is loaded, with its library's version, and its device where that is not the processor."""
    words, where = f"{name} {importlib.import_module(name).__version__}", device(name)["device"]
    return words if where == processor() else f"{words} on {where}"


def processor() -> str:
    """The processor's name as Linux gives it."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
