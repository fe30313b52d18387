"""Every command of the documentation runs, in a copy of the checkout, in the order in which a
reader would type it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpi4py import MPI

from tests.launch import OPEN_MPI, ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
)
COMMAND = re.compile(r"^ {4}((?:dls|mpirun|python|make|pip|sbatch|printf|srun|cd|git|\.) .*)$")
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SAVED = re.compile(
    r"[Ss]ave it as\s+`([\w/]+\.(?:py|toml))`:\s+```(?:python|toml)\n(.*?)^```",
    re.MULTILINE | re.DOTALL,
)
SHORTER = {
    r"(dls[. ]|my_)train(?!.*--resume)": "--steps 12 --backend numpy",
    r"(dls[. ]|my_)train.*--resume": "--steps 16",
    r"dls[. ]train.*--dataset synthetic": "--steps 2 --synthetic-size 32",
    r"dls[. ]theory": (
        "--models mlp --property-models mlp --seeds 2 --batches 1 --steps 2 --record 2"
        " --densities 0.1"
    ),
    r"dls[. ]bench exchange": "--sizes 1000 --steps 1 --backend numpy",
    r"dls[. ]bench step": "--networks resnet20 --methods dls --batch 1 --steps 1 --backend numpy",
    r"dls[. ]study runs": "--report-only --out .",
    r"dls[. ]study mine": "--workers '--only=*-0.1-seed0'",
    r"dls[. ]bench torch": (
        "--models small/4 --rates memory --contenders none,dls --steps 1 --block 1"
    ),
    r"examples/resnet18": "--dataset digits --width 4 --steps 2",
    r"examples/gpt": "--width 32 --layers 1 --steps 2 --sample 5",
    "pytest": "--collect-only",
}
"""What is added to commands that would take long; a later flag beats an earlier one.

Each program that computes with numba would load it, which takes longer than these short runs.
"""
ELSEWHERE = {
    r"^\. \.venv": "the environment is this one",
    r"^sbatch": "needs Slurm; tests/mpi/test_command_line.py runs the script",
    r"^dls completion": "writes to the home folder; tests/tools/test_program.py runs it",
    r"^pip": "the environment is this one; its extras are looked up",
    r"--backend cupy": "needs a GPU",
    r"--fit |\bnet\.toml": "a busy machine has no fit; tests/tools/test_predict_fit.py runs it",
    r"dls\.predict\.": "takes minutes and needs root",
}
"""Commands that are not run here, and why."""


def commands(text: str) -> Iterator[str]:
    """The indented lines that are commands, without their comments."""
    for line in FENCE.sub("", text).splitlines():
        if found := COMMAND.match(line):
            yield found[1].partition("  #")[0].rstrip()


def here(command: str) -> str:
    """The command as this machine and this test can run it."""
    for program, options in SHORTER.items():
        if re.search(program, command):
            command += " " + options
    command = (
        command.replace("/shared/", "").replace("node1", "localhost").replace("node2", "localhost")
    )
    return re.sub(r"^make\b", "make --dry-run", command)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, and of the files in runs/."""
    copy = tmp_path / "checkout"
    for name in ("dls", "reference", "gpu", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name)  # with what numba has compiled
    for name in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    runs = ROOT / "runs"
    patterns = ("*.*", "study/**/*.toml", "examples/*.py")
    for path in [path for pattern in patterns for path in runs.glob(pattern)]:
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return copy


def run(command: list[str], checkout: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = (
        os.environ
        | {"PATH": path, "PYTHONPATH": str(checkout), "OPENBLAS_NUM_THREADS": "1"}
        | OPEN_MPI
    )
    done = subprocess.run(
        command,
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"


def is_elsewhere(command: str) -> bool:
    ulfm = (
        "--with-ft" in command and MPI.get_vendor()[0] != "Open MPI"
    )  # tests/mpi/test_elastic.py runs it there
    return ulfm or any(re.search(pattern, command) for pattern in ELSEWHERE)


def save_programs(text: str, checkout: Path) -> list[str]:
    """The page's Python: what the page wants saved goes where it says, the others are returned, to
    be run.
    """
    saved = SAVED.findall(text)
    for place, program in saved:
        (checkout / place).write_text(program, encoding="utf-8")
    return [
        block for block in FENCE.findall(text) if block not in [program for _, program in saved]
    ]


def check_extras(command: str) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    for extras in re.findall(r"\.\[([a-z,]+)\]", command):
        assert set(extras.split(",")) <= known.keys()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_runs(page: str, checkout: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    programs = save_programs(text, checkout)
    if (
        "runs/dls" in text and "--out runs/dls\n" not in text
    ):  # the page looks at a run of the tutorial's
        run(
            [
                "bash",
                "-c",
                "mpirun -n 2 python -m dls.train --backend numpy --steps 2 --out runs/dls",
            ],
            checkout,
        )
    for command in commands(text):
        check_extras(command)
        if not is_elsewhere(command):
            run(["bash", "-c", here(command)], checkout)
    for program in programs:
        run([sys.executable, "-c", program], checkout)


def test_the_commands_are_found() -> None:
    """So that the test above cannot pass by finding none."""
    assert len(list(commands((ROOT / "docs/tutorial.md").read_text(encoding="utf-8")))) >= 10
    assert len(SAVED.findall((ROOT / "docs/tutorial.md").read_text(encoding="utf-8"))) == 1
    assert (
        sum(len(list(commands((ROOT / page).read_text(encoding="utf-8")))) for page in PAGES) >= 30
    )


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not link.startswith("http"):
            assert (ROOT / page).parent.joinpath(link).exists(), link
