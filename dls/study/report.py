"""The files of a study's report: study.md, study.json and study.png, rebuilt from the traces of
complete runs whenever they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dls.cli import UsageError
from dls.record import files
from dls.study import chart, page
from dls.study.findings import comparisons
from dls.study.rows import StudyRow
from dls.tools import machine


def prepare(folder: Path) -> None:
    """Make the report's folder, so that an obstacle shows before hours of runs. UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.check_folder(folder)
    except OSError as error:
        raise _refused(folder, error) from None


def write(rows: Sequence[StudyRow], folder: Path) -> None:
    """Write the three files. UsageError where the folder cannot be written."""
    text = to_json(rows)
    prepare(folder)
    try:
        (folder / "study.md").write_text(page.page(rows), encoding="utf-8")
        (folder / "study.json").write_text(text, encoding="utf-8")
        chart.draw(rows, folder / "study.png")
    except OSError as error:
        raise _refused(folder, error) from None


def to_json(rows: Sequence[StudyRow]) -> str:
    """The text of study.json: the rows, their comparisons, and the machine that wrote it."""
    report = {
        "rows": [row.to_json() for row in rows],
        "comparisons": [each.row().to_json() for each in comparisons(rows)],
        "reported_by": machine.describe("numpy"),
    }
    return files.json_text(report, indent=1) + "\n"


def _refused(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write the report to {folder}: {error.strerror}")
