"""What an exchange would cost on a network: collectives under a clock, for any number of ranks."""
