"""Whatever lies in the user's folder, dls finds its own packages, and leaves the user's alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import checkout
from tests.launch import ROOT, launch

LIES = 'raise SystemExit("a file of the user\'s was run")\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with modules of our packages' names."""
    checkout.write(tmp_path, {"gpu.py": LIES, "reference/__init__.py": LIES, "tests.py": LIES})
    return tmp_path


def python(
    folder: Path, program: str, *flags: str, last: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a program from a folder, which comes first on its path; the last on it is where dls
    lies.
    """
    path = (
        f"import sys; sys.path[:] = [*(p for p in sys.path if p != {str(ROOT)!r}), {str(last)!r}]"
    )
    command = [sys.executable, *flags, "-c", f"{path}; {program}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_command_starts(folder: Path) -> None:
    tools = [
        launch([(0, ["-m", f"dls.{tool}", "--help"])], folder)
        for tool in ("inspect", "bench", "study", "theory")
    ]
    assert [tool.status for tool in tools] == [0] * 4, tools
    train = launch(
        [
            (
                2,
                [
                    "-m",
                    "dls.train",
                    "--backend",
                    "numpy",
                    "--mlp-widths",
                    "4",
                    "--steps",
                    "1",
                    "--out",
                    "run",
                ],
            )
        ],
        folder,
    )
    assert train.status == 0, train.err


def test_the_packages_are_those_beside_dls(folder: Path) -> None:
    done = python(folder, "import dls, gpu, reference.ops as r; print(gpu.__file__, r.__file__)")
    assert done.stdout.split() == [
        str(ROOT / "gpu/__init__.py"),
        str(ROOT / "reference/ops.py"),
    ], done.stderr


def test_a_module_of_that_name_that_is_imported_already_is_named(tmp_path: Path) -> None:
    checkout.write(tmp_path, {"gpu.py": "mine = 1\n"})
    done = python(tmp_path, "import gpu; import dls")
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == f"ImportError: {tmp_path}/gpu.py was imported as gpu, the name of a package of dls:"
        " rename it"
    )


def test_our_own_that_is_imported_already_stays(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(ROOT)
    ours = f"sys.path.insert(0, {str(link)!r}); import gpu; del sys.path[0]"
    done = python(tmp_path, f"{ours}; import dls; assert sys.modules['gpu'] is gpu")
    assert done.returncode == 0, done.stderr


def test_a_program_in_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "dls.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for package in ("dls", "gpu", "reference"):
            for source in (ROOT / package).rglob("*.py"):
                file.write(source, source.relative_to(ROOT))
    checkout.write(tmp_path, {"gpu.py": LIES})
    program = (
        "from dls import backends; print(backends.load('numpy').ops.zeros.__globals__['__file__'])"
    )
    done = python(tmp_path, program, last=archive)
    assert done.stdout.strip() == f"{archive}/reference/ops.py", done.stderr


def test_a_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    checkout.write(
        tmp_path,
        {name: (ROOT / name).read_text() for name in ("dls/__init__.py", "dls/version.py")},
    )
    done = python(tmp_path, "import dls")
    assert (
        done.stderr.splitlines()[-1]
        == f"ImportError: dls is not whole: its package reference is not in {tmp_path}"
    )


def test_programs_that_are_started_keep_away_from_the_folder_too() -> None:
    program = "from dls.tools.programs import python; print(*python()[1:])"
    assert python(ROOT, program, "-P").stdout == "-P\n"
    assert python(ROOT, program).stdout == "\n"
