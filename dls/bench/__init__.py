"""`python -m dls.bench`: what selection, adjustment, layers, exchange and whole steps cost here,
everything side by side.

A command measures rows and prints them as one table. To add one, write a function that yields rows
(column to value) and name it in COMMANDS of `dls.bench.__main__`. `step` and `exchange` measure the
ranks that mpirun starts, and rank 0 speaks for all.
"""
