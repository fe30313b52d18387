"""What a launcher (mpirun, srun, …) tells the processes that it starts, in their environment; each
has variables of its own.

It is known before MPI starts, and where the MPI library itself does not understand this launcher:
then every process is a world of one rank, and what was meant as one run would be many.
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
"""How many processes were started."""
SIZES_ON_NODE = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "PALS_LOCAL_SIZE")
"""How many of them on this machine."""
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
"""Which of them this one is, counted from 0."""
NO_TASKS = 0xFFFF_FFF0
"""From this SLURM_STEP_ID on a step is a batch script or a shell, one process whose variables are
the allocation's.
"""


def rank(environ: Mapping[str, str]) -> int:
    """Which of the launcher's processes this one is; 0 where none says. For what is said before MPI
    knows.
    """
    return next((told for name in RANKS if (told := _number(name, environ)) is not None), 0)


def launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process."""
    return any(_number(name, environ) is not None for name in RANKS)


def speaks(environ: Mapping[str, str]) -> bool:
    """Whether this process says what all of the launcher's would say: the first, or each where none
    may know of the others.
    """
    return rank(environ) == 0 or all(_number(name, environ) is None for name in SIZES)


def several(environ: Mapping[str, str]) -> bool:
    """Whether a launcher has started more processes than this one, as far as it says."""
    return rank(environ) > 0 or any(
        (_number(name, environ) or 0) > 1 for name in (*SIZES, *SIZES_ON_NODE)
    )


def alone(size: int, library: str, environ: Mapping[str, str]) -> str | None:
    """Why a world of `size` ranks is not what the launcher started, and what to do; None where it
    is.

    library: the MPI library's name. Launchers nest, as mpirun in a job of Slurm's: it is enough
    that one says what the world is.
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
    """The number in a variable, where there is one that speaks of tasks."""
    text, step = environ.get(name, ""), environ.get("SLURM_STEP_ID", "")
    of_no_task = name.startswith("SLURM_") and not (step.isdecimal() and int(step) < NO_TASKS)
    return int(text) if text.isdecimal() and not of_no_task else None
