"""How the user called this program: as `dls train` or as `python -m dls.train`.

It imports nothing of ours, as `dls` loads it before a run listens to signals.
"""

from __future__ import annotations

SCRIPT = "dls"
"""The installed program."""
PACKAGE = "python -m dls"
"""The same program, started as the package."""

_by = ""


def remember(program: str) -> None:
    """Commands are those of SCRIPT or of PACKAGE from now on; "": those of a module each."""
    global _by
    _by = program


def by() -> str:
    """SCRIPT, PACKAGE, or "" where a command's own module was started."""
    return _by


def usage_name(command: str) -> str:
    """What a usage line calls a command such as "train"."""
    return f"{_by} {command}" if _by else f"{PACKAGE}.{command}"
