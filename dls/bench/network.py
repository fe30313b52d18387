"""`python -m dls.bench network`: training steps over slow networks, on hosts that this machine
plays itself (`dls.tools.hosts`).

Each rate and number of hosts is one run of `dls.bench step`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dls.bench.step import StepRow
from dls.cli import UsageError
from dls.tools.hosts import UNLIMITED, Hosts
from dls.tools.programs import python
from dls.tools.rows import Row


@dataclass(frozen=True)
class Link(Row):
    """The network of a measurement: the rate of all its links, and the number of hosts."""

    rate: str
    hosts: int


@dataclass(frozen=True)
class NetworkRow(StepRow, Link):
    """A method's step over a network."""


def measure(
    rates: Sequence[str], hosts: Sequence[int], step_options: Sequence[str]
) -> Iterator[NetworkRow]:
    """Yield the rows of `dls.bench step` for every rate and number of hosts.

    rates: as tc writes them, or UNLIMITED. HostsError where there can be no hosts, UsageError where
    `dls.bench step` refuses its options.
    """
    for count in hosts:
        for rate in rates:
            with Hosts(count, None if rate == UNLIMITED else rate) as network:
                link = Link(rate, count).to_json()
                for record in _measured(network, count, step_options):
                    yield NetworkRow.from_json(link | record)


def _measured(network: Hosts, ranks: int, options: Sequence[str]) -> Sequence[dict[str, object]]:
    """The rows of `dls.bench step` on these hosts, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [*python(), "-m", "dls.bench", "step", *options, "--json", str(path)]
        launched = network.mpirun(ranks, command)
        done = subprocess.run(launched, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UsageError(f"dls.bench step failed: {done.stderr.strip()}")
        records: Sequence[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
        return records
