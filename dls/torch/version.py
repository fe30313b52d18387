"""Whether PyTorch is there, and new enough."""

from __future__ import annotations

OLDEST = (2, 4)
"""Of PyTorch: `torch.amp.GradScaler` and post-accumulate hooks as this package uses them."""

try:
    import torch
except ImportError:
    raise ImportError("dls.torch needs PyTorch: pip install 'dls[torch]'") from None


def check() -> None:
    """ImportError where PyTorch is older than this package needs."""
    found = str(torch.__version__)
    if tuple(int(number) for number in found.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(f"dls.torch needs PyTorch {oldest} or newer, and this is {found}")
