"""Run the cases of tests/torch on the ranks of one mpirun: all of them, or those that are named."""

from __future__ import annotations

import sys
import traceback

import torch

import tests.torch.going_on
import tests.torch.pitfalls  # noqa: F401
from dls.comm.world import World
from tests.torch.cases import CASES
from tests.torch.hooks import HOOKED


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    comm = World(timeout=60)
    cases = HOOKED | CASES
    for name in names or cases:
        try:
            cases[name](comm)
        except BaseException:
            print(f"rank {comm.rank}, case {name}", file=sys.stderr)
            traceback.print_exc()
            comm.abort(1)
    print("done")


if __name__ == "__main__":
    main(sys.argv[1:])
