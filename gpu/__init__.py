"""The fast backends: the functions of `reference`, same names, same signatures, same bits. The only home of numba and CuPy."""
