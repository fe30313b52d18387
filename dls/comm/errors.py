"""Errors of communication between ranks."""


class MissingMPI(RuntimeError):
    """There is no MPI library on this machine, or it cannot be loaded."""


class ExchangeError(RuntimeError):
    """An exchange that cannot be completed, or in which damaged data arrived."""


class Dropped(ExchangeError):
    """An exchange that was given up because another one between the same ranks failed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: dropped, as another exchange between these ranks has failed")


class RankLost(ExchangeError):
    """A rank died, and the library can go on without it (Open MPI's fault tolerance, ULFM)."""
