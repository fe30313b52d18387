"""Checks of an experiment file, before any of its runs is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KEYS = {
    "workload": str,
    "ranks": int,
    "seeds": list,
    "densities": list,
    "settings": dict,
    "methods": dict,
}
"""What an experiment file holds, and of which kind it is."""
WORDS = {str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
"""What the kinds are called in an error."""
NUMBERS = {"seeds": (int,), "densities": (float, int)}
"""The lists of numbers, and the kinds of their numbers."""


def check(table: Mapping[str, Any]) -> None:
    """ValueError, in one line, for what no study can be made of."""
    _check_keys(table)
    _check_names([table["workload"], *table["methods"]])
    _check_baselines(table.get("baselines", []), table["methods"], "baselines" in table)
    _check_settings(table["settings"], table["methods"])


def _check_keys(table: Mapping[str, Any]) -> None:
    """ValueError where something is missing, unknown, or not of its kind."""
    for key, kind in KEYS.items():
        if not isinstance(table.get(key), kind) or isinstance(table[key], bool):
            raise ValueError(f"it needs {key}, {WORDS[kind]}")
    if odd := table.keys() - KEYS.keys() - {"baselines"}:
        raise ValueError(
            f"it has no use for {', '.join(sorted(odd))}; it holds {', '.join(KEYS)}, and may hold"
            " baselines"
        )
    if table["ranks"] < 1:
        raise ValueError("ranks must be 1 or more")
    _check_lists(table)


def _check_lists(table: Mapping[str, Any]) -> None:
    """ValueError where one is empty, or holds something else than numbers."""
    for key, kinds in NUMBERS.items():
        if not all(type(item) in kinds for item in table[key]):
            raise ValueError(f"{key} must be {' or '.join(WORDS[kind] for kind in kinds)} each")
    for key in ("seeds", "methods"):
        if not table[key]:
            raise ValueError(f"it needs {key}, one at least")


def _check_names(names: Sequence[str]) -> None:
    """ValueError for one that is no name for a folder, or for a table's cell."""
    for name in names:
        if not name.strip(".") or set(name) & set("/\\\0\n`|"):
            raise ValueError(f"{name!r} cannot be a folder's name")


def _check_baselines(baselines: Any, methods: Mapping[str, Any], given: bool) -> None:
    """ValueError where those that are given are no methods of the file, each once."""
    if (
        not isinstance(baselines, list)
        or not all(isinstance(name, str) for name in baselines)
        or (given and not baselines)
    ):
        raise ValueError("baselines must be a list of its methods' names, one at least")
    for name in baselines:
        if name not in methods:
            raise ValueError(
                f"baselines names {name!r}, which is none of its methods, {', '.join(methods)}"
            )
        if baselines.count(name) > 1:
            raise ValueError(f"baselines names {name!r} more than once")


def _check_settings(settings: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
    """ValueError for settings that each run has for itself."""
    for method, own in methods.items():
        if not isinstance(own, dict):
            raise ValueError(f"the method {method} needs a table of settings")
    forbidden = {"settings": settings.keys() & {"density", "seed", "out"}}
    forbidden |= {method: own.keys() & {"seed", "out"} for method, own in methods.items()}
    for table, names in forbidden.items():
        if names:
            raise ValueError(
                f"{', '.join(sorted(names))} cannot stand in {table}: each run has its own"
            )
