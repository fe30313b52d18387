"""DLS: data-parallel training over MPI with sparsified gradients.

`Exchange` is the exchange for arrays of any program, `register` makes a method of one's own known,
`load` gives what a run has recorded.
Nothing happens at import.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

from dls.version import __version__

if TYPE_CHECKING:
    from dls.exchange.front import Exchange
    from dls.exchange.methods import register
    from dls.record.load import load

__all__ = ["Exchange", "__version__", "load", "register"]


def _take_along(name: str) -> None:
    """Import the package that lies beside this one, whatever else of its name sys.path may find
    first.

    `python -m` puts the user's folder there, where a gpu.py or a reference/ may lie. ImportError
    where such a one is imported already: a process has one module of a name.
    """
    beside = os.path.dirname(os.path.dirname(__file__))
    spec = PathFinder.find_spec(name, [beside])
    if spec is None or spec.loader is None:
        raise ImportError(f"dls is not whole: its package {name} is not in {beside}", name=name)
    there = sys.modules.get(name)
    if there is None:
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    elif not _is_same(file := getattr(there, "__file__", None), spec.origin):
        whose = file or "a folder of that name"
        raise ImportError(
            f"{whose} was imported as {name}, the name of a package of dls: rename it", name=name
        )


def _is_same(one: str | None, other: str | None) -> bool:
    """Whether two paths are of one file; in an archive there are only names."""
    try:
        return os.path.samefile(one or "", other or "")
    except OSError:
        return one == other


_take_along("reference")
_take_along("gpu")


def __getattr__(name: str) -> Any:
    """What the package offers, loaded when it is asked for."""
    if name == "Exchange":
        from dls.exchange.front import Exchange

        return Exchange
    if name == "load":
        from dls.record.load import load

        return load
    if name == "register":
        from dls.exchange.methods import register

        return register
    raise AttributeError(f"module 'dls' has no attribute {name!r}")
