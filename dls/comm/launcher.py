"""What a launcher (mpirun, srun, …) tells the processes that it starts, in environment variables.

These are known before MPI starts, and even if the MPI library does not understand the launcher.
Then every process would be a world of one rank, and one run would become many.
"""

from __future__ import annotations

from collections.abc import Mapping

SIZES = (
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
)
"""Variables with the number of processes."""
SIZES_ON_NODE = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "PALS_LOCAL_SIZE")
"""Variables with the number of processes on this machine."""
RANKS = (
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "PMIX_RANK",
    "MV2_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",
    "PALS_RANKID",
    "ALPS_APP_PE",
    "SLURM_PROCID",
)
"""Variables with the number of this process, from 0."""
NO_TASKS = 0xFFFF_FFF0
"""Slurm's steps from this SLURM_STEP_ID are batch scripts or shells.

Such a step is one process, whose other variables describe the allocation.
"""


def rank(environ: Mapping[str, str]) -> int:
    """The number of this process among the launcher's, before MPI has started; 0 if unknown."""
    return next((told for name in RANKS if (told := _number(name, environ)) is not None), 0)


def launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process."""
    return any(_number(name, environ) is not None for name in RANKS)


def speaks(environ: Mapping[str, str]) -> bool:
    """Whether this process prints what all of the launcher's processes would print.

    That is the first one, or each one where they may not know of each other.
    """
    return rank(environ) == 0 or all(_number(name, environ) is None for name in SIZES)


def several(environ: Mapping[str, str]) -> bool:
    """Whether a launcher has started other processes besides this one, as far as it tells."""
    return rank(environ) > 0 or any(
        (_number(name, environ) or 0) > 1 for name in (*SIZES, *SIZES_ON_NODE)
    )


def alone(size: int, library: str, environ: Mapping[str, str]) -> str | None:
    """A message where the launcher started more processes than the `size` ranks that MPI sees.

    library: the MPI library's name. Launchers may be nested, such as mpirun in a job of Slurm: it
    is enough that one of them tells this size. None where one does.
    """
    told = {name: started for name in SIZES if (started := _number(name, environ)) is not None}
    if size in told.values():
        return None
    told |= {
        name: started for name in SIZES_ON_NODE if (started := _number(name, environ)) is not None
    }
    told |= {name: before + 1 for name in RANKS if (before := _number(name, environ)) is not None}
    name = max(told, key=lambda each: told[each], default="")
    if told.get(name, 0) <= size:
        return None
    unset = "SLURM_STEP_ID" if name.startswith("SLURM_") else name
    return (
        f"{name}={environ[name]}: the launcher started more processes than the {size} that"
        f" {library} sees, and each would be a run of its own; start them with this library's"
        " mpirun, or srun --mpi=pmi2 or pmix (srun --mpi=list shows which there are); where runs"
        f" of their own are meant, unset {unset}"
    )


def _number(name: str, environ: Mapping[str, str]) -> int | None:
    """The number in a variable; None where it is not set, or does not describe processes."""
    text, step = environ.get(name, ""), environ.get("SLURM_STEP_ID", "")
    of_no_task = name.startswith("SLURM_") and not (step.isdecimal() and int(step) < NO_TASKS)
    return int(text) if text.isdecimal() and not of_no_task else None
