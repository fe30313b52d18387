"""Whether torch.compile is at work: then all gradients come at the end of a backward pass."""

from __future__ import annotations

import gc
import sys
import warnings

from dls.torch.parameters import Tensor

WORDS = (
    "the whole model is compiled (torch.compile), which gives all gradients at the end of the"
    " backward pass: training is right, but no message travels meanwhile. To let them, compile the"
    " blocks one by one, block.compile(), rather than the whole model"
)
"""What is said once of a compiled model."""


class Watch:
    """Says once what torch.compile means for the exchange."""

    def __init__(self, model: Tensor) -> None:
        self._model, self._looked = model, False

    def look(self, rank: int) -> None:
        """Look after the first step, when the model has run; rank 0 speaks."""
        if self._looked:
            return
        self._looked = True
        if rank == 0 and is_compiled(self._model):
            warnings.warn(WORDS, stacklevel=3)


def is_compiled(model: Tensor) -> bool:
    """Whether the model as a whole is compiled, in place or by a wrapper around it."""
    if getattr(model, "_compiled_call_impl", None) is not None:
        return True
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    wrapper = getattr(compiler, "OptimizedModule", None)
    if wrapper is None:
        return False
    if isinstance(model, wrapper):
        return True
    wrappers = (each for each in gc.get_objects() if type(each) is wrapper)
    return any(each._orig_mod is model for each in wrappers)
