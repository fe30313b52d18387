"""The methods, one a file: `global_topk.py` is `--method global-topk`. A new file here is a new method."""

from __future__ import annotations

import importlib
import pkgutil

from dls.sparsifiers._base import Setup, Sparsifier

__all__ = ["Setup", "Sparsifier", "load", "names"]


def names() -> tuple[str, ...]:
    """The methods that exist, by the names of their files."""
    files = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in files if not name.startswith("_")))


def load(name: str) -> type[Sparsifier]:
    """The method of that name: the class `Method` of its file."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    method: type[Sparsifier] = module.Method
    return method
