"""How many cores are a rank's own: those that its launcher bound it to, divided where ranks share
them, and its CPU quota.
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
CONTROL = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Grant:
    """What a process may use. cores: the numbers of those that it may run on; quotas: cores' worth
    of time, by control group.
    """

    cores: frozenset[int]
    quotas: Mapping[str, Fraction]


def grant() -> Grant:
    """This process's own."""
    groups = GROUPS.read_text(encoding="utf-8") if GROUPS.exists() else ""
    return Grant(frozenset(os.sched_getaffinity(0)), quotas(groups))


def share(grants: Sequence[Grant], own: int) -> int:
    """Of a machine's ranks the cores of number `own`, at least 1: each core and quota is divided
    among those who have it.
    """
    takers = Counter(core for each in grants for core in each.cores)
    members = Counter(group for each in grants for group in each.quotas)
    cores = sum((Fraction(1, takers[core]) for core in grants[own].cores), Fraction())
    return max(
        1,
        floor(
            min([cores, *(quota / members[group] for group, quota in grants[own].quotas.items())])
        ),
    )


def of(comm: Comm) -> int:
    """This rank's share of the cores of its machine. Every rank calls it."""
    grants = comm.allgather_objects(grant(), "the other ranks' cores")
    return share([grants[rank] for rank in comm.node], comm.rank_on_node)


def quotas(groups: str, root: Path = CONTROL) -> dict[str, Fraction]:
    """The CPU quotas above a process, in cores. groups: the text of its /proc/self/cgroup; root:
    where the groups are mounted.

    A group goes by the identity of its folder, as a container sees its own group under another name
    than its neighbour's.
    """
    found: dict[str, Fraction] = {}
    for controllers, path in (line.split(":", 2)[1:] for line in groups.splitlines()):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers
        below = top / path.lstrip("/")
        for folder in (each for each in (below, *below.parents) if each.is_relative_to(top)):
            if (quota := _quota(folder)) is not None:
                about = folder.stat()
                found[f"{about.st_dev}:{about.st_ino}"] = quota
    return found


def _quota(folder: Path) -> Fraction | None:
    """A control group's own quota; None where it has none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:  # version 1 of control groups
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")
                for name in ("quota", "period")
            )
        return Fraction(int(quota), int(period)) if int(quota) > 0 else None  # "max" is no number
    except (OSError, ValueError, ZeroDivisionError):
        return None
