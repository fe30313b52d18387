"""The runs of a study, from its experiment files (TOML, see runs/study/): which there are, and
which are complete.

A file names a workload, ranks, seeds, densities, the settings that all its runs share, and those of
each method. A method that sets its own density is run once a seed, the others at every density.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from dls.cli import UsageError
from dls.exchange.settings import flag, show
from dls.program import config, sources
from dls.program.config import Config
from dls.record import checkpoint, files
from dls.tools.programs import mpirun, python

KEYS = {
    "workload": str,
    "ranks": int,
    "seeds": list,
    "densities": list,
    "settings": dict,
    "methods": dict,
}
"""What an experiment file holds."""
BASELINES = ("layerwise-topk", "global-topk")
"""The methods that others are compared with, unless a file names its own: what DLS wants to beat,
and what it wants to reach.
"""
WORDS = {str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
Cell = tuple[str, float | None, str]
"""Workload, density and method."""
ELSEWHERE = "move it away, or choose another --out"
NUMBERS = {"seeds": (int,), "densities": (float, int)}
"""What the lists hold."""


@dataclass(frozen=True)
class Experiment:
    """One run of a study. `density` is None for a method that sets its own."""

    workload: str
    method: str
    density: float | None
    seed: int
    ranks: int
    settings: Mapping[str, Any]
    file: Path
    baselines: tuple[str, ...] = BASELINES
    in_one_process: bool = False

    @property
    def name(self) -> str:
        """The run's folder below that of the study."""
        density = "" if self.density is None else f"-{self.density:g}"
        return f"{self.workload}/{self.method}{density}-seed{self.seed}"

    @property
    def cell(self) -> Cell:
        """What the run's seeds are of."""
        return self.workload, self.density, self.method

    def config(self, out: Path) -> Config:
        """The complete configuration of the run in its folder. UsageError."""
        return config.build(self.settings, {"out": str(out / self.name)})

    def command(self, out: Path) -> list[str]:
        """What runs it, or goes on with it."""
        flags = [_flag(name, value) for name, value in self.settings.items()]
        imports = [f"--import={path}" for path in sources.imported()]
        program = [
            *python(),
            "-m",
            "dls.train",
            *imports,
            *flags,
            f"--out={out / self.name}",
            "--resume=auto",
        ]
        if self.in_one_process:
            return [*program, f"--workers={self.ranks}"]
        return [mpirun(), "-n", str(self.ranks), *program]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name) if value else flag("no_" + name)
    return f"{flag(name)}={show(value)}"


def load(paths: Sequence[Path]) -> list[Experiment]:
    """The runs of experiment files, each seed by seed.

    UsageError where one cannot be used, or two runs have one name.
    """
    experiments = [each for file in paths for each in _load(file)]
    if twice := [
        name for name, count in Counter(each.name for each in experiments).items() if count > 1
    ]:
        raise UsageError(
            f"{' and '.join(map(str, dict.fromkeys(paths)))}: {twice[0]} is named more than once"
        )
    return experiments


def _load(file: Path) -> list[Experiment]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the experiments in {file}: {files.reason(error)}") from None
    try:
        _check_keys(table)
        _check_names([table["workload"], *table["methods"]])
        _check_baselines(table.get("baselines", []), table["methods"], "baselines" in table)
        _check_settings(table["settings"], table["methods"])
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None
    experiments = list(_expand(table, file))
    for experiment in experiments:
        if not experiment.config(file.parent).steps:
            raise UsageError(f"{file}: settings need steps, the length of each run")
    return experiments


def _check_keys(table: Mapping[str, Any]) -> None:
    """ValueError where something is missing, of no use, or not of its kind."""
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
    for place, found in {"settings": settings, **methods}.items():
        taken = found.keys() & (
            {"density", "seed", "out"} if found is settings else {"seed", "out"}
        )
        if taken:
            raise ValueError(
                f"{', '.join(sorted(taken))} cannot stand in {place}: each run has its own"
            )


def _expand(table: Mapping[str, Any], file: Path) -> Iterator[Experiment]:
    """Seed by seed, and density by density."""
    baselines = tuple(table.get("baselines", BASELINES))
    for seed in table["seeds"]:
        for density in (None, *table["densities"]):
            for method, own in table["methods"].items():
                if ("density" in own) == (density is None):
                    settings = {"density": density, **table["settings"], **own, "seed": seed}
                    settings = config.from_toml(tomli_w.dumps(settings), str(file))
                    yield Experiment(
                        table["workload"],
                        method,
                        density,
                        seed,
                        table["ranks"],
                        settings,
                        file,
                        baselines,
                    )


def is_complete(experiment: Experiment, out: Path) -> bool:
    """Whether the run came to its end.

    UsageError where its folder holds a run with other settings or ranks.
    """
    folder = out / experiment.name
    if not (folder / "config.toml").exists():
        return False
    theirs, ours = config.build(config.read_toml(folder / "config.toml")), experiment.config(out)
    for name in config.FIELDS.keys() - {"out"}:
        found, wanted = (show(getattr(each, name)) for each in (theirs, ours))
        if found != wanted:
            raise UsageError(
                f"{folder} was run with {flag(name)} {found}, not {wanted}; {ELSEWHERE}"
            )
    try:
        newest = checkpoint.latest(folder)
    except checkpoint.CheckpointError:
        return False
    if newest is not None and newest.world_size != experiment.ranks:
        raise UsageError(
            f"{folder} was run on {newest.world_size} ranks, not {experiment.ranks}; {ELSEWHERE}"
        )
    return newest is not None and newest.step == ours.steps
