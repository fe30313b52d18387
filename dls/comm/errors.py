"""What goes wrong between ranks."""


class MissingMPI(RuntimeError):
    """There is no MPI library on this machine, or none that can be loaded."""


class ExchangeError(RuntimeError):
    """An exchange that cannot come to its end, or brought something damaged."""


class RankLost(ExchangeError):
    """A rank has died, and the library can go on without it (Open MPI's fault tolerance, ULFM)."""
