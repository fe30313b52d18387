"""On every rank: the share of Global Top-k's choice that each method sends, against a plain sort of the same v, ties and all.

Run it under mpirun; it prints a word a rank when all is well, and trains then as many.py does.
"""

from __future__ import annotations

import sys

import numpy as np
from dls.sparsifiers import Setup

from dls import backends, sparsifiers
from dls.comm.base import Comm
from dls.program import config
from dls.tasks import data, models
from reference import nn
from tests.mpi import many

METHODS = ("dense", "global-topk", "layerwise-topk", "dls", "dls --dls-steps optimal", "dls --density 1")
STEPS = 4


def main() -> None:
    comm = Comm()
    for backend in ("numpy", "numba"):
        for number, method in enumerate(METHODS):
            check(comm, backend, method, np.random.default_rng([number, comm.rank]))
    print(f"<checked {comm.rank}>", end="", flush=True)  # one write: ranks speak at the same time


def check(comm: Comm, name: str, method: str, random: np.random.Generator) -> None:
    """All parts in two messages, as with --overlap."""
    settings = config.build(config.parse_command_line(["--density", "0.05", "--method", *method.split()]).flags)
    dataset, backend = data.load("digits"), backends.load(name)
    model = models.build("mlp", dataset.input_shape, dataset.classes, 0, nn, (6, 5))
    gradients = backend.ops.zeros(model.parameters.size)
    sparsifier = sparsifiers.load(settings.method)(Setup(settings, model.layers, model.chain, gradients, backend, comm))
    v = np.zeros(gradients.size, dtype=np.float32)  # what the method sends is taken out of it below
    for step in range(STEPS):
        few = random.integers(-3, 4, gradients.size) * np.repeat([1, 2, 1], [layer.size for layer in model.layers])
        v += few.astype(np.float32)
        gradients[...] = backend.ops.from_host(few.astype(np.float32))
        sparsifier.begin(step)
        half, messages = len(sparsifier.parts) // 2, []
        for parts in (sparsifier.parts[half:], sparsifier.parts[:half]):
            if parts:
                sparsifier.select(parts)
                messages.append(sparsifier.send(parts))
        sparsifier.adjust(step + 1)
        for message in messages:
            message.pending.wait()
        k, share = sparsifier.layer_k(), sparsifier.global_share()
        sent = largest(v, k, sparsifier.offsets, settings.method == "global-topk")
        assert sum(k) == len(sent)
        best = sorted(range(v.size), key=lambda i: (-abs(v[i]), i))[: len(sent)]
        assert share == len(sent & set(best)) / len(best), (name, method, step, share)
        sparsifier.finish()
        v[sorted(sent)] = 0
        residual = sparsifier.state().get("residual", v)
        assert np.array_equal(residual, v), (name, method, step)


def largest(v: np.ndarray, k: np.ndarray, offsets: np.ndarray, whole: bool) -> set[int]:
    """What a method sends: of each layer the k_l largest, or the largest of all, the lower index first among equals."""
    pieces = [(0, v.size, int(sum(k)))] if whole else zip(offsets[:-1], offsets[1:], k, strict=True)
    return {i for begin, end, kl in pieces for i in sorted(range(begin, end), key=lambda i: (-abs(v[i]), i))[:kl]}


main()
many.train_all(sys.argv[1:])
