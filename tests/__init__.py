"""The tests run with one BLAS thread, set before numpy loads: bits depend on the thread count."""

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
