"""The backend for a GPU: CuPy's arrays, and kernels of our own."""

from gpu.cupy.adjustment import Adjustment
from gpu.cupy.nn import Nn
from gpu.cupy.ops import Ops
from gpu.cupy.wire import Wire

__all__ = ["Adjustment", "Nn", "Ops", "Wire"]
