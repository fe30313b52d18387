"""The backend for CPU threads, compiled by numba."""

from gpu.numba.adjustment import Adjustment
from gpu.numba.nn import Nn
from gpu.numba.ops import Ops
from gpu.numba.wire import Wire

__all__ = ["Adjustment", "Nn", "Ops", "Wire"]
