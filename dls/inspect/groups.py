"""Runs that differ only in their seed, put together: mean and spread of their curves and
figures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.exchange.settings import flag, show
from dls.inspect.series import Columns, Series
from dls.inspect.summary import single_figures, smooth, summarise, written
from dls.program import sources

DRAWN = 400
"""Most points of a curve that is drawn."""


@dataclass(frozen=True)
class Curve:
    """Mean over the runs of a group and their standard deviation, at steps that all of them have:
    [T], [T, …], [T, …].
    """

    step: NDArray[np.int64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed; a run alone is a group, too."""

    label: str
    runs: Sequence[Series]

    @property
    def name(self) -> str:
        """The label without the number of seeds."""
        return re.sub(r" \([0-9]+ seeds\)", "", self.label)

    def curve(self, table: str, name: str, smoothed: bool = False) -> Curve:
        """Mean and deviation of `values`."""
        steps, values = self.values(table, name, smoothed)
        return Curve(steps, *mean_and_sd(values))

    def values(
        self, table: str, name: str, smoothed: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A column of `steps`, `evals` or `diagnostics`, at no more than DRAWN steps that all runs
        have: steps [T], [runs, T, …].

        `smoothed`: those of one number a step.
        """
        tables: list[Columns] = [getattr(run, table) for run in self.runs]
        steps = reduce(np.intersect1d, [each["step"] for each in tables])
        steps = (
            steps[np.unique(np.linspace(0, len(steps) - 1, DRAWN).round().astype(int))]
            if len(steps)
            else steps
        )
        values = []
        for each in tables:
            at = np.searchsorted(each["step"], steps)
            values.append(
                smooth(each[name], at) if smoothed else np.asarray(each[name][at], dtype=np.float64)
            )
        return steps, np.array(values)


def mean_and_sd(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Over the first axis: the mean, and the standard deviation of a sample (n - 1), 0 for a single
    one.
    """
    with np.errstate(invalid="ignore"):  # of what is infinite
        mean = values.mean(axis=0)
        return mean, values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)


def labels(paths: Sequence[str]) -> list[str]:
    """Short names of runs: their folders' names or, where names are equal, their paths from the
    folder that all of them share.
    """
    folders = [Path(path).resolve() for path in paths]
    names = [folder.parent.name if folder.suffix == ".h5" else folder.name for folder in folders]
    if len(set(names)) == len(names):
        return names
    alike = len({Path(path).is_absolute() for path in paths}) == 1 and len(set(paths)) == len(paths)
    shared = os.path.commonpath(paths) if alike else ""
    return [os.path.relpath(path, shared) for path in paths] if shared else list(paths)


def by_seed(runs: Sequence[Series]) -> list[Group]:
    """Runs put together, in the order of their first ones.

    Two of the same seed are no group: they are the same run twice.
    """
    found: list[list[tuple[Series, str]]] = []
    for run, label in zip(runs, labels([run.run["path"] for run in runs]), strict=True):
        fitting = (
            group for group in found if all(_differ_in_seed(run, other) for other, _ in group)
        )
        group = next(fitting, None)
        if group is None:
            found.append([(run, label)])
        else:
            group.append((run, label))
    named = [_group_label([label for _, label in group]) for group in found]
    return [
        Group(name, [run for run, _ in group])
        for name, group in zip(_unlike(named), found, strict=True)
    ]


def _differ_in_seed(one: Series, two: Series) -> bool:
    """Whether they do in nothing else."""
    return (
        _have_begun(one, two)
        and one.run["seed"] != two.run["seed"]
        and next(_differences(one, two), None) is None
    )


def _have_begun(*runs: Series) -> bool:
    """Whether all have recorded a step, and say what they were: those that do not may differ in
    anything.
    """
    return all(run.run["config"] and len(run.steps["step"]) for run in runs)


def _differences(one: Series, two: Series) -> Iterator[str]:
    """In what two runs differ, but their seed, their folder and where and when they ran: the own of
    the one, not of the other.
    """
    own, others = (run.run["config"] for run in (one, two))
    for name in own | others:
        if name not in ("seed", "out") and own.get(name) != others.get(name):
            yield f"{flag(name)} {_setting(own, name)}, not {_setting(others, name)}"
    if [*one.layers["size"]] != [*two.layers["size"]]:
        yield "other layers"
    for name in ("ranks", "version"):
        if one.run[name] != two.run[name]:
            yield f"{name} {written(name, one.run[name])}, not {written(name, two.run[name])}"
    if not sources.same(one.sources, two.sources, str(own.get("method")), sources.ROOT):
        yield _other_sources(one, two)


def _setting(config: Mapping[str, Any], name: str) -> str:
    return show(config[name]) if name in config else "not set"


def _other_sources(one: Series, two: Series) -> str:
    """The first file in which the programs differ; where no file is known, what they call
    themselves.
    """
    method, files = str(one.run["method"]), list[str]()
    for own, other in zip(one.sources, two.sources, strict=False):
        known = [sources.resolved(state, method, sources.ROOT) for state in (own, other)]
        files += known[0].differing(known[1]) if known[0] and known[1] else []
    named = [name for name in files if name != sources.OF_NO_COMMIT]
    if named:
        return f"another {named[0]}" + (f", and {len(named) - 1} more" if len(named) > 1 else "")
    return (
        f"commit {written('commit', one.run['commit'])}, not {written('commit', two.run['commit'])}"
    )


def apart(groups: Sequence[Group]) -> Iterator[str]:
    """Why groups of one method that have no seed in common are not one: a line for each that could
    have joined one before it.
    """
    for i, group in enumerate(groups):
        alike = [other for other in groups[:i] if _could_join(group, other)]
        reasons = [(list(_differences(group.runs[0], other.runs[0])), other) for other in alike]
        if reasons:
            reason, other = min(reasons, key=lambda each: len(each[0]))
            more = f" (and {len(reason) - 1} more)" if len(reason) > 1 else ""
            yield f"{group.label} does not group with {other.label}: {reason[0]}{more}"


def _could_join(one: Group, two: Group) -> bool:
    """Whether their runs could be further seeds of each other, as far as their methods say."""
    seeds = [{run.run["seed"] for run in group.runs} for group in (one, two)]
    first, second = one.runs[0], two.runs[0]
    return (
        _have_begun(first, second)
        and first.run["method"] == second.run["method"]
        and seeds[0].isdisjoint(seeds[1])
    )


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
    """By name: mean and standard deviation over the group's runs; what is the same in all, or no
    number, as it is.

    None is what one of them does not have, or has no number for: the mean of the others would be
    that of another group.
    """
    found = [single_figures(summarise(run)) for run in group.runs]
    figures: dict[str, Any] = {}
    for name, first in found[0].items():
        values = [each.get(name) for each in found]
        if any(value is None or value != value for value in values):
            figures[name] = None
            continue
        numbers = all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        )
        differ = numbers and values != [first] * len(values)
        figures[name] = (
            tuple(float(x) for x in mean_and_sd(np.array(values, dtype=np.float64)))
            if differ
            else first
        )
    return figures
