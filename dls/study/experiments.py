"""The runs of a study, from its experiment files (TOML, see runs/study/): which there are, and
which are complete.

A file names a workload, ranks, seeds, densities, the settings that all its runs share, and those of
each method. A method that sets its own density is run once for each seed, the others at every
density.
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
from dls.study import checks
from dls.tools.programs import mpirun, python

BASELINES = ("layerwise-topk", "global-topk")
"""The methods that others are compared with, unless a file names its own: what DLS wants to beat,
and what it wants to reach.
"""
Cell = tuple[str, float | None, str]
"""Workload, density and method."""
ELSEWHERE = "move it away, or choose another --out"
"""What to do about a folder that holds another run."""


@dataclass(frozen=True)
class Experiment:
    """One run of a study.

    density: None for a method that sets its own. in_one_process: its ranks are workers of one
    process, without MPI.
    """

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
        """The cell of the report that the run belongs to."""
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
    counts = Counter(each.name for each in experiments)
    if twice := [name for name, count in counts.items() if count > 1]:
        named_in = " and ".join(map(str, dict.fromkeys(paths)))
        raise UsageError(f"{named_in}: {twice[0]} is named more than once")
    return experiments


def _load(file: Path) -> list[Experiment]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the experiments in {file}: {files.reason(error)}") from None
    try:
        checks.check(table)
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None
    experiments = list(_expand(table, file))
    for experiment in experiments:
        if not experiment.config(file.parent).steps:
            raise UsageError(f"{file}: settings need steps, the length of each run")
    return experiments


def _expand(table: Mapping[str, Any], file: Path) -> Iterator[Experiment]:
    """Seed by seed, and density by density."""
    baselines = tuple(table.get("baselines", BASELINES))
    for seed in table["seeds"]:
        for density in (None, *table["densities"]):
            for method, own in table["methods"].items():
                if ("density" in own) == (density is None):
                    settings = {"density": density, **table["settings"], **own, "seed": seed}
                    yield Experiment(
                        workload=table["workload"],
                        method=method,
                        density=density,
                        seed=seed,
                        ranks=table["ranks"],
                        settings=config.from_toml(tomli_w.dumps(settings), str(file)),
                        file=file,
                        baselines=baselines,
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
        used, wanted = show(getattr(theirs, name)), show(getattr(ours, name))
        if used != wanted:
            words = f"{folder} was run with {flag(name)} {used}, not {wanted}"
            raise UsageError(f"{words}; {ELSEWHERE}")
    try:
        newest = checkpoint.latest(folder)
    except checkpoint.CheckpointError:
        return False
    if newest is not None and newest.world_size != experiment.ranks:
        raise UsageError(
            f"{folder} was run on {newest.world_size} ranks, not {experiment.ranks}; {ELSEWHERE}"
        )
    return newest is not None and newest.step == ours.steps
