"""On every rank: the share of Global Top-k's choice that each method sends, against a plain sort of
the same v, ties and all.

Run it under mpirun; it prints a word a rank when all is well, and trains then as many.py does.
"""

from __future__ import annotations

import sys

import numpy as np

from dls import backends
from dls.comm.base import Comm
from dls.comm.world import World
from dls.exchange import methods
from dls.program import config, flags, run
from dls.tasks import data, models
from reference import nn
from reference.collectives import BY_BUCKET
from tests import cases
from tests.mpi import many

STEPS = 3


def main() -> None:
    comm = World()
    backend_names = ("numpy", "numba")
    listed = [
        (name, *met) for name in methods.names() for met in cases.meetings(name, backend_names)
    ]
    for number, (name, values, backend) in enumerate(listed):
        random = np.random.default_rng([number, comm.rank])
        check(comm, backend, cases.flags(name, values), random)
    print(f"<checked {comm.rank}>", end="", flush=True)  # one write: ranks speak at the same time


def check(comm: Comm, name: str, method: str, random: np.random.Generator) -> None:
    """All layers in two messages, as with --overlap."""
    typed = ["--density", "0.05", "--bucket-size", "95", *method.split()]
    settings = config.build(flags.parse_command_line(typed).flags)
    as_it_is = settings.value_dtype == "float32" and settings.collective not in BY_BUCKET
    dataset, backend = data.load("digits"), backends.load(name)
    model = models.build("mlp", dataset.input_shape, dataset.classes, 0, nn, (6, 5))
    exchanger = run.make_exchanger(settings, model, comm, backend)
    whole, layers = exchanger.method.whole, range(len(model.layers))
    buckets = [list(bucket.layers) for bucket in exchanger.buckets]
    assert buckets == ([[0, 1, 2]] if whole else [[1, 2], [0]])
    v = np.zeros(model.gradients.size, dtype=np.float32)  # what is sent is taken out of it below
    for step in range(STEPS):
        scale = np.repeat([1, 2, 1], [layer.size for layer in model.layers])
        few = (random.integers(-3, 4, v.size) * scale).astype(np.float32)
        v += few
        model.gradients[...] = few
        exchanger.clock.restart(timeline_of=len(layers))
        exchanger.begin(step)
        for layer in reversed(layers):
            exchanger.ready(layer)
        row = exchanger.end(record=True)
        k, share = row.k, row.diagnosis.global_share
        sent = largest(v, k, exchanger.layout.offsets, whole)
        assert sum(k) == len(sent)
        best = sorted(range(v.size), key=lambda i: (-abs(v[i]), i))[: len(sent)]
        assert share == len(sent & set(best)) / len(best), (name, method, step, share)
        v[sorted(sent)] = 0
        residual = exchanger.state().get("residual", v)
        assert not as_it_is or np.array_equal(residual, v), (name, method, step)
        v[...] = residual


def largest(v: np.ndarray, k: np.ndarray, offsets: np.ndarray, whole: bool) -> set[int]:
    """What a method sends: of each layer the k_l largest, or the largest of all, the lower index
    first among equals.
    """
    pieces = [(0, v.size, int(sum(k)))] if whole else zip(offsets[:-1], offsets[1:], k, strict=True)
    return {
        i
        for begin, end, kl in pieces
        for i in sorted(range(begin, end), key=lambda i: (-abs(v[i]), i))[:kl]
    }


main()
many.train_all(sys.argv[1:])
