"""Ranks know their place among those that share their machine."""

from __future__ import annotations

from pathlib import Path

from tests.launch import launch


def test_ranks_of_a_machine_are_counted(tmp_path: Path) -> None:
    program = (
        "from dls.comm.world import World; comm = World()\n"
        "places = comm.allgather_objects((comm.rank_on_node, comm.node))\n"
        "if comm.rank == 0: print(places)"
    )
    done = launch([(3, ["-c", program])], tmp_path)
    assert done.out.strip() == "[(0, [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 1, 2])]", done.err


def test_threads_follow_the_cores_of_each_rank(tmp_path: Path) -> None:
    """Rank 0 is bound to four cores of its own, the others share four; --threads N is N whatever
    the cores.
    """
    program = (
        "from dls.comm import cores; from dls.comm.world import World; from dls.program import"
        " config, run\ncomm = World()\ncores.grant = lambda: cores.Grant(frozenset(range(4) if"
        " comm.rank == 0 else range(4, 8)), {})\ncounts = [run.thread_count(comm,"
        " config.Config(threads=threads)) for threads in (0, 3)]\ncounts ="
        " comm.allgather_objects(counts)\nif comm.rank == 0: print(counts)"
    )
    done = launch([(3, ["-c", program])], tmp_path)
    assert done.out.strip() == "[[4, 3], [2, 3], [2, 3]]", done.err
