"""What ranks say to each other: over MPI, or between workers of one process."""
