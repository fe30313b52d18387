"""What everything means: the plain numpy definition that every backend is tested against."""
