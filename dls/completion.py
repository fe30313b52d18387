"""`dls completion bash`: the script with which a shell completes commands, options and choices.

The script comes from the command lines themselves, through shtab, and holds all it needs: no
Python runs when the user presses Tab.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import shtab

from dls import called
from dls.__main__ import COMMANDS
from dls.cli import Parser, UsageError
from dls.program import config, output

SHELLS = ("bash", "zsh", "fish")
"""The shells that are tested, or documented by shtab as complete."""
PARSERS = {"train": "dls.program.flags", "completion": "dls.completion"}
"""Modules that build a command's parser, where that is not `dls.NAME.__main__`."""
FOLDERS = ("FOLDER", "DIR")
"""Metavars whose values are completed as folders."""
FILES = ("FILE", "RUN")
"""Metavars whose values are completed as paths."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `dls completion`."""
    parser = Parser(
        prog=called.usage_name("completion"),
        description="Print the script with which a shell completes dls. Evaluate it in the"
        ' shell\'s start-up file: eval "$(dls completion bash)".',
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    return parser


def whole_program() -> argparse.ArgumentParser:
    """One parser of all commands, for shtab alone."""
    parser = Parser(prog=called.SCRIPT)
    commands = parser.add_subparsers()
    for name, words in COMMANDS.items():
        module = import_module(PARSERS.get(name, f"dls.{name}.__main__"))
        own = module.build_parser()
        _mark(own)
        commands.add_parser(
            name, parents=[own], add_help=False, help=words, conflict_handler="resolve"
        )
    return parser


def _mark(parser: argparse.ArgumentParser) -> None:
    """Say of every option which paths or choices complete its value."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _mark(below)
        elif action.choices is None:
            _mark_option(action)


def _mark_option(action: argparse.Action) -> None:
    if action.metavar in FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif action.metavar in FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif action.dest in config.FIELDS and action.nargs != 0:
        choices = config.FIELDS[action.dest].metadata["choices"]
        action.choices = choices() if choices else None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script. Exit status: 0 done, 2 bad usage."""
    try:
        with output.unheard():
            options = build_parser().parse_args(argv)
            print(shtab.complete(whole_program(), options.shell))
    except (OSError, UsageError) as error:
        print(f"dls.completion: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
