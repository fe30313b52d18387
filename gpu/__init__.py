"""The backends: the reference's functions as objects, and faster ones with the same bits.

The only package that imports numba and CuPy.
"""
