"""`python -m dls.bench torch`: training steps of PyTorch models over slow networks, with PyTorch's
own DistributedDataParallel and its hooks beside our methods (`dls.bench.torch_names`).

Each model, rate and number of hosts is one run of `dls.bench.torch_cell`, in which all contenders
take turns on the same batches. One that ends the run is named with what it said, and the others
start again without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from dls.bench.torch_names import DDP, GLOO, MEMORY, NONE
from dls.cli import UsageError
from dls.tools.hosts import NETWORK, UNLIMITED, Hosts
from dls.tools.programs import mpirun, python
from dls.tools.rows import Row, Title

if TYPE_CHECKING:
    from dls.bench.torch_cell import Cell

ADDRESSES = {True: f"{NETWORK}.1", False: "127.0.0.1"}
"""Rank 0's address, on hosts of their own and without."""
INTERFACES = {True: "eth0", False: "lo"}
"""The network interface of gloo, likewise."""
ERROR = re.compile(r"(\[.*?\] ?)?([\w.]*(Error|Exception)\b|what\(\):)")
"""A line that says what went wrong, in Python and in C++."""
WORDS = 160
"""Characters of an error that a row shows at most."""
QUARTILES = (25, 50, 75)
"""The percentiles that stand for a spread, and between them the median."""


@dataclass(frozen=True)
class TorchRow(Row):
    """A contender's step over a network: medians of its rounds, with quartiles.

    step: of the slowest rank. exposed: what it takes beyond the step without any communication in
    the same round. kb: what the kernel counted that a host sent, headers included. The ratios are
    of the same round, too. loss: of the training batches in the last round. failed: how a contender
    ended that did not come to its end; it has no figures.
    """

    model: str
    batch: int
    rate: str
    hosts: int
    contender: str
    rounds: int = 0
    block: int = 0
    step_ms: Annotated[float | None, Title("step, ms")] = None
    step_low_ms: Annotated[float | None, Title("step, lower quartile")] = None
    step_high_ms: Annotated[float | None, Title("step, upper quartile")] = None
    exposed_ms: Annotated[float | None, Title("exposed, ms")] = None
    kb: Annotated[float | None, Title("kB sent")] = None
    by_none: Annotated[float | None, Title("step / none")] = None
    by_none_low: Annotated[float | None, Title("step / none, lower quartile")] = None
    by_none_high: Annotated[float | None, Title("step / none, upper quartile")] = None
    by_ddp: Annotated[float | None, Title("step / ddp")] = None
    loss: float | None = None
    parameters: int | None = None
    data: str | None = None
    failed: str | None = None

    @property
    def cell(self) -> tuple[str, int, str, int]:
        """What it shares with the contenders that took turns with it."""
        return self.model, self.batch, self.rate, self.hosts


@dataclass(frozen=True)
class RaceRow(Row):
    """What a contender has learned in a given time of training: loss and accuracy on test data."""

    model: str
    batch: int
    rate: str
    hosts: int
    contender: str
    seconds: float
    steps: int = 0
    loss: float | None = None
    accuracy: float | None = None
    parameters: int | None = None
    data: str | None = None
    failed: str | None = None

    @property
    def cell(self) -> tuple[str, int, str, int]:
        """What it shares with the contenders that took turns with it."""
        return self.model, self.batch, self.rate, self.hosts


@dataclass(frozen=True)
class Place:
    """The network of a measurement. hosts: with one rank each."""

    rate: str
    hosts: int

    @property
    def networked(self) -> bool:
        """Whether the ranks have hosts of their own."""
        return self.rate != MEMORY

    def command(self, stack: ExitStack, args: Sequence[str | Path]) -> list[str]:
        """The command that runs `args` on the ranks. The hosts are there until the stack closes."""
        if self.networked:
            hosts = Hosts(self.hosts, None if self.rate == UNLIMITED else self.rate)
            return stack.enter_context(hosts).mpirun(self.hosts, args)
        alone = [] if self.hosts == 1 else [mpirun(), "-n", str(self.hosts)]
        return [*alone, *map(str, args)]


def check() -> None:
    """UsageError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError("this command needs PyTorch: pip install 'dls[torch]'")


def rows_in(path: Path) -> list[TorchRow | RaceRow]:
    """The rows of a file that --json or --report wrote. UsageError where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        records = found["rows"] if isinstance(found, dict) else found
        kinds = [RaceRow if "seconds" in record else TorchRow for record in records]
        return [kind.from_json(record) for kind, record in zip(kinds, records, strict=True)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--resume {path}: no rows of this command ({error})") from None


def measure(
    places: Sequence[Place],
    models: Sequence[str],
    contenders: Sequence[str],
    settings: Mapping[str, Any],
    done: Sequence[TorchRow | RaceRow] = (),
) -> Iterator[TorchRow | RaceRow]:
    """Yield the rows of every place and model (NAME/BATCH); first those that are done already,
    whose cells are not measured again.

    settings: those of a Cell that all share. HostsError where there can be no hosts.
    """
    from dls.bench.torch_cell import Cell  # here, as it loads PyTorch

    yield from done
    kind = RaceRow if settings["seconds"] else TorchRow
    cells = {row.cell for row in done if isinstance(row, kind)}
    for place in places:
        for spec in models:
            model, _, batch = spec.partition("/")
            if (model, int(batch), place.rate, place.hosts) not in cells:
                address = ADDRESSES[place.networked]
                cell = Cell(model, int(batch), contenders, address=address, **settings)
                yield from _measured(place, cell)


def _measured(place: Place, cell: Cell) -> Iterator[TorchRow | RaceRow]:
    """The rows of one cell, in the order of its contenders."""
    failed: dict[str, str] = {}
    while True:
        left = [name for name in cell.contenders if name not in failed]
        found, culprit, words = _run(place, cell, left)
        if not culprit:
            break
        failed |= _blamed(culprit, words, cell.contenders)
    about = {"model": cell.model, "batch": cell.batch, "rate": place.rate, "hosts": place.hosts}
    for name in cell.contenders:
        own = about | {"contender": name}
        if cell.seconds:
            ends = found.get("ends", {}).get(name, {})
            figures = {"seconds": cell.seconds, **ends}
        else:
            figures = _figures(name, found.get("rounds", {})) | {"block": cell.block}
            figures["kB sent"] = figures.get("kB sent") if place.networked else None
        figures |= {key: found.get(key) for key in ("parameters", "data")}
        if name in failed:
            figures = {"seconds": cell.seconds, "failed": failed[name]}
        kind = RaceRow if cell.seconds else TorchRow
        yield kind.from_json(own | figures)


def _blamed(culprit: str, words: str, contenders: Sequence[str]) -> dict[str, str]:
    """The contenders that cannot go on, with the reason: one, or DDP with all its hooks.

    UsageError where it is none of them.
    """
    if culprit == GLOO:
        blamed = [name for name in contenders if name.split("/")[0] == DDP]
    else:
        blamed = [name for name in contenders if name == culprit]
    if not blamed:
        raise UsageError(f"the ranks ended before any contender's turn: {words}")
    return dict.fromkeys(blamed, words)


def _run(place: Place, cell: Cell, contenders: Sequence[str]) -> tuple[dict[str, Any], str, str]:
    """What these contenders' rounds gave; or the contender that ended them, and its last words."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dls-torch-")))
        own = {**vars(cell), "contenders": list(contenders)}
        type(cell)(**own).save(folder / "cell.json")
        args = [*python(), "-m", "dls.bench.torch_cell", str(folder / "cell.json")]
        environment = os.environ | {
            "GLOO_SOCKET_IFNAME": INTERFACES[place.networked],
            "OMP_NUM_THREADS": str(cell.threads),
        }
        command = place.command(stack, args)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        at, rounds = folder / "at", folder / "rounds.json"
        if done.returncode or not rounds.exists():
            culprit = at.read_text(encoding="utf-8") if at.exists() else "start"
            return {}, culprit, last_words(done.stderr, done.returncode)
        found: dict[str, Any] = json.loads(rounds.read_text(encoding="utf-8"))
        return found, "", ""


def last_words(said: str, status: int) -> str:
    """The line of an error's output that says what went wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    signals = [line for line in lines if "terminated" in line.lower() or "signal" in line.lower()]
    found = (errors or signals or lines or [f"it ended with status {status}"])[0]
    return found[:WORDS]


def _figures(name: str, rounds: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """A contender's figures by their titles. rounds: seconds, bytes and loss of each one's."""
    if name not in rounds:
        return {}
    own = np.array(rounds[name])
    seconds = own[:, 0]
    low, middle, high = (1000 * np.percentile(seconds, QUARTILES)).tolist()
    figures: dict[str, Any] = {
        "rounds": len(own),
        "step, ms": middle,
        "step, lower quartile": low,
        "step, upper quartile": high,
        "kB sent": float(np.median(own[:, 1])) / 1000,
        "loss": float(own[-1, 2]),
    }
    if NONE in rounds:
        plain = np.array(rounds[NONE])[:, 0]
        low, middle, high = np.percentile(seconds / plain, QUARTILES).tolist()
        figures["exposed, ms"] = 1000 * float(np.median(seconds - plain))
        figures |= {"step / none": middle, "step / none, lower quartile": low}
        figures["step / none, upper quartile"] = high
    if DDP in rounds:
        figures["step / ddp"] = float(np.median(seconds / np.array(rounds[DDP])[:, 0]))
    return figures
