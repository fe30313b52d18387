"""Gradient variances of a network's layers as they are, beside what the theory predicts.

The variance is that over a layer's weights (biases and batch norm left out) of one mini-batch's
gradient, averaged over mini-batches. A seed draws the weights and the order of the images; ratios
are geometric means over the seeds, which alone are independent of each other, so standard errors
are over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

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
from dls.theory.forms import predict
from dls.theory.networks import Pair
from dls.theory.rows import RatioRow
from reference import nn, ops


@dataclass(frozen=True)
class Plan:
    """How to measure.

    seeds: how many networks of a name, each with weights of its own. steps: numbers of training
    steps, ascending, after each of which is measured. batches: mini-batches of a measurement, each
    of batch_size images. lr: learning rate of the training, which is plain SGD.
    """

    dataset: Dataset
    seeds: int
    batches: int
    batch_size: int
    steps: tuple[int, ...]
    lr: float


def weight_variances(model: Model) -> NDArray[np.float64]:
    """The variance of `model.gradients` over the weights of each layer that has some, float64."""
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
    """Train one network; its variances (T, W) and loss (T) after each of the T numbers of steps.

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


def measure(name: str, plan: Plan) -> Iterator[RatioRow]:
    """Yield a row for each number of training steps and pair of neighbouring layers."""
    pairs = networks.pairs(name, networks.build(name, plan.dataset, 0))
    seeds = [measure_seed(name, plan, seed) for seed in range(plan.seeds)]
    losses = np.mean([loss for _, loss in seeds], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log2([variances for variances, _ in seeds])
        ratios = np.diff(logarithms, axis=2)  # (seeds, T, W − 1)
    for t, step in enumerate(plan.steps):
        for i, pair in enumerate(pairs):
            yield _row(name, step, pair, float(losses[t]), ratios[:, t, i])


def _row(
    name: str, step: int, pair: Pair, loss: float, log2_ratios: NDArray[np.float64]
) -> RatioRow:
    measured, log2_error = _mean(log2_ratios)
    return RatioRow(
        network=name,
        step=step,
        layer=pair.layer.name,
        previous=pair.previous.name,
        kinds=f"{pair.previous.kind} to {pair.layer.kind}",
        where=list(pair.where),
        loss=loss if math.isfinite(loss) else None,
        measured=measured,
        log2_error=log2_error,
        predicted=predict(pair),
    )


def _mean(log2_ratios: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The geometric mean of the seeds' ratios, and the standard error of its log2."""
    if not np.isfinite(log2_ratios).all():
        return None, None
    count = len(log2_ratios)
    error = float(log2_ratios.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return float(2 ** log2_ratios.mean()), error
