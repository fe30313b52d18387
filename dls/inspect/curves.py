"""Which curves of runs are drawn, and over what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """What stands along an axis: a column's name, the label with its unit, the factor to that unit,
    and whether the axis is logarithmic.
    """

    name: str
    label: str
    factor: float = 1
    log: bool = False


@dataclass(frozen=True)
class CurveFigure:
    """A figure with a curve for each group: a column of `steps`, `evals` or `diagnostics`, over the
    steps or over another column of its table.
    """

    name: str
    title: str
    caption: str
    table: str
    y: Quantity
    x: Quantity = Quantity("step", "training step")


STEP = Quantity("step", "training step")
"""The steps of training."""
ACCURACY = Quantity("accuracy", "test accuracy (%)", factor=100)
"""The accuracy on the test set."""
CURVES = (
    CurveFigure(
        name="loss",
        title="Training loss",
        caption="Means over the ranks and a window of recorded steps.",
        table="steps",
        y=Quantity("loss", "training loss (nats)", log=True),
    ),
    CurveFigure(
        name="accuracy",
        title="Test accuracy",
        caption="At every evaluation.",
        table="evals",
        y=ACCURACY,
    ),
    CurveFigure(
        name="accuracy-bytes",
        title="Test accuracy over bytes",
        caption="At every evaluation, over the bytes that a rank has handed to MPI until then, mean"
        " over the ranks.",
        table="evals",
        y=ACCURACY,
        x=Quantity("sent_bytes", "handed to MPI by a rank (MB)", factor=1e-6, log=True),
    ),
    CurveFigure(
        name="accuracy-seconds",
        title="Test accuracy over time",
        caption="At every evaluation, over the time that all steps until then have taken, mean over"
        " the ranks.",
        table="evals",
        y=ACCURACY,
        x=Quantity("seconds", "training time (s)"),
    ),
    CurveFigure(
        name="set-size",
        title="Set size",
        caption="The largest of the layers' thresholds less the smallest, mean over the ranks: 0 is"
        " one threshold for all layers.",
        table="steps",
        y=Quantity("set_size", "max − min threshold (gradient)", log=True),
    ),
    CurveFigure(
        name="threshold-ratio",
        title="Threshold ratio",
        caption="The largest of the layers' thresholds divided by the smallest, mean over the"
        " ranks; Global Top-k's is 1.",
        table="steps",
        y=Quantity("threshold_ratio", "max / min threshold", log=True),
    ),
    CurveFigure(
        name="global-share",
        title="Share of Global Top-k's choice",
        caption="Of what Global Top-k would have sent, the share that was sent, mean over the ranks"
        " (--diagnose-every).",
        table="diagnostics",
        y=Quantity("global_share", "share of the global choice (%)", factor=100),
    ),
    CurveFigure(
        name="residual",
        title="Residual",
        caption="The L2 norm of the whole residual after a step, mean over the ranks.",
        table="steps",
        y=Quantity("residual", "residual norm (gradient)", log=True),
    ),
)
"""The curves that are drawn."""


@dataclass(frozen=True)
class LayerFigure:
    """A figure with a line, or a row, for each layer: a column of `steps`."""

    name: str
    title: str
    caption: str
    y: Quantity


K = Quantity("k", "k (values)", log=True)
"""How many values are sent of a layer."""
LAYERS = (
    LayerFigure(
        name="layer-threshold",
        title="Threshold of every layer",
        caption="Mean over the ranks, and over the runs where there are several.",
        y=Quantity("threshold", "threshold (gradient)", log=True),
    ),
    LayerFigure(
        name="layer-residual",
        title="Residual of every layer",
        caption="The L2 norm of what each layer keeps after a step, mean over the ranks.",
        y=Quantity("residual_norm", "residual norm (gradient)", log=True),
    ),
    LayerFigure(
        name="layer-k",
        title="k of every layer",
        caption="How many values a rank sends of each layer, mean over the ranks; white: none.",
        y=K,
    ),
)
"""The figures of the layers."""
