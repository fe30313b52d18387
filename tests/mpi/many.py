"""Train several times under one mpirun: each argument is one command line of dls.train."""

import shlex
import sys
from collections.abc import Iterable

from dls.train import main


def train_all(commands: Iterable[str]) -> None:
    for command in commands:
        status = main(shlex.split(command))
        assert status == 0, (status, command)


if __name__ == "__main__":
    train_all(sys.argv[1:])
