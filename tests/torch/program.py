"""Run the cases of tests/torch on the ranks of one mpirun: those that are named, or all but the
one whose compiler takes long on each rank.
"""

from __future__ import annotations

import sys
import traceback

import torch

import tests.torch.going_on
import tests.torch.traces  # noqa: F401
from dls.comm.world import World
from tests.torch.cases import CASES
from tests.torch.hooks import HOOKED
from tests.torch.pitfalls import a_compiled_model_works_and_it_is_said_once


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    comm = World(timeout=60)
    cases = HOOKED | CASES
    every = [name for name in cases if name != a_compiled_model_works_and_it_is_said_once.__name__]
    for name in names or every:
        try:
            cases[name](comm)
        except BaseException:
            print(f"rank {comm.rank}, case {name}", file=sys.stderr)
            traceback.print_exc()
            comm.abort(1)
    print("done")


if __name__ == "__main__":
    main(sys.argv[1:])
