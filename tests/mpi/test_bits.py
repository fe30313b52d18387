"""Ranks under MPI give the bits of the reference cluster, which knows no MPI."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dls import optim
from dls.exchange import methods as all_methods
from dls.exchange.layout import Layer, Layout
from dls.exchange.settings import build
from dls.program import config, flags
from dls.record import checkpoint
from dls.tasks import data, models
from dls.tasks.batches import Batches
from reference import cluster, methods, nn, variance
from reference.collectives import BY_BUCKET
from tests import cases
from tests.launch import train_all

STEPS = 8
SETTINGS = {
    "mlp": "--lr 0.1 --weight-decay 0.001 --batch-size 8",
    "warm": "--mlp-widths 33,17 --nesterov --lr-warmup 5 --lr-schedule cosine --batch-size 8",
    "clip": "--mlp-widths 20 --clip-norm 0.5 --batch-size 5 --momentum 0",
    "alone": "--mlp-widths 30,20 --batch-size 8 --bucket-size 1",
    "some": "--batch-size 8 --bucket-size 4000",
}
RANKS = (1, 2, 3, 4)
RESIDUAL = (
    "--model resnet20 --density 0.01 --batch-size 2"
    " --dataset synthetic --synthetic-shape 1,8,8 --synthetic-size 64"
)
"""Batch normalisation and shortcuts, on few images: the evaluation takes most of the time."""


def loaded(out: Path, ranks: int) -> list[dict[str, np.ndarray]]:
    found = checkpoint.latest(out)
    assert found is not None
    parts = [checkpoint.load(found, rank) for rank in range(ranks)]
    return [dict(shared) | own for shared, own in parts]


def weights_hash(state: dict[str, np.ndarray]) -> bytes:
    return hashlib.sha256(state["weights"].tobytes() + state["momentum"].tobytes()).digest()


def reference_run(
    settings: str,
    method: methods.Method,
    ranks: int,
    steps: int = STEPS,
    skipped: Collection[int] = (),
) -> cluster.Cluster:
    """`skipped`: the numbers, from 1, of steps that are left out."""
    c = config.build(flags.parse_command_line(shlex.split(settings)).flags)
    noise = {"synthetic_shape": c.synthetic_shape, "synthetic_size": c.synthetic_size}
    dataset = data.load(c.dataset, seed=c.seed, **noise)
    replicas = [
        models.build(c.model, dataset.input_shape, dataset.classes, c.seed, nn, c.mlp_widths)
        for _ in range(ranks)
    ]
    sizes = [layer.size for layer in replicas[0].layers]
    budgets = [
        methods.budget(sum(sizes), methods.warmup_density(c.density, step, c.density_warmup))
        for step in range(steps)
    ]
    k = methods.split_budget(budgets[0], sizes)
    if c.dls_init == "variance" and isinstance(method, methods.Dls):
        layers = replicas[0].layers
        ratios = [
            variance.corrected_ratio(layer.channels_in, layer.outputs) for layer in layers[1:]
        ]
        k = variance.sparsity_from_variances(sizes, list(variance.chain_sigmas(ratios)), budgets[0])
    workers = cluster.Cluster(
        replicas,
        method,
        k,
        mu=c.momentum,
        weight_decay=c.weight_decay,
        nesterov=c.nesterov,
        clip_norm=c.clip_norm,
        value_dtype=c.value_dtype,
        collective=c.collective,
        buckets=buckets(c, sizes),
    )
    batches = [Batches(dataset, c.seed, c.batch_size, rank, ranks) for rank in range(ranks)]
    for step in range(steps):
        if step + 1 in skipped:
            workers.step_count += 1
            continue
        workers.step(
            [own.batch(step) for own in batches], optim.learning_rate(c, step, steps), budgets[step]
        )
    return workers


def buckets(c: config.Config, sizes: Sequence[int]) -> list[range]:
    """The layers that travel together: without overlap all, where the cut means nothing."""
    cut = c.bucket_size if c.overlap or c.collective in BY_BUCKET else 0
    layout = Layout([Layer(str(number), size) for number, size in enumerate(sizes)])
    return [each.layers for each in layout.buckets(cut, all_methods.load(c.method).whole)]


def chosen(ranks: int) -> Iterator[tuple[str, methods.Method]]:
    """Command lines for so many ranks, and what their methods mean.

    Any two values of a method's settings, of SETTINGS, of RANKS and of overlap meet.
    """
    for name in all_methods.names():
        method = all_methods.load(name)
        overlap = ("--overlap", "--no-overlap")
        for values, setting, of_ranks, flag in cases.meetings(name, [*SETTINGS], RANKS, overlap):
            meaning = method.meaning(build(method.Settings, dict(values)))
            if of_ranks == ranks and meaning is not None:
                yield f"{SETTINGS[setting]} {flag} {cases.flags(name, values)}", meaning


@pytest.mark.parametrize("ranks", RANKS)
def test_weights_residuals_and_k_are_those_of_the_reference(ranks: int, tmp_path: Path) -> None:
    runs = {f"{tmp_path}/{i}": run for i, run in enumerate(chosen(ranks))}
    common = f"--steps {STEPS} --threads 1 --backend numpy"
    train_all(ranks, [f"{line} {common} --out {out}" for out, (line, _) in runs.items()], tmp_path)
    for out, (line, meaning) in runs.items():
        expected = reference_run(line, meaning, ranks)
        for rank, state in enumerate(loaded(Path(out), ranks)):
            where = f"{line} rank {rank}"
            assert state["weights"].tobytes() == expected.models[0].parameters.tobytes(), where
            assert state["momentum"].tobytes() == expected.momentum.tobytes(), where
            assert state["weights_sha256"].tobytes() == weights_hash(state), where
            assert state["residual"].tobytes() == expected.residuals[rank].tobytes(), where
            assert state["k"].sum() == expected.k[rank].sum(), where
            if state["k"].size == expected.k[rank].size:
                assert state["k"].tolist() == expected.k[rank].tolist(), where


@pytest.mark.parametrize("ranks", [2, 3])
def test_batch_norm_and_shortcuts_too(ranks: int, tmp_path: Path) -> None:
    own = "--method dls --steps 2 --threads 1 --backend numpy --out run"
    train_all(ranks, [f"{RESIDUAL} {own}"], tmp_path)
    expected = reference_run(RESIDUAL, methods.Dls(1), ranks, steps=2)
    for rank, state in enumerate(loaded(tmp_path / "run", ranks)):
        assert state["weights"].tobytes() == expected.models[0].parameters.tobytes()
        assert state["residual"].tobytes() == expected.residuals[rank].tobytes()
        assert state["statistics"].tobytes() == expected.models[rank].statistics.tobytes()
    mean = np.zeros_like(expected.models[0].statistics)
    for model in expected.models:
        mean += model.statistics
    mean *= np.float32(1 / ranks)
    assert state["mean_statistics"].tobytes() == mean.tobytes()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_dense_is_the_mean_gradient_within_rounding(ranks: int, tmp_path: Path) -> None:
    """Density 1 uploads everything, so the reference cluster at density 1 is dense SGD."""
    runs = {overlap: tmp_path / overlap for overlap in ("overlap", "no-overlap")}
    command = [
        f"--method dense --batch-size 8 --steps {STEPS} --{overlap} --threads 1 --backend numpy"
        f" --out {out}"
        for overlap, out in runs.items()
    ]
    train_all(ranks, command, tmp_path)
    expected = reference_run("--density 1 --batch-size 8", methods.LayerwiseTopk(), ranks)
    assert not any(residual.any() for residual in expected.residuals)
    for out in runs.values():
        for state in loaded(out, ranks):
            assert state["weights_sha256"].tobytes() == weights_hash(state)
            np.testing.assert_allclose(
                state["weights"], expected.models[0].parameters, rtol=2e-4, atol=2e-5
            )
