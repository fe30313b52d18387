"""What launchers tell their processes, and when MPI sees something else."""

from __future__ import annotations

import pytest

from dls.comm import launcher

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_TASKS": "3",
}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "3"}
SHELL = STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}
HYDRA = {"PMI_SIZE": "3", "PMI_RANK": "1", "MPI_LOCALNRANKS": "3"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}
DAEMONS = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
}
"""Of a step that an mpirun inside an allocation starts: one process a node, which start the ranks.
"""


@pytest.mark.parametrize(
    ("size", "environ"),
    [
        (1, {}),
        (1, BATCH),
        (1, SHELL),
        (3, STEP),
        (3, HYDRA),
        (3, OPEN_MPI),
        (3, BATCH | HYDRA),
        (8, DAEMONS | {"PMI_SIZE": "8", "PMI_RANK": "5"}),
        (1, DAEMONS | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}),
        (1, STEP | {"PMI_SIZE": "1", "PMI_RANK": "0"}),
        (1, {"PMI_SIZE": "", "PMI_RANK": "none"}),
        (1, {"PMIX_RANK": "0"}),
        (4, {"PMI_SIZE": "3", "PMI_RANK": "0"}),
    ],
)
def test_worlds_that_are_what_was_started(size: int, environ: dict[str, str]) -> None:
    assert launcher.alone(size, "MPICH", environ) is None


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (STEP, "SLURM_STEP_NUM_TASKS=3"),
        (HYDRA, "PMI_SIZE=3"),
        (OPEN_MPI, "OMPI_COMM_WORLD_SIZE=3"),
        (BATCH | OPEN_MPI, "OMPI_COMM_WORLD_SIZE=3"),
        ({"MPI_LOCALNRANKS": "2"}, "MPI_LOCALNRANKS=2"),
        ({"PALS_RANKID": "5", "PALS_LOCAL_SIZE": "4"}, "PALS_RANKID=5"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK=1"),
        ({"JSM_NAMESPACE_SIZE": "6", "JSM_NAMESPACE_RANK": "0"}, "JSM_NAMESPACE_SIZE=6"),
    ],
)
def test_worlds_of_one_where_there_should_be_more(environ: dict[str, str], words: str) -> None:
    found = launcher.alone(1, "MPICH 5.0.2", environ)
    assert found is not None
    assert found.startswith(f"{words}: ")
    assert "the 1 that MPICH 5.0.2 sees" in found
    name = words.partition("=")[0]
    unset = "SLURM_STEP_ID" if name.startswith("SLURM") else name
    assert found.endswith(f"unset {unset}")
    assert (
        launcher.alone(
            1, "MPICH 5.0.2", {each: value for each, value in environ.items() if each != unset}
        )
        != found
    )


@pytest.mark.parametrize(
    ("environ", "rank"),
    [({}, 0), (STEP, 2), (BATCH, 0), (SHELL, 0), (HYDRA, 1), (DAEMONS | {"PMI_RANK": "5"}, 5)],
)
def test_the_rank_before_mpi_starts(environ: dict[str, str], rank: int) -> None:
    assert launcher.rank(environ) == rank


@pytest.mark.parametrize(
    ("environ", "speaks"),
    [
        ({}, True),
        (STEP, False),
        (STEP | {"SLURM_PROCID": "0"}, True),
        ({"PALS_RANKID": "5"}, True),
        ({"PMIX_RANK": "1"}, True),
    ],
)
def test_who_says_what_is_refused(environ: dict[str, str], speaks: bool) -> None:
    """Where no size is told the first process cannot know that there are others, and goes on."""
    assert launcher.speaks(environ) is speaks


def test_a_step_of_separate_runs() -> None:
    assert (
        launcher.alone(
            1, "MPICH", {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"}
        )
        is None
    )
