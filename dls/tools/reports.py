"""What a measurement leaves: its rows as a table, and as a file that says on what they were
measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import dls
from dls import backends
from dls.program import sources
from dls.record import files

PACKAGES = (
    "numpy",
    "numba",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-nvrtc",
    "torch",
)
"""Those on which a time may depend."""


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as one table."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        table.add_column(
            "\n".join(column.split(" ")), justify="right", vertical="bottom", no_wrap=True
        )
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    wide = Console(width=1000)
    Console(width=wide.measure(table).maximum).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, str) and value.isdigit():
        return f"{int(value):,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where a measurement's rows are to go, too."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows of all tables there"
    )
    words = (
        "write the rows, and on what they were measured, to a file there that is named after the"
        " device"
    )
    parser.add_argument("--report", type=Path, metavar="FOLDER", help=words)


def prepare(options: argparse.Namespace) -> None:
    """What cannot be written shows before the hours of measuring. OSError."""
    if options.json:
        options.json.write_text("[]\n", encoding="utf-8")
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        files.check_folder(options.report)


@dataclass(frozen=True)
class Report:
    """What a command measures with a backend, for a file in the folder that is named after both the
    command and the device.
    """

    folder: Path
    command: str
    backend: str
    measured_on: dict[str, Any]

    @classmethod
    def begin(cls, folder: Path, command: str, backend: str) -> Report:
        """On this machine and with these sources."""
        return cls(folder, command, backend, about(backend))

    def write(self, rows: Sequence[dict[str, Any]], complete: bool) -> Path:
        """Write the rows that there are, and on what they were measured; return the file."""
        path = self.folder / f"{self.command}-{slug(self.measured_on['device'])}.json"
        report = {"command": self.command, "backend": self.backend, **self.measured_on}
        report |= {"complete": complete, "rows": list(rows)}
        files.write_text(path, json.dumps(report, indent=2) + "\n")
        return path


def write(folder: Path, command: str, backend: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a measurement that is complete to <command>-<device>.json in the folder; return the
    file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return Report.begin(folder, command, backend).write(rows, complete=True)


def about(backend: str) -> dict[str, Any]:
    """The device on which a backend computes here, and the software."""
    return {**backends.load(backend).describe(), **_software()}


def slug(name: str) -> str:
    """A device's name as part of a file's: "NVIDIA H200" becomes nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _software() -> dict[str, Any]:
    return {
        "dls": dls.__version__,
        "commit": sources.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
