"""What all command lines of the program share: parsing, hints, and errors in one line."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from dls import version
from dls.comm import launcher

SIMILARITY = 0.65
"""How similar two names are (0 to 1) where one may be a misspelling of the other."""


class UsageError(ValueError):
    """Bad usage or configuration: one clear line for the user, exit status 2."""


class _Version(argparse.Action):
    """Prints the version and ends: git is asked for the commit only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser._print_message(version.described() + "\n", sys.stdout)
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A command line with --version, without abbreviations, whose errors are UsageError.

    aliases: names of options in other programs; see `near`.
    """

    def __init__(self, aliases: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._aliases = aliases or {}
        self.add_argument("--version", action=_Version, help="show the version, with its commit")

    def parse_args(  # type: ignore[override]  # the other signatures are of no use here
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The options. UsageError for unknown ones, with a hint at the nearest known one."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + self._hint(unknown))
        return options

    def _hint(self, unknown: Sequence[str]) -> str:
        known = [name.removeprefix("--") for name in self._names() if name.startswith("--")]
        flags = [
            text.lstrip("-").partition("=")[0]
            for text in unknown
            if text.startswith("-") or "=" in text
        ]
        hints = (near(each.replace("_", "-"), known, self._aliases, "--") for each in flags)
        return next(filter(None, hints), "")

    def _names(self) -> Iterator[str]:
        """The options of this command line and of the commands below it."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from below._names()

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; argparse itself would end the process."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or the version, on the first of a launcher's processes only."""
        if launcher.rank(os.environ) == 0:
            super()._print_message(message, file)


def near(
    typed: str, known: Iterable[str], aliases: Mapping[str, str] | None = None, dashes: str = ""
) -> str:
    """A hint such as "; did you mean lr?" at a known name like the typed one; "" without one.

    aliases: other programs' names, each with one of the known names, or with a sentence that is
    the hint. dashes: stand before a known name in the hint.
    """
    known = list(known)
    meant = (aliases or {}).get(typed.lower(), "")
    if meant and meant not in known:
        return f"; {meant}"
    similar = difflib.get_close_matches(typed.lower(), known, n=1, cutoff=SIMILARITY)
    best = meant or next(iter(similar), "")
    return f"; did you mean {dashes}{best}?" if best else ""
