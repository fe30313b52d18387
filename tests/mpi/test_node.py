"""Ranks know their place among those that share their machine."""

from __future__ import annotations

from pathlib import Path

from tests.launch import launch


def test_ranks_of_a_machine_are_counted(tmp_path: Path) -> None:
    program = (
        "from dls.comm import Comm; comm = Comm()\n"
        "places = comm.allgather_objects((comm.rank_on_node, comm.node))\n"
        "if comm.rank == 0: print(places)"
    )
    done = launch([(3, ["-c", program])], tmp_path)
    assert done.out.strip() == "[(0, [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 1, 2])]", done.err
