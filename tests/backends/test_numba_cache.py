"""Machine code that is kept belongs to the sources and the processor at hand, and nothing about it
ends a run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dls import backends
from gpu.numba import cache as numba_cache
from tests import checkout
from tests.launch import ROOT, launch

STEPS = (numba_cache.folders, numba_cache.is_compiled, numba_cache.notes)
NO_FOLDER = Path("/dev/null/base")


def plus_one(x: int) -> int:
    return x + 1


@pytest.fixture
def keep_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Have machine code kept below other folders."""

    def bases(*folders: Path) -> None:
        monkeypatch.setattr(numba_cache, "_bases", lambda: iter(folders))
        for step in STEPS:
            step.cache_clear()

    yield bases
    for step in STEPS:
        step.cache_clear()


def hits() -> int:
    """Compile `plus_one`, or take what is kept; how often the latter."""
    compiled = numba_cache.njit(nogil=True)(plus_one)
    assert compiled(1) == 2
    return sum(compiled.stats.cache_hits.values())


def damages(whole: bytes) -> Iterator[bytes]:
    """What may be left of a file."""
    yield b""
    yield whole[:20]
    yield whole[:-1]
    yield whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]


def test_code_is_compiled_once(tmp_path: Path, keep_in: Callable[..., None]) -> None:
    keep_in(tmp_path)
    assert hits() == 0
    assert hits() == 1


def test_damaged_code_is_compiled_again(tmp_path: Path, keep_in: Callable[..., None]) -> None:
    keep_in(tmp_path)
    hits()
    (file,) = tmp_path.rglob("*.code")
    whole = file.read_bytes()
    for content in damages(whole):
        file.write_bytes(content)
        assert hits() == 0
        assert hits() == 1
    file.unlink()
    file.mkdir()
    assert hits() == 0


def test_the_next_folder_takes_what_the_first_does_not(
    tmp_path: Path, keep_in: Callable[..., None]
) -> None:
    keep_in(NO_FOLDER, tmp_path)
    assert numba_cache.notes() == ()
    assert hits() == 0
    assert hits() == 1


def test_without_any_folder_code_is_compiled_and_a_line_says_why(
    keep_in: Callable[..., None],
) -> None:
    keep_in(NO_FOLDER)
    assert (hits(), hits()) == (0, 0)
    (line,) = numba_cache.notes()
    assert "/dev/null/base: Not a directory" in line
    assert "NUMBA_CACHE_DIR" in line


def test_a_full_disk_ends_nothing(tmp_path: Path, keep_in: Callable[..., None]) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a tmpfs, as root")
    try:
        keep_in(tmp_path)
        (line,) = numba_cache.notes()
        assert "No space left on device" in line
        assert (hits(), hits()) == (0, 0)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_code_is_there_once_a_step_has_come_to_its_end(
    tmp_path: Path, keep_in: Callable[..., None]
) -> None:
    keep_in(tmp_path)
    hits()
    assert not numba_cache.is_compiled()
    (numba_cache.folders()[0] / f"{numba_cache.LAST}-0.code").touch()
    keep_in(tmp_path)
    assert numba_cache.is_compiled()


def test_folders_that_nobody_uses_go(tmp_path: Path, keep_in: Callable[..., None]) -> None:
    keep_in(tmp_path)
    day, names = numba_cache.DAY, [f"{numba_cache.PREFIX}{number:020x}" for number in range(12)]
    for age, name in enumerate(names):  # in days, and every one holds a file
        checkout.write(tmp_path, {f"{name}/a.code": ""})
        os.utime(tmp_path / name, (time.time() - age * day - 1,) * 2)
    not_ours = {"other", *(f"{numba_cache.PREFIX}0.01-seed{seed}" for seed in range(10))}
    for name in not_ours:
        checkout.write(tmp_path, {f"{name}/a.code": ""})
        os.utime(tmp_path / name, (0, 0))
    assert numba_cache.notes() == ()
    left = {path.name for path in tmp_path.iterdir()} - {numba_cache.folders()[0].name}
    assert left == {*names[: numba_cache.KEPT], *not_ours}


def test_a_folder_in_use_is_marked_as_used(tmp_path: Path, keep_in: Callable[..., None]) -> None:
    keep_in(tmp_path)
    (folder,) = numba_cache.folders()
    checkout.write(folder, {f"{numba_cache.LAST}-0.code": ""})
    os.utime(folder, (0, 0))
    assert numba_cache.is_compiled()
    assert time.time() - folder.stat().st_mtime < numba_cache.DAY


# ---------------------------------------------------------------- what the code depends on

SMALL = {
    "gpu/__init__.py": "",
    "gpu/numba/__init__.py": "",
    "reference/__init__.py": "",
    "gpu/numba/helper.py": "FACTOR = 2\n",
    "gpu/numba/user.py": (
        "from gpu.numba import helper\nfrom gpu.numba.cache import folders, njit\n\n"
        "@njit(nogil=True)\ndef times(x):\n    return x * helper.FACTOR\n"
    ),
}
PRODUCT = (
    "from gpu.numba import user as u; print(u.times(21), sum(u.times.stats.cache_hits.values()),"
    " u.folders()[0])"
)


def run(folder: Path, program: str, **variables: str) -> list[str]:
    """The words that a program prints whose packages lie in a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder)} | variables
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def test_a_change_to_a_helper_alone_takes_effect(tmp_path: Path) -> None:
    checkout.write(
        tmp_path, {**SMALL, "gpu/numba/cache.py": Path(numba_cache.__file__).read_text()}
    )
    before, again = (
        run(tmp_path, PRODUCT, NUMBA_CACHE_DIR=str(tmp_path / "kept")) for _ in range(2)
    )
    checkout.write(tmp_path, {"gpu/numba/helper.py": "FACTOR = 3\n"})
    after = run(tmp_path, PRODUCT, NUMBA_CACHE_DIR=str(tmp_path / "kept"))
    assert before[:2] == ["42", "0"]
    assert again == ["42", "1", before[2]]
    assert after[:2] == ["63", "0"]
    assert after[2] != before[2]
    assert Path(after[2]).parent == tmp_path / "kept"


def test_tiles_and_folder_follow_the_processor_that_numba_compiles_for() -> None:
    program = (
        "from gpu.numba import tiles as t, cache as c; print(t.BYTES, t.COLUMNS, c.target()[1],"
        " c.folders()[0].name)"
    )
    *tile, name, folder = run(ROOT, program, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert (tile, name) == (["16", "3"], "generic")
    assert folder != numba_cache.folders()[0].name


# ---------------------------------------------------------------- what is said of a backend


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("No module named 'numba'"),
            r"is not installed .*; install it with: pip install numba$",
        ),
        (
            ImportError("Numba needs NumPy 2.4 or less"),
            r"cannot be used here: Numba needs NumPy 2.4 or less$",
        ),
        (OSError("No space left on device"), r"cannot be used here: No space left on device$"),
    ],
)
def test_only_a_missing_package_is_to_be_installed(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise error

    monkeypatch.setitem(
        backends._BACKENDS, "numba", backends._BACKENDS["numba"]._replace(parts=fail)
    )
    with pytest.raises(backends.BackendMissing, match=words):
        backends.load("numba")


def test_a_run_passes_on_what_a_backend_notes_once(tmp_path: Path) -> None:
    program = (
        "import sys; from dls import train; from gpu.base import Ops; Ops.notes = lambda self:"
        " ('something to know',);sys.exit(train.main('--backend numpy --mlp-widths 4 --steps 1"
        " --out run'.split()))"
    )
    done = launch([(2, ["-c", program])], tmp_path)
    assert (done.status, done.out.count("something to know")) == (0, 1), done
