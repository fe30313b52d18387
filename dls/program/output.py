"""What a program says to people, and that nobody may be there to read it any more (`| head`, a
terminal that is closed).

What a program writes to its files is its result, and is not lost with its words: so it goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _Unheard:
    """A text stream that swallows what it is given from the first time on that it cannot pass it
    on, for one of these errors.
    """

    def __init__(self, stream: TextIO, errors: type[OSError]) -> None:
        self._stream, self._errors, self.heard = stream, errors, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._meet(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._meet(error)

    def _meet(self, error: OSError) -> None:
        """Swallow the error, or raise it, and with it nothing a second time when Python ends."""
        self._leave()
        if not isinstance(error, self._errors):
            raise error

    def _leave(self) -> None:
        """What is still buffered, and whatever else writes to this descriptor, goes nowhere from
        now on.
        """
        self.heard = False
        with suppress(OSError):  # also where the stream is no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def unheard(errors: type[OSError] = BrokenPipeError) -> Iterator[None]:
    """Let this block go on in silence when its words cannot be passed on: their reader has left, or
    another of these errors.
    """
    streams = sys.stdout, sys.stderr
    with open(
        os.devnull, "w", encoding="utf-8"
    ) as nowhere:  # for a stream that was closed before the program began
        sys.stdout, sys.stderr = (_Unheard(each or nowhere, errors) for each in streams)
        try:
            yield
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = streams


def heard() -> bool:
    """Whether stdout still goes to somebody, as far as is known."""
    return getattr(sys.stdout, "heard", True)
