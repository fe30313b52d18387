"""Gradient variances of a network's layers as they are, beside Eq. 8, Eq. 9 and the corrected form.

The variance is that over a layer's weights (biases and batch norm left out) of one mini-batch's
gradient, averaged over mini-batches. A seed draws the weights and the order of the images; ratios
are geometric means over the seeds, which alone are independent of each other, so standard errors
are over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls import backends
from dls.optim import Sgd
from dls.program.config import Config
from dls.tasks.batches import Batches
from dls.tasks.data import Dataset
from dls.tasks.images import ImagesF32, Labels
from dls.tasks.models import Model
from dls.theory import networks
from dls.theory.networks import Pair
from reference import nn, ops, variance

Row = dict[str, Any]

FORMS: Mapping[str, Callable[[Pair], float]] = {
    "Eq. 8": lambda pair: variance.eq8_ratio(
        pair.layer.inputs, pair.layer.outputs, pair.layer.kernel, pair.previous.kernel
    ),
    "Eq. 9": lambda pair: variance.eq9_ratio(pair.layer.inputs, pair.layer.outputs),
    "corrected": lambda pair: variance.corrected_ratio(pair.layer.channels_in, pair.layer.outputs),
    "all equal": lambda pair: 1.0,
}
"""What is predicted of a pair: both forms of the paper on every pair (a linear layer has a 1×1
kernel, and its inputs are those after a flatten), the corrected form, and, to compare with, no
theory at all."""
INNER = "inner"
"""The pairs of which nothing is to say: neither first nor last, no other kernel, stride, pooling or
batch norm.
"""


@dataclass(frozen=True)
class Plan:
    """How to measure: `seeds` networks, after each of the numbers of training `steps`, on `batches`
    mini-batches of `batch_size`.

    Training is plain SGD with rate `lr`; `steps` ascend.
    """

    dataset: Dataset
    seeds: int
    batches: int
    batch_size: int
    steps: tuple[int, ...]
    lr: float


# Measuring ----------------------------------------------------------------------------------------


def weight_variances(model: Model) -> NDArray[np.float64]:
    """The variance of `model.gradients` over the weights of each layer that has some, float64
    (W).
    """
    result = []
    for start, layer in zip(model.offsets, model.layers, strict=False):
        if layer.kind != "batch_norm":
            weights = layer.outputs * layer.inputs * layer.kernel**2  # they come before the bias
            result.append(np.var(model.gradients[start : start + weights], dtype=np.float64))
    return np.array(result)


def differentiate(model: Model, images: ImagesF32, labels: Labels) -> float:
    """Fill `model.gradients` from one mini-batch; return its mean loss in nats."""
    loss, dlogits, _ = nn.softmax_cross_entropy(model.forward(images, training=True), labels)
    model.backward(dlogits, lambda layer: None)
    return loss


def mean_variances(
    model: Model, batches: Iterable[tuple[ImagesF32, Labels]]
) -> tuple[NDArray[np.float64], float]:
    """`weight_variances`, float64 (W), and the loss, both the mean over mini-batches."""
    variances, losses = [], []
    for images, labels in batches:
        losses.append(differentiate(model, images, labels))
        variances.append(weight_variances(model))
    return np.mean(variances, axis=0), float(np.mean(losses))


def measure_seed(
    name: str, plan: Plan, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One network, trained by plain SGD: variances (T, W) after each of the T numbers of steps, and
    the loss there (T).

    It is measured on the mini-batches that would come next. Where training diverged both are NaN or
    infinite.
    """
    model = networks.build(name, plan.dataset, seed)
    optimizer = Sgd(
        model.parameters,
        ops.zeros(model.parameters.size),
        Config(momentum=0.0),
        backends.load("numpy").ops,
    )
    batches = Batches(plan.dataset, seed, plan.batch_size, 0, 1)

    def batch(step: int) -> tuple[ImagesF32, Labels]:
        images, labels = batches.batch(step)
        return networks.prepare(name, plan.dataset, images), labels

    measured = []
    with np.errstate(over="ignore", invalid="ignore"):
        for done, step in pairwise((0, *plan.steps)):
            for number in range(done, step):
                differentiate(model, *batch(number))
                optimizer.apply(slice(None), model.gradients, plan.lr)
            measured.append(mean_variances(model, (batch(step + i) for i in range(plan.batches))))
    variances, losses = zip(*measured, strict=True)
    return np.array(variances), np.array(losses)


def measure(name: str, plan: Plan) -> Iterator[Row]:
    """Yield a row per number of training steps and pair of neighbouring layers.

    `measured` is the geometric mean over the seeds of Var(∂f/∂W^l) / Var(∂f/∂W^{l−1}), `log2 error`
    the standard error of its log2 over the seeds (None of one seed), `loss` the mean in nats, then
    each of FORMS. `measured` is None where a layer has no gradient or its training diverged, and
    `loss` in the latter case.
    """
    pairs = networks.pairs(name, networks.build(name, plan.dataset, 0))
    seeds = [measure_seed(name, plan, seed) for seed in range(plan.seeds)]
    losses = np.mean([loss for _, loss in seeds], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.diff(
            np.log2([variances for variances, _ in seeds]), axis=2
        )  # (seeds, T, W − 1)
    for t, step in enumerate(plan.steps):
        loss = float(losses[t]) if math.isfinite(losses[t]) else None
        for i, pair in enumerate(pairs):
            yield _about(name, step, pair) | {"loss": loss} | _mean(ratios[:, t, i]) | predict(pair)


def _about(name: str, step: int, pair: Pair) -> Row:
    return {
        "table": "ratio",
        "network": name,
        "step": step,
        "layer": pair.layer.name,
        "previous": pair.previous.name,
        "kinds": f"{pair.previous.kind} to {pair.layer.kind}",
        "where": list(pair.where),
    }


def _mean(log2_ratios: NDArray[np.float64]) -> Row:
    if not np.isfinite(log2_ratios).all():
        return {"measured": None, "log2 error": None}
    count = len(log2_ratios)
    error = float(log2_ratios.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return {"measured": float(2 ** log2_ratios.mean()), "log2 error": error}


# Predicting ---------------------------------------------------------------------------------------


def predict(pair: Pair) -> dict[str, float]:
    """The pair's ratio by each of FORMS."""
    return {name: form(pair) for name, form in FORMS.items()}


def error(measured: float, predicted: float) -> float:
    """|log2(measured / predicted)|: by how many doublings a prediction is off; 0 is exact, 1 a
    factor of 2 either way.
    """
    return abs(math.log2(measured / predicted))


def errors(ratios: Sequence[Row]) -> Row:
    """Of rows of `measure`: how many `pairs`, the mean of their `log2 error` (`noise`), and what
    each form makes of them.

    FORM is its mean `error` in doublings; `FORM, factor` the geometric mean of measured /
    predicted, that is what it misses in the same direction everywhere; `FORM, worst` the pair with
    the largest error, and `FORM, worst by` that error.
    """
    known = [row for row in ratios if row["measured"] is not None]
    spread = [row["log2 error"] for row in known if row["log2 error"] is not None]
    result: Row = {"pairs": len(known), "noise": float(np.mean(spread)) if spread else None}
    for form in FORMS if known else ():
        off = [error(row["measured"], row[form]) for row in known]
        worst = known[int(np.argmax(off))]
        factor = float(2 ** np.mean([math.log2(row["measured"] / row[form]) for row in known]))
        result |= {form: float(np.mean(off)), f"{form}, factor": factor}
        result |= {
            f"{form}, worst": f"{worst['network']} {worst['layer']}",
            f"{form}, worst by": max(off),
        }
    return result


def summarise(ratios: Sequence[Row]) -> Iterator[Row]:
    """Yield the `errors` after each number of steps: of all pairs, of each network, of each kind of
    pair, and of each place.

    Eq. 8 speaks of conv2d to conv2d, Eq. 9 of linear to linear, neither of conv2d to linear. A pair
    counts in each place that it has; with batch norm in front of it `other kernel` and the like are
    places of their own.
    """
    for step in dict.fromkeys(row["step"] for row in ratios):
        rows = [row for row in ratios if row["step"] == step]
        head = {"table": "error", "step": step}
        yield head | {"of": "all", "name": "all pairs"} | errors(rows)
        for network in dict.fromkeys(row["network"] for row in rows):
            yield (
                head
                | {"of": "network", "name": network}
                | errors([row for row in rows if row["network"] == network])
            )
        for kinds in dict.fromkeys(row["kinds"] for row in rows):
            yield (
                head
                | {"of": "kinds", "name": kinds}
                | errors([row for row in rows if row["kinds"] == kinds])
            )
        for place, there in _places(rows).items():
            yield head | {"of": "place", "name": place} | errors(there)


def _places(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each place, inner pairs first."""
    places: dict[str, list[Row]] = {INNER: []}
    for row in rows:
        normed = "batch norm" in row["where"]
        for place in row["where"] or [INNER]:
            name = place if not normed or place == "batch norm" else f"{place}, batch norm"
            places.setdefault(name, []).append(row)
    return {name: there for name, there in places.items() if there}
