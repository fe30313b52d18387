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


_HOMES = {
    "numpy": (("reference.ops", "reference.adjustment", "reference.wire", "reference.nn"), "pip install numpy"),
    "numba": (("gpu.numba_ops", "gpu.numba_adjustment", "gpu.numba_wire", "gpu.numba_nn"), "pip install numba"),
    "cupy": (
        ("gpu.cupy_ops", "gpu.cupy_adjustment", "gpu.cupy_wire", "gpu.cupy_nn"),
        "pip install 'dls[cuda]', on a machine with a GPU",
    ),
}
"""Name to the modules of Backend, and how to install what they need."""


def names() -> tuple[str, ...]:
    """All backends that exist, installed or not."""
    return tuple(_HOMES)


def default() -> str:
    """numba, the fastest without a GPU, where it is installed; else the reference itself."""
    return "numba" if importlib.util.find_spec("numba") else "numpy"


def load(name: str, rank_on_node: int = 0) -> Backend:
    """The backend of that name, on this rank's share of the machine's devices.

    BackendMissing, with the install command, where its packages, compiler or device are absent.
    """
    homes, hint = _HOMES[name]
    try:
        ops, adjustment, wire, nn = map(importlib.import_module, homes)
        backend = Backend(name, ops, adjustment, wire, nn)
        backend.ops.set_device(rank_on_node)
        _try(backend)
        return backend
    except Exception as error:  # whatever a driver, a compiler or a library raises
        words = next(iter(str(error).splitlines()), type(error).__name__)  # a compiler has many
        raise BackendMissing(f"the backend '{name}' cannot be loaded ({words}); install it with: {hint}") from error


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
    return {"device": _processor(), "cores": str(len(os.sched_getaffinity(0)))}


def _processor() -> str:
    """The processor's name as Linux gives it."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
