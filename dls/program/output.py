"""Output that nobody may read any more (`| head`, a closed terminal).

The result of a program is in its files. So it goes on when its output cannot be written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _Unheard:
    """A text stream that discards all further output once writing has failed with such an error."""

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
        """Ignore the error or raise it, once: it is not raised again when Python ends."""
        self._leave()
        if not isinstance(error, self._errors):
            raise error

    def _leave(self) -> None:
        """Discard what is buffered, and what anything else writes to this descriptor."""
        self.heard = False
        with suppress(OSError):  # also where the stream is no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def unheard(errors: type[OSError] = BrokenPipeError) -> Iterator[None]:
    """Let this block go on without output when writing fails with one of these errors.

    By default that is only when the reader has gone.
    """
    streams = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # for streams closed from the start
        sys.stdout, sys.stderr = (_Unheard(each or nowhere, errors) for each in streams)
        try:
            yield
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = streams


def heard() -> bool:
    """Whether output still reaches a reader, as far as is known."""
    return getattr(sys.stdout, "heard", True)
