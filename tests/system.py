"""What `make test-gpu SYSTEM=1` adds to a machine's own Python.

Standard library alone, as that may have nothing else.

python tests/system.py without NAME…    requirements of training and tests, without those named
python tests/system.py missing          those of which this Python has no version at all
python tests/system.py packages         a line for a .pth file: this Python's packages for another's
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(without: Collection[str] = ()) -> Iterator[str]:
    """The lines of pyproject.toml that tests on a GPU need, less those of the packages that are
    named.
    """
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["mpich"], *extras["test"]):
        if _name(line) not in without:
            yield line


def missing() -> Iterator[str]:
    """Those of packages that are not here.

    One that is here in another version stays: it may be tied to the card's driver.
    """
    return requirements([name for name in map(_name, requirements()) if _is_here(name)])


def packages() -> str:
    """The line, also where this Python is that of a virtual environment, whose packages another
    does not look for.
    """
    folders = [folder for folder in sys.path if folder.endswith("-packages")]
    return "import site; " + "; ".join(f"site.addsitedir({folder!r})" for folder in folders)


def _name(line: str) -> str:
    return re.split(r"[^\w.-]", line, maxsplit=1)[0]


def _is_here(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main(command: str, *names: str) -> None:
    """Print what the command asks for."""
    lines = {
        "without": lambda: requirements(names),
        "missing": missing,
        "packages": lambda: [packages()],
    }
    print(*lines[command](), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
