"""How long an exchange would take on a network: collectives with a clock, for any P."""
