"""One program, `dls`, for all commands: names, help, versions, completion."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dls import called, version
from dls.__main__ import COMMANDS
from tests.conftest import lines
from tests.launch import ROOT

SCRIPT = str(Path(sys.executable).with_name("dls"))
WAYS = {"script": [SCRIPT], "package": [sys.executable, "-m", "dls"]}


def run(*command: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | environ
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_alone_it_shows_every_command(way: str) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        done = run(*WAYS[way], *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(lines(done.stdout)) < 25
        for command, words in COMMANDS.items():
            assert re.search(rf"^  {command} +{re.escape(words)}$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("trian", "; did you mean train?"),
        ("Inspect", "; did you mean inspect?"),
        ("xyz", f"; the commands are {', '.join(COMMANDS)}"),
    ],
)
def test_an_unknown_command_is_one_line(typed: str, hint: str) -> None:
    done = run(SCRIPT, typed, "--lr", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"dls: there is no command '{typed}'{hint}\n"


def test_an_option_before_the_command_is_one_line() -> None:
    done = run(SCRIPT, "--lr", "1", "train")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dls: --lr stands before the command; options follow it, see dls --help\n"


def test_under_a_launcher_one_process_speaks() -> None:
    launched = {"PMI_RANK": "1", "PMI_SIZE": "2"}
    for arguments, status in (([], 0), (["--version"], 0), (["trian"], 2)):
        done = run(SCRIPT, *arguments, **launched)
        assert (done.returncode, done.stdout + done.stderr) == (status, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_its_module(command: str, tmp_path: Path) -> None:
    """The same help, refusals and statuses; the usage line says how each was called."""
    for arguments in (["--help"], ["--frobnicate"], ["--version"]):
        module = run(sys.executable, "-m", f"dls.{command}", *arguments, cwd=tmp_path)
        for way, words in WAYS.items():
            done = run(*words, command, *arguments, cwd=tmp_path)
            name = called.SCRIPT if way == "script" else called.PACKAGE
            typed = f"{name} {command}"
            assert done.returncode == module.returncode == 2 * (arguments == ["--frobnicate"])
            for said, expected in ((done.stdout, module.stdout), (done.stderr, module.stderr)):
                for before in ("usage: ", "see ", "mpirun -n 4 "):
                    named = f"{before}python -m dls.{command} "
                    expected = expected.replace(named, f"{before}{typed} ")
                assert said.split() == expected.split()
            assert arguments != ["--help"] or done.stdout.startswith(f"usage: {typed} ")


def test_a_command_loads_nothing_of_the_others(tmp_path: Path) -> None:
    """A report needs no MPI library, and only training listens to signals."""
    program = (
        "import runpy, sys\n"
        "sys.argv = ['dls', 'inspect', '--help']\n"
        "from dls.__main__ import main\n"
        "before = set(sys.modules)\n"
        "assert not [name for name in before if name.split('.')[0] in ('numpy', 'argparse')]\n"
        "assert main() == 0\n"
        "print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    done = run(sys.executable, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.split()
    assert "dls.inspect.finding" in loaded
    assert not {"mpi4py.MPI", "dls.program.startup", "dls.study", "shtab", "numba"} & set(loaded)


# --- versions -------------------------------------------------------------------------------------


def test_the_version_names_the_commit_of_the_checkout(tmp_path: Path) -> None:
    for command in ([SCRIPT, "--version"], [SCRIPT, "train", "--version"]):
        assert run(*command, cwd=tmp_path).stdout == version.described() + "\n"
    head = version.of_checkout(ROOT)
    if head.commit:
        assert re.fullmatch(r"dls \S+ \(commit [0-9a-f]{12}\+?\)", version.described())


# --- completion -----------------------------------------------------------------------------------

TRY = """
source completion.bash
function=$(complete -p dls | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
while IFS= read -r line; do
    eval "COMP_WORDS=($line)"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    $function dls "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    echo "${COMPREPLY[*]}"
done
"""
"""Prints what bash would offer for each line that it reads."""
OFFERED = {
    "dls ''": " ".join(COMMANDS),
    "dls tr": "train",
    "dls train --meth": "--method",
    "dls train --lr 0.1 --dens": "--density --density-warmup",
    "dls train --on-nan ''": "stop skip",
    "dls train --overlap --backend nump": "numpy",
    "dls train --config some": "some-folder some.toml",
    "dls train --out some-f": "some-folder",
    "dls bench net": "network",
    "dls bench network --ra": "--rates",
    "dls inspect --fo": "--follow",
    "dls inspect some.t": "some.toml",
    "dls completion f": "fish",
}


def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    done = run(SCRIPT, "completion", "bash", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "completion.bash").write_text(done.stdout)
    (tmp_path / "some.toml").touch()
    (tmp_path / "some-folder").mkdir()
    tried = subprocess.run(
        ["bash", "-c", TRY],
        input="".join(f"{line}\n" for line in OFFERED),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert dict(zip(OFFERED, tried.stdout.splitlines(), strict=True)) == OFFERED


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_of_every_command(shell: str, tmp_path: Path) -> None:
    done = run(SCRIPT, "completion", shell, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(COMMANDS) <= set(re.findall(r"[\w-]+", done.stdout))
    assert "density-warmup" in done.stdout


def test_a_shell_without_a_script_is_refused() -> None:
    done = run(SCRIPT, "completion", "cmd.exe")
    assert done.returncode == 2
    assert done.stderr.startswith("dls.completion: argument shell: invalid choice: 'cmd.exe'")


def test_the_next_commands_are_given_in_the_way_that_was_used(tmp_path: Path, way: str) -> None:
    """Without the folder of the program on the path, and with it."""
    tiny = ("--mlp-widths", "4", "--threads", "1", "--backend", "numpy", "--steps", "1")
    bare = "/usr/bin:/bin"  # an activated environment would have the program on the path
    done = run(*WAYS[way], "train", *tiny, "--workers", "1", "--out", "a", cwd=tmp_path, PATH=bare)
    assert done.returncode == 0, done.stderr
    typed = done.stdout.splitlines()[-1].removeprefix("look into it with ")
    assert shlex.split(typed) == [*WAYS[way], "inspect", "a"]
    assert run(*shlex.split(typed), cwd=tmp_path).returncode == 0
    path = f"{Path(SCRIPT).parent}:{os.environ['PATH']}"
    done = run(*WAYS[way], "train", *tiny, "--workers", "1", "--out", "b", cwd=tmp_path, PATH=path)
    last = done.stdout.splitlines()[-1]
    assert way != "script" or last == "look into it with dls inspect b"
