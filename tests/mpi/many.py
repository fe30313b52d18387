"""Train several times under one mpirun: each argument is one command line of dls.train."""

import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from unittest import mock

from dls.program import sources
from dls.train import main


@contextmanager
def code_is_read_once() -> Iterator[None]:
    """A run hashes the program's code and asks git for it; for all in this block it is the same."""
    with ExitStack() as stack:
        for name in ("version", "commit", "state_of_run"):
            once = cache(getattr(sources, name))
            stack.enter_context(mock.patch.object(sources, name, once))
        yield


def train_all(commands: Iterable[str]) -> None:
    with code_is_read_once():
        for command in commands:
            status = main(shlex.split(command))
            assert status == 0, (status, command)


if __name__ == "__main__":
    train_all(sys.argv[1:])
