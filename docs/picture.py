"""Draws the picture of README.md: the threshold of each layer over the steps, a panel for each run.

python docs/picture.py RUN... FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dls.inspect.reading import load
from dls.inspect.run import Run
from dls.record.schema import TraceError
from dls.tools.drawing import COLOURS

WINDOW = 10
"""Steps over which a threshold is averaged."""
TITLES = {
    "layerwise-topk": "Layer-wise Top-k: a threshold for each layer",
    "dls": "DLS: one threshold for all layers",
}
"""The titles of the panels, by method."""


def main(*arguments: str) -> None:
    """Draw the runs into the file, which comes last."""
    if len(arguments) < 2:
        sys.exit("docs/picture.py: give the folders of runs, then the picture's file")
    *runs, file = map(Path, arguments)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    try:
        for axes, run in zip(panels, map(load, runs), strict=True):
            draw(axes, run)
    except TraceError as error:
        sys.exit(f"docs/picture.py: {error}")
    panels[0].set_ylabel("smallest gradient value sent")
    panels[-1].legend(loc="upper right", ncols=2, fontsize=9)
    figure.savefig(file, dpi=120)


def draw(axes: Any, run: Run) -> None:
    """Draw a line for each layer: its threshold, the mean over the ranks.

    Over WINDOW steps the geometric mean is drawn.
    """
    method, steps = run.about.method, run.steps["step"]
    window = min(WINDOW, len(steps))
    axes.set(title=TITLES.get(method, method), xlabel="training step", yscale="log")
    for layer, name in enumerate(run.layers["name"]):
        threshold = np.log(run.steps["threshold"][:, layer])
        means = np.convolve(threshold, np.ones(window) / window, mode="valid")
        axes.plot(
            steps[window - 1 :], np.exp(means), color=COLOURS[layer % len(COLOURS)], label=name
        )
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main(*sys.argv[1:])
