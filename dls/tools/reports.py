"""Files that hold a measurement's rows, and what they were measured on."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dls.record import files
from dls.tools import machine
from dls.tools.rows import Row


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --json and --report."""
    group = parser.add_argument_group("results")
    group.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the rows of all tables to FILE"
    )
    group.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="also write the rows, and the machine and software they were measured on, to a file"
        " in FOLDER that is named after the device",
    )


def prepare(options: argparse.Namespace) -> None:
    """Open the files that the options name, so that an obstacle shows before hours of measuring.

    What a file holds stays until there are rows. OSError where one cannot be written.
    """
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            if not file.tell():
                file.write("[]\n")
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        files.check_folder(options.report)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a JSON list, null for the numbers that JSON does not have. OSError."""
    text = files.json_text([row.to_json() for row in rows], indent=2)
    path.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Report:
    """The report of a command: a file in a folder, named after the command and the device."""

    folder: Path
    command: str
    backend: str
    measured_on: dict[str, Any]

    @classmethod
    def begin(cls, folder: Path, command: str, backend: str) -> Report:
        """The report of this machine and of these sources; nothing is written yet."""
        return cls(folder, command, backend, machine.describe(backend))

    def write(self, rows: Sequence[Row], complete: bool) -> Path:
        """Write the rows measured so far; return the file. OSError."""
        path = self.folder / f"{self.command}-{slug(self.measured_on['device'])}.json"
        report = {"command": self.command, "backend": self.backend, **self.measured_on}
        report |= {"complete": complete, "rows": [row.to_json() for row in rows]}
        files.write_text(path, files.json_text(report, indent=2) + "\n")
        return path


def write(folder: Path, command: str, backend: str, rows: Sequence[Row]) -> Path:
    """Write a complete measurement to COMMAND-DEVICE.json in the folder; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    return Report.begin(folder, command, backend).write(rows, complete=True)


def slug(name: str) -> str:
    """A device's name as part of a file's name: "NVIDIA H200" becomes nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
