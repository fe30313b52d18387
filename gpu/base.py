"""The reference as a backend: its functions as methods of objects, and methods about devices.

The other backends inherit from these classes and override what they speed up. The reference has no
threads and no devices, so the methods about these do nothing here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import adjustment, nn, ops, wire
from reference.ops import Index, Vector


class Ops:
    """`reference.ops`, and the device on which a backend computes."""

    zeros = staticmethod(ops.zeros)
    accumulate = staticmethod(ops.accumulate)
    all_finite = staticmethod(ops.all_finite)
    top_k = staticmethod(ops.top_k)
    select = staticmethod(ops.select)
    select_layers = staticmethod(ops.select_layers)
    top_k_of_rest = staticmethod(ops.top_k_of_rest)
    kth_largest = staticmethod(ops.kth_largest)
    count_at_least = staticmethod(ops.count_at_least)
    scatter_add = staticmethod(ops.scatter_add)
    scatter_subtract = staticmethod(ops.scatter_subtract)
    scale = staticmethod(ops.scale)
    l2_norm = staticmethod(ops.l2_norm)
    sgd_update = staticmethod(ops.sgd_update)

    def l2_norms(self, v: Vector, offsets: Index) -> NDArray[np.float64]:
        """See `reference.ops.l2_norms`; with the backend's own norm."""
        norms = [self.l2_norm(v[start:stop]) for start, stop in pairwise(offsets)]
        return np.array(norms, dtype=np.float64)

    def clip_norm(self, gradient: Vector, limit: float) -> None:
        """See `reference.ops.clip_norm`; with the backend's own norm and scaling."""
        norm = self.l2_norm(gradient)
        if norm > limit:
            self.scale(gradient, limit / norm)

    # The device ---------------------------------------------------------------------------------

    from_host = staticmethod(ops.from_host)
    to_host = staticmethod(ops.to_host)

    def from_dlpack(self, array: Any) -> NDArray[Any]:
        """Another library's array on this backend's device, in the same memory."""
        return np.from_dlpack(array)

    def in_stream(self, stream: int) -> AbstractContextManager[Any]:
        """Meanwhile compute in the order of another library's CUDA stream; numpy has no streams."""
        return nullcontext()

    def set_threads(self, count: int) -> None:
        """Compute with so many threads; numpy has only those of BLAS, which are set elsewhere."""

    def set_device(self, rank_on_node: int) -> None:
        """Compute on this rank's device of its machine; numpy computes on the host."""

    def wait(self) -> None:
        """Return when everything is computed; numpy computes at once."""

    def is_compiled(self) -> bool:
        """Whether the code is compiled already, so that the first steps need no compiler."""
        return True

    def notes(self) -> tuple[str, ...]:
        """What the user should know about the backend on this machine, a line each."""
        return ()

    def describe(self) -> dict[str, str]:
        """The device's name, as "device", and what else measurements depend on; {} for the host."""
        return {}

    def library(self) -> str:
        """The version of the library that computes."""
        return np.__version__


class Adjustment:
    """The functions of `reference.adjustment` that need the values of the layers."""

    fresh_thresholds = staticmethod(adjustment.fresh_thresholds)
    complete_thresholds = staticmethod(adjustment.complete_thresholds)
    one_step_adjustment = staticmethod(adjustment.one_step_adjustment)
    adjust = staticmethod(adjustment.adjust)
    optimal_adjustment = staticmethod(adjustment.optimal_adjustment)


class Wire:
    """The functions of `reference.wire` that a backend may speed up."""

    payload_size = staticmethod(wire.payload_size)
    round_values = staticmethod(wire.round_values)
    encode = staticmethod(wire.encode)
    decode = staticmethod(wire.decode)


class Nn:
    """`reference.nn`: the layers of a network, forward and backward."""

    asarray = staticmethod(nn.asarray)
    he_normal = staticmethod(nn.he_normal)
    linear_forward = staticmethod(nn.linear_forward)
    linear_weight_gradients = staticmethod(nn.linear_weight_gradients)
    linear_input_gradient = staticmethod(nn.linear_input_gradient)
    conv2d_forward = staticmethod(nn.conv2d_forward)
    conv2d_weight_gradients = staticmethod(nn.conv2d_weight_gradients)
    conv2d_input_gradient = staticmethod(nn.conv2d_input_gradient)
    relu_forward = staticmethod(nn.relu_forward)
    relu_backward = staticmethod(nn.relu_backward)
    max_pool2d_forward = staticmethod(nn.max_pool2d_forward)
    max_pool2d_backward = staticmethod(nn.max_pool2d_backward)
    global_avg_pool_forward = staticmethod(nn.global_avg_pool_forward)
    global_avg_pool_backward = staticmethod(nn.global_avg_pool_backward)
    batch_norm_forward = staticmethod(nn.batch_norm_forward)
    batch_norm_inference = staticmethod(nn.batch_norm_inference)
    batch_norm_backward = staticmethod(nn.batch_norm_backward)
    flatten_forward = staticmethod(nn.flatten_forward)
    flatten_backward = staticmethod(nn.flatten_backward)
    add_forward = staticmethod(nn.add_forward)
    add_backward = staticmethod(nn.add_backward)
    shortcut_forward = staticmethod(nn.shortcut_forward)
    shortcut_backward = staticmethod(nn.shortcut_backward)
    softmax_cross_entropy = staticmethod(nn.softmax_cross_entropy)
