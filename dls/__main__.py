"""`dls COMMAND …` and `python -m dls COMMAND …`: one program for all commands.

`dls train …` is `python -m dls.train …`, and so on for every command. Nothing but the command's own
module is loaded, so that `dls inspect` needs no MPI library and `dls train` listens to signals as
early as the module does.
"""

from __future__ import annotations

import sys

from dls import called

COMMANDS = {
    "train": "train a model with sparsified gradients, alone or on the ranks of mpirun",
    "inspect": "show what runs did: tables, pictures, one page of HTML",
    "study": "run many experiments, and compare the methods in a report",
    "predict": "say what a run would take on another network, and which method pays there",
    "theory": "compare measured gradient variances with the paper's equations",
    "bench": "measure selection, exchange and whole steps on this machine or network",
    "completion": "print the script with which a shell completes commands and options",
}
"""The commands, each with a line for --help. `NAME` is the module `dls.NAME`."""


def main(argv: list[str] | None = None) -> int:
    """Do as the command line says. Returns the command's exit status; 2 for bad usage."""
    arguments = sys.argv[1:] if argv is None else argv
    called.remember(called.SCRIPT if __name__ != "__main__" else called.PACKAGE)
    if arguments and arguments[0] in COMMANDS:
        return _run(arguments[0], arguments[1:])
    return _without_command(arguments)


def _run(command: str, arguments: list[str]) -> int:
    """Run a command's module as `python -m` would, with its exit status."""
    import runpy

    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        runpy.run_module(f"{__package__}.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int) or end.code is None:
            return end.code or 0
        raise
    finally:
        sys.argv = before
    return 0


def _without_command(arguments: list[str]) -> int:
    """Help, the version, or one line for what is no command."""
    import os

    from dls.comm import launcher
    from dls.program import output

    first = arguments[0] if arguments else "--help"
    if not launcher.speaks(os.environ):
        return 0 if first in ("-h", "--help", "--version") else 2
    with output.unheard():
        if first in ("-h", "--help"):
            print(_help())
            return 0
        if first == "--version":
            from dls import version

            print(version.described())
            return 0
        print(f"dls: {_refusal(first)}", file=sys.stderr)
        return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    name = called.by()
    return "\n".join(
        [
            f"usage: {name} COMMAND …",
            "",
            "Data-parallel training over MPI with sparsified gradients.",
            "",
            "commands:",
            *(f"  {command:{width}}  {words}" for command, words in COMMANDS.items()),
            "",
            f"{name} COMMAND --help shows a command's options, {name} --version the version.",
        ]
    )


def _refusal(typed: str) -> str:
    """One line for what is no command, with the nearest that there is."""
    from dls.cli import near

    if typed.startswith("-"):
        return f"{typed} stands before the command; options follow it, see {called.by()} --help"
    hint = near(typed, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
    return f"there is no command '{typed}'{hint}"


if __name__ == "__main__":
    sys.exit(main())
