"""What goes wrong between ranks."""


class MissingMPI(RuntimeError):
    """There is no MPI library on this machine, or none that can be loaded."""


class ExchangeError(RuntimeError):
    """An exchange that cannot come to its end, or brought something damaged."""


class Dropped(ExchangeError):
    """What was under way between these ranks is dropped, as another exchange of theirs failed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: dropped, as another exchange between these ranks has failed")


class RankLost(ExchangeError):
    """A rank has died, and the library can go on without it (Open MPI's fault tolerance, ULFM)."""
