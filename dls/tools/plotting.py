"""The check for matplotlib, and what all pictures have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dls.cli import UsageError
from dls.record import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def missing(what: str, library: str, extra: str = "plot") -> UsageError:
    """The error where a library is not installed, with the command that installs it.

    what: what needs the library. extra: the group of optional packages that holds it.
    """
    return UsageError(f"{what} needs {library}: pip install 'dls[{extra}]'")


def need_matplotlib(what: str) -> None:
    """UsageError where matplotlib is not installed. what: the option that draws."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise missing(what, "matplotlib") from None


def check_picture(option: str, path: Path) -> None:
    """UsageError, before any work, for a picture that could not be drawn or written.

    option: the one that names the picture's file.
    """
    need_matplotlib(option)
    from matplotlib.figure import Figure

    if obstacle := files.obstacle(path):
        raise UsageError(f"{option} {path}: {obstacle}")
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise UsageError(f"{option} {path}: choose one of {', '.join(sorted(kinds))}")


def tidy(axes: Axes) -> None:
    """A light grid, and no frame at the top and at the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
