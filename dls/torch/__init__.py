"""The exchange for a PyTorch model: `attach`, then `sync.wait()` before each optimizer step."""

from __future__ import annotations

from dls.torch import version  # first: without PyTorch it says what to install
from dls.torch.ddp import comm_hook
from dls.torch.ranks import device
from dls.torch.sync import Sync, attach

version.check()

__all__ = ["Sync", "attach", "comm_hook", "device"]
