"""The backends: the reference's functions as objects, and faster ones with the same bits.

The only home of numba and CuPy.
"""
