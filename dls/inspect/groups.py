"""Runs that differ only in their seed, put together: mean and spread of their curves and figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.inspect.series import Columns, Series
from dls.inspect.summary import single_figures, smooth, summarise

DRAWN = 400
"""Most points of a curve that is drawn."""


@dataclass(frozen=True)
class Curve:
    """Mean over the runs of a group and their standard deviation, at steps that all of them have: [T], [T, …], [T, …]."""

    step: NDArray[np.int64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed; a run alone is a group, too."""

    label: str
    runs: Sequence[Series]

    def curve(self, table: str, name: str, smoothed: bool = False) -> Curve:
        """A column of `steps`, `evals` or `diagnostics`, at no more than DRAWN steps. `smoothed`: those of one number a step."""
        tables: list[Columns] = [getattr(run, table) for run in self.runs]
        steps = reduce(np.intersect1d, [each["step"] for each in tables])
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, DRAWN).round().astype(int))] if len(steps) else steps
        values = []
        for each in tables:
            at = np.searchsorted(each["step"], steps)
            values.append(smooth(each[name], at) if smoothed else np.asarray(each[name][at], dtype=np.float64))
        return Curve(steps, *mean_and_sd(np.array(values)))


def mean_and_sd(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Over the first axis: the mean, and the standard deviation of a sample (n - 1), 0 for a single one."""
    with np.errstate(invalid="ignore"):  # of what is infinite
        mean = values.mean(axis=0)
        return mean, values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)


def labels(paths: Sequence[str]) -> list[str]:
    """Short names of runs: their folders' names, or their paths where names are equal."""
    folders = [Path(path).resolve() for path in paths]
    names = [folder.parent.name if folder.suffix == ".h5" else folder.name for folder in folders]
    return names if len(set(names)) == len(names) else list(paths)


def by_seed(runs: Sequence[Series]) -> list[Group]:
    """Runs put together, in the order of their first ones. Two of the same seed are no group: they are the same run twice."""
    found: list[list[tuple[Series, str]]] = []
    for run, label in zip(runs, labels([run.run["path"] for run in runs]), strict=True):
        fitting = (group for group in found if all(_differ_in_seed(run, other) for other, _ in group))
        group = next(fitting, None)
        if group is None:
            found.append([(run, label)])
        else:
            group.append((run, label))
    named = [_group_label([label for _, label in group]) for group in found]
    return [Group(name, [run for run, _ in group]) for name, group in zip(_unlike(named), found, strict=True)]


def _differ_in_seed(one: Series, two: Series) -> bool:
    """Whether they do in nothing else. Runs that do not say what they were may differ in anything, and one must have begun."""
    known = all(run.run["config"] and len(run.steps["step"]) for run in (one, two))
    return known and _identity(one) == _identity(two) and one.run["seed"] != two.run["seed"]


def _identity(run: Series) -> tuple[Any, ...]:
    """All that tells what a run was, but its seed, its folder and where and when it ran."""
    settings = {name: value for name, value in run.run["config"].items() if name not in ("seed", "out")}
    return settings, [*run.layers["size"]], *(run.run[name] for name in ("ranks", "version", "commit"))


def _group_label(names: Sequence[str]) -> str:
    """What the names of runs have in common in front, and how many they are."""
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike)
    common = re.sub(r"[-_. =]+(s(eed)?[-_=]*[0-9]*)?$", "", common) or names[0]
    return f"{common} ({len(names)} seeds)"


def _unlike(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(names)]


def group_figures(group: Group) -> dict[str, Any]:
    """By name: mean and standard deviation over the group's runs; what is the same in all, or no number, as it is.

    None is what one of them does not have, or has no number for: the mean of the others would be that of another group.
    """
    found = [single_figures(summarise(run)) for run in group.runs]
    figures: dict[str, Any] = {}
    for name, first in found[0].items():
        values = [each.get(name) for each in found]
        if any(value is None or value != value for value in values):
            figures[name] = None
            continue
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        differ = numbers and values != [first] * len(values)
        figures[name] = tuple(float(x) for x in mean_and_sd(np.array(values, dtype=np.float64))) if differ else first
    return figures
