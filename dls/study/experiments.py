"""The runs of a study, from its experiment files (TOML, see runs/study/): which there are, and which are complete.

A file names a workload, ranks, seeds, densities, the settings that all its runs share, and those of each method. A method that
sets its own density is run once a seed, the others at every density.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from dls import checkpoint, config
from dls.config import Config, UsageError
from dls.hosts import mpirun

KEYS = {"workload": str, "ranks": int, "seeds": list, "densities": list, "settings": dict, "methods": dict}
"""What an experiment file holds."""
WORDS = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}


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

    @property
    def name(self) -> str:
        """The run's folder below that of the study."""
        density = "" if self.density is None else f"-{self.density:g}"
        return f"{self.workload}/{self.method}{density}-seed{self.seed}"

    def config(self, out: Path) -> Config:
        """The complete configuration of the run in its folder. UsageError."""
        return config.build(self.settings, {"out": str(out / self.name)})

    def command(self, out: Path) -> list[str]:
        """What runs it, or goes on with it."""
        flags = [_flag(name, value) for name, value in self.settings.items()]
        program = [sys.executable, "-m", "dls.train", *flags, f"--out={out / self.name}", "--resume=auto"]
        return [mpirun(), "-n", str(self.ranks), *program]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return config.flag(name) if value else config.flag("no_" + name)
    return f"{config.flag(name)}={config.show_value(value)}"


def load(path: Path) -> list[Experiment]:
    """The runs of an experiment file, seed by seed. UsageError where it cannot be used."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the experiments in {path}: {error}") from None
    _check(table, path)
    experiments = list(_expand(table, path))
    for experiment in experiments:
        if not experiment.config(path.parent).steps:
            raise UsageError(f"{path}: settings need steps, the length of each run")
    if twice := [name for name, count in Counter(each.name for each in experiments).items() if count > 1]:
        raise UsageError(f"{path} names {twice[0]} more than once")
    return experiments


def _check(table: Mapping[str, Any], file: Path) -> None:
    """UsageError where a file's keys, names or numbers are not such as a study can use."""
    for key, kind in KEYS.items():
        if not isinstance(table.get(key), kind) or isinstance(table[key], bool):
            raise UsageError(f"{file} needs {key}, {WORDS[kind]}")
    if odd := table.keys() - KEYS.keys():
        raise UsageError(f"{file} has no use for {', '.join(sorted(odd))}; it holds {', '.join(KEYS)}")
    if table["ranks"] < 1:
        raise UsageError(f"{file}: ranks must be 1 or more")
    for name in (table["workload"], *table["methods"]):
        if not name.strip(".") or set(name) & set("/\\\0\n`|"):
            raise UsageError(f"{file}: {name!r} cannot be a folder's name")
    if own := table["settings"].keys() & {"density", "seed", "out"}:
        raise UsageError(f"{file}: {', '.join(sorted(own))} cannot stand in settings: each run has its own")


def _expand(table: Mapping[str, Any], file: Path) -> Iterator[Experiment]:
    """Seed by seed, and density by density."""
    for seed in table["seeds"]:
        for density in (None, *table["densities"]):
            for method, own in table["methods"].items():
                if not isinstance(own, dict):
                    raise UsageError(f"{file}: the method {method} needs a table of settings")
                if ("density" in own) == (density is None):
                    settings = {"density": density, **table["settings"], **own, "seed": seed}
                    settings = config.from_toml(tomli_w.dumps(settings), str(file))
                    yield Experiment(table["workload"], method, density, seed, table["ranks"], settings, file)


def is_complete(experiment: Experiment, out: Path) -> bool:
    """Whether the run came to its end. UsageError where its folder holds a run with other settings or ranks."""
    folder = out / experiment.name
    if not (folder / "config.toml").exists():
        return False
    theirs, ours = config.build(config.read_toml(folder / "config.toml")), experiment.config(out)
    for name in config.FIELDS.keys() - {"out"}:
        found, wanted = (config.show_value(getattr(each, name)) for each in (theirs, ours))
        if found != wanted:
            raise UsageError(f"{folder} was run with {config.flag(name)} {found}, not {wanted}; move it away")
    try:
        newest = checkpoint.latest(folder)
    except checkpoint.CheckpointError:
        return False
    if newest is not None and newest.world_size != experiment.ranks:
        raise UsageError(f"{folder} was run on {newest.world_size} ranks, not {experiment.ranks}; move it away")
    return newest is not None and newest.step == ours.steps
