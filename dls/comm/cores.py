"""How many cores a rank may use.

These are the cores to which its launcher bound it, divided where ranks share them, up to its CPU
quota.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dls.comm.base import Comm

GROUPS = Path("/proc/self/cgroup")
"""Where Linux lists the control groups of this process."""
CONTROL = Path("/sys/fs/cgroup")
"""Where the control groups are mounted."""


@dataclass(frozen=True)
class Grant:
    """What a process may use.

    cores: the numbers of those on which it may run. quotas: CPU time as a number of cores, by
    control group.
    """

    cores: frozenset[int]
    quotas: Mapping[str, Fraction]


def grant() -> Grant:
    """The grant of this process."""
    groups = GROUPS.read_text(encoding="utf-8") if GROUPS.exists() else ""
    return Grant(frozenset(os.sched_getaffinity(0)), quotas(groups))


def share(grants: Sequence[Grant], own: int) -> int:
    """The number of cores for one of a machine's ranks, at least 1.

    grants: those of all ranks of the machine. own: the index of this rank's. Every core and every
    quota is divided equally among the ranks that have it.
    """
    ranks_of_core = Counter(core for each in grants for core in each.cores)
    ranks_of_group = Counter(group for each in grants for group in each.quotas)
    mine = grants[own]
    cores = sum((Fraction(1, ranks_of_core[core]) for core in mine.cores), Fraction())
    shares = [quota / ranks_of_group[group] for group, quota in mine.quotas.items()]
    return max(1, floor(min([cores, *shares])))


def of(comm: Comm) -> int:
    """The number of cores for this rank. Every rank calls it."""
    grants = comm.allgather_objects(grant(), "the other ranks' cores")
    return share([grants[rank] for rank in comm.node], comm.rank_on_node)


def quotas(groups: str, root: Path = CONTROL) -> dict[str, Fraction]:
    """The CPU quotas of a process, in cores, by control group.

    groups: the text of its /proc/self/cgroup. root: where the groups are mounted. A group is
    identified by device and inode of its folder, because containers see the same group under
    different names.
    """
    quotas: dict[str, Fraction] = {}
    for controllers, path in (line.split(":", 2)[1:] for line in groups.splitlines()):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers
        below = top / path.lstrip("/")
        for folder in (each for each in (below, *below.parents) if each.is_relative_to(top)):
            if (quota := _quota(folder)) is not None:
                about = folder.stat()
                quotas[f"{about.st_dev}:{about.st_ino}"] = quota
    return quotas


def _quota(folder: Path) -> Fraction | None:
    """The quota of one control group, in cores; None where it has none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:  # version 1 of control groups
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")
                for name in ("quota", "period")
            )
        return Fraction(int(quota), int(period)) if int(quota) > 0 else None  # ValueError: "max"
    except (OSError, ValueError, ZeroDivisionError):
        return None
