"""Runs that differ only in their seed, put together: the mean and the spread of their curves."""

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
from dls.inspect.formats import written
from dls.inspect.run import Columns, Run
from dls.inspect.summary import smooth
from dls.program import sources

DRAWN = 400
"""Most points of a curve that is drawn."""


@dataclass(frozen=True)
class Curve:
    """The mean over the runs of a group, and the standard deviation.

    step: the steps that all runs have [T]. mean, sd: [T], or [T, L] with a value for each layer.
    """

    step: NDArray[np.int64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed; a run alone is a group, too."""

    label: str
    runs: Sequence[Run]

    @property
    def name(self) -> str:
        """The label without the number of seeds."""
        return re.sub(r" \([0-9]+ seeds\)", "", self.label)

    def curve(self, table: str, name: str, smoothed: bool = False) -> Curve:
        """The mean and the deviation of `values`."""
        steps, values = self.values(table, name, smoothed)
        return Curve(steps, *mean_and_sd(values))

    def values(
        self, table: str, name: str, smoothed: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A column of `steps`, `evals` or `diagnostics` at steps that all runs have, DRAWN at most.

        Returns the steps [T] and the values [runs, T, …]. smoothed: those of one number a step.
        """
        tables: list[Columns] = [getattr(run, table) for run in self.runs]
        steps = _thinned(reduce(np.intersect1d, [each["step"] for each in tables]))
        values = []
        for each in tables:
            rows = np.searchsorted(each["step"], steps)
            if smoothed:
                values.append(smooth(each[name], rows))
            else:
                values.append(np.asarray(each[name][rows], dtype=np.float64))
        return steps, np.array(values)


def _thinned(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most DRAWN of the steps, evenly."""
    if not len(steps):
        return steps
    kept: NDArray[np.int64] = steps[
        np.unique(np.linspace(0, len(steps) - 1, DRAWN).round().astype(int))
    ]
    return kept


def mean_and_sd(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean over the first axis, and the standard deviation of a sample (n - 1).

    The deviation of a single one is 0.
    """
    with np.errstate(invalid="ignore"):  # of what is infinite
        mean = values.mean(axis=0)
        sd = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        return mean, sd


def labels(paths: Sequence[str]) -> list[str]:
    """Short names of runs: those of their folders.

    Where two are equal, the paths from the folder that all runs share.
    """
    folders = [Path(path).resolve() for path in paths]
    names = [folder.parent.name if folder.suffix == ".h5" else folder.name for folder in folders]
    if len(set(names)) == len(names):
        return names
    alike = len({Path(path).is_absolute() for path in paths}) == 1 and len(set(paths)) == len(paths)
    shared = os.path.commonpath(paths) if alike else ""
    return [os.path.relpath(path, shared) for path in paths] if shared else list(paths)


def by_seed(runs: Sequence[Run]) -> list[Group]:
    """Runs put together, in the order of their first ones.

    Two of the same seed are no group: they are the same run twice.
    """
    members: list[list[tuple[Run, str]]] = []
    for run, label in zip(runs, labels([run.about.path for run in runs]), strict=True):
        for others in members:
            if all(_differ_in_seed(run, other) for other, _ in others):
                others.append((run, label))
                break
        else:
            members.append([(run, label)])
    names = _unlike([_group_label([label for _, label in each]) for each in members])
    return [
        Group(name, [run for run, _ in each]) for name, each in zip(names, members, strict=True)
    ]


def _differ_in_seed(one: Run, two: Run) -> bool:
    """Whether they differ in nothing else."""
    return (
        _have_begun(one, two)
        and one.about.seed != two.about.seed
        and next(_differences(one, two), None) is None
    )


def _have_begun(*runs: Run) -> bool:
    """Whether all have recorded a step, and say what they were.

    Those that do not may differ in anything.
    """
    return all(run.about.config and len(run.steps["step"]) for run in runs)


def _differences(one: Run, two: Run) -> Iterator[str]:
    """In what two runs differ: what one is, and that the other is not.

    Their seed, their folder, and where and when they ran do not count.
    """
    own, others = (run.about.config for run in (one, two))
    for name in {**own, **others}:
        if name not in ("seed", "out") and own.get(name) != others.get(name):
            yield f"{flag(name)} {_setting(own, name)}, not {_setting(others, name)}"
    if [*one.layers["size"]] != [*two.layers["size"]]:
        yield "other layers"
    for name in ("ranks", "version"):
        of_one, of_two = getattr(one.about, name), getattr(two.about, name)
        if of_one != of_two:
            yield f"{name} {written(name, of_one)}, not {written(name, of_two)}"
    if not sources.same(one.sources, two.sources, str(own.get("method")), sources.ROOT):
        yield _other_sources(one, two)


def _setting(config: Mapping[str, Any], name: str) -> str:
    return show(config[name]) if name in config else "not set"


def _other_sources(one: Run, two: Run) -> str:
    """The first file in which the programs differ; where no file is known, their commits."""
    method, files = str(one.about.method), list[str]()
    for own, other in zip(one.sources, two.sources, strict=False):
        known = [sources.resolved(state, method, sources.ROOT) for state in (own, other)]
        files += known[0].differing(known[1]) if known[0] and known[1] else []
    named = [name for name in files if name != sources.OF_NO_COMMIT]
    if named:
        more = f", and {len(named) - 1} more" if len(named) > 1 else ""
        return f"another {named[0]}{more}"
    commits = [written("commit", run.about.commit) for run in (one, two)]
    return f"commit {commits[0]}, not {commits[1]}"


def apart(groups: Sequence[Group]) -> Iterator[str]:
    """Why groups of one method that have no seed in common are not one group.

    A line for each group that could have joined one before it.
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
    seeds = [{run.about.seed for run in group.runs} for group in (one, two)]
    first, second = one.runs[0], two.runs[0]
    return (
        _have_begun(first, second)
        and first.about.method == second.about.method
        and seeds[0].isdisjoint(seeds[1])
    )


def _group_label(names: Sequence[str]) -> str:
    """The beginning that the names of runs have in common, and how many runs there are."""
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike)
    common = re.sub(r"[-_. =]+(s(eed)?[-_=]*[0-9]*)?$", "", common) or names[0]
    return f"{common} ({len(names)} seeds)"


def _unlike(names: Sequence[str]) -> list[str]:
    """The names, those that occur more than once with a number."""
    return [name if names.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(names)]
