"""What the pictures of all tools share: colours and markers that the colour-blind, and a grey print, tell apart."""

from __future__ import annotations

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's."""
MARKERS = "os^Dv<>"
MISSING = "needs matplotlib: pip install 'dls[plot]'"
