"""Communication between ranks: over MPI, or between workers of one process."""
