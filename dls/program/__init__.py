"""What makes training a program: settings, start-up, signals, progress, failures, provenance."""
