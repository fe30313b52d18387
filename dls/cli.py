"""What all command lines of the program share: how they are read, and what is said of a slip in
one.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from dls import version
from dls.comm import launcher

LIKE = 0.7
"""How alike two names are, from 0 to 1, before one is taken for a slip of the other."""


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
    """A command line that takes no abbreviations, knows --version, and whose errors are UsageError.

    aliases: what people type for the name of an option, and what they mean, in words.
    """

    def __init__(self, aliases: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._aliases = aliases or {}
        self.add_argument("--version", action=_Version, help="show the version, with its commit")

    def parse_args(  # type: ignore[override]  # the other signatures are of no use here
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The options. UsageError for one that there is not, with the nearest that there is."""
        found, odd = self.parse_known_args(args, namespace)
        if odd:
            self.error(f"unrecognized arguments: {' '.join(odd)}" + self._hint(odd))
        return found

    def _hint(self, odd: Sequence[str]) -> str:
        known = [name.removeprefix("--") for name in self._names() if name.startswith("--")]
        flags = [
            text.lstrip("-").partition("=")[0]
            for text in odd
            if text.startswith("-") or "=" in text
        ]
        found = (near(each.replace("_", "-"), known, self._aliases, "--") for each in flags)
        return next(filter(None, found), "")

    def _names(self) -> Iterator[str]:
        """The options of this command line and of the commands below it."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from below._names()

    def error(self, message: str) -> NoReturn:
        """UsageError, in place of an end of the process."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version, from one rank of those that a launcher started."""
        if launcher.rank(os.environ) == 0:
            super()._print_message(message, file)


def near(
    typed: str, known: Iterable[str], aliases: Mapping[str, str] | None = None, dashes: str = ""
) -> str:
    """ "; did you mean …?" where one of the known names is near; "" elsewhere. dashes: what stands
    before each name.

    aliases: what is typed for a known name, which is then meant, or for something else, of which
    these are the words.
    """
    if (meant := (aliases or {}).get(typed)) and meant not in known:
        return f"; {meant}"
    found = meant or next(
        iter(difflib.get_close_matches(typed.lower(), known, n=1, cutoff=LIKE)), None
    )
    return f"; did you mean {dashes}{found}?" if found else ""
