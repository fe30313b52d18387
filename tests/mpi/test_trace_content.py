"""What stands in a trace is what happened: bytes, k, thresholds, residuals, and evaluations with
the mean statistics.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dls.program import config, flags
from dls.record import checkpoint, reader
from dls.record.schema import Trace
from dls.tasks import data, models
from dls.tasks.batches import Batches
from reference import adjustment, cluster, methods, nn
from tests.launch import launch, train_all
from tests.mpi.test_bits import loaded

SETTINGS = (
    "--mlp-widths 24,12 --density 0.03 --batch-size 6 --steps 5 --threads 1 --backend numpy"
    " --bucket-size 1"
)
METHODS = {
    "dense": None,
    "global-topk": methods.GlobalTopk(),
    "layerwise-topk": methods.LayerwiseTopk(),
    "dls": methods.Dls(1),
    "dls --dls-every 2": methods.Dls(1, 2),
    "dls --dls-reserve 0": methods.Dls(1, reserve=0),
}
ANNOUNCED = {"dls": [1] * 5, "dls --dls-every 2": [0, 1, 0, 1, 0], "dls --dls-reserve 0": [1] * 5}
"""In which steps the ranks tell their k."""


class Watching:
    """A method whose selections are written down: how many entries of each layer leave first and
    later, and the thresholds.
    """

    def __init__(self, method: methods.Method) -> None:
        self.method = method
        self.seen: list[tuple[list[list[int]], list[float]]] = []

    def select(self, v, k):
        sent = self.method.select(v, k)
        counts = np.array([[len(index) for index, _ in each] for each in sent])
        if isinstance(self.method, methods.GlobalTopk):
            thresholds = [min(abs(x) for _, values in sent[0] for x in values.tolist())] * len(v)
        else:
            thresholds = adjustment.fresh_thresholds(v, counts.sum(axis=0)).tolist()
        self.seen.append((counts.tolist(), thresholds))
        return sent

    def next_k(self, *step):
        return self.method.next_k(*step)


def message_bytes(n: int, k: int) -> int:
    """A checksum, k float32 values, k times the lower bits of an index, and a bit string for the
    upper ones.
    """
    low = (n // k).bit_length() - 1 if k else 0
    return 4 + 4 * k + -(-k * low // 8) + -(-(k + ((n - 1) >> low)) // 8) if k else 0


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_bytes_k_thresholds_and_residuals(ranks: int, tmp_path: Path) -> None:
    runs = {name: tmp_path / str(number) for number, name in enumerate(METHODS)}
    command = [f"--method {name} {SETTINGS} --out {out}" for name, out in runs.items()]
    train_all(ranks, command, tmp_path)
    for name, out in runs.items():
        recorded, method = reader.read(out / "trace.h5"), METHODS[name]
        sizes = np.array(recorded.header.layers["size"])
        entries, layers = round(0.03 * sizes.sum()), len(sizes)
        if method is None:
            assert (recorded.steps["payload_bytes"] == 4 * sizes.sum()).all()
            rings = [
                2 * 4 * int(n) * (ranks - 1) // ranks for n in sizes
            ]  # every layer travels alone
            assert (recorded.steps["received_bytes"] == sum(rings)).all()
            assert (recorded.steps["k"] == sizes).all()
            assert not recorded.steps["threshold"].any()
            assert not recorded.steps["residual_norm"].any()
            continue
        assert (recorded.steps["k"].sum(axis=2) == entries).all()
        seen = check_selections(recorded, method, ranks)
        for step, told in enumerate(ANNOUNCED.get(name, [0] * 5)):
            sections = [seen[step * ranks + rank] for rank in range(ranks)]
            whole = [[(int(sizes.sum()), entries)]] * ranks
            messages = (
                whole if name == "global-topk" else [in_sections(sizes, each) for each in sections]
            )
            expected = [
                sum(message_bytes(int(n), int(k)) for n, k in sent) + 4 * layers * told
                for sent in messages
            ]
            assert recorded.steps["payload_bytes"][step].tolist() == expected
            assert recorded.steps["received_bytes"][step].tolist() == [
                sum(expected) - own for own in expected
            ]
        for rank, state in enumerate(loaded(out, ranks)):
            pieces = np.split(state["residual"].astype(float), np.cumsum(sizes)[:-1])
            np.testing.assert_allclose(
                recorded.steps["residual_norm"][-1, rank],
                [np.linalg.norm(p) for p in pieces],
                rtol=1e-12,
            )


def in_sections(sizes: np.ndarray, counts: list[list[int]]) -> list[tuple[int, int]]:
    """n and k of what travels: every layer by itself, then what the reserve brings, with indices
    into the whole.
    """
    first, *later = counts
    return [*zip(sizes, first, strict=True), *((int(sizes.sum()), sum(each)) for each in later)]


def check_selections(recorded: Trace, method: methods.Method, ranks: int) -> list[list[list[int]]]:
    """Returns how many entries of each layer left first and later, step by step and rank by
    rank.
    """
    c = config.build(flags.parse_command_line(SETTINGS.split()).flags)
    dataset = data.load("digits")
    replicas = [
        models.build("mlp", dataset.input_shape, dataset.classes, 0, nn, c.mlp_widths)
        for _ in range(ranks)
    ]
    sizes = [layer.size for layer in replicas[0].layers]
    watching = Watching(method)
    workers = cluster.Cluster(
        replicas, watching, methods.split_budget(round(0.03 * sum(sizes)), sizes), mu=c.momentum
    )
    batches = [Batches(dataset, 0, c.batch_size, rank, ranks) for rank in range(ranks)]
    for step in range(5):
        losses = workers.step([own.batch(step) for own in batches], c.lr)
        assert recorded.steps["loss"][step].tolist() == losses
        for rank in range(ranks):
            k, thresholds = watching.seen[step * ranks + rank]
            assert recorded.steps["k"][step, rank].tolist() == np.sum(k, axis=0).tolist()
            assert recorded.steps["threshold"][step, rank].tolist() == thresholds
    return [counts for counts, _ in watching.seen]


def test_an_evaluation_uses_the_mean_statistics(tmp_path: Path) -> None:
    args = (
        "--model resnet20 --dataset synthetic --synthetic-size 64 --batch-size 4 --steps 3"
        " --threads 1 --backend numpy"
    )
    done = launch([(2, ["-m", "dls.train", *args.split(), "--out", "run"])], tmp_path)
    assert done.status == 0, done.err
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    shared, _ = checkpoint.load(found, 0)
    dataset = data.load("synthetic", synthetic_size=64)
    model = models.build("resnet20", dataset.input_shape, dataset.classes, 0, nn)
    model.parameters[...], model.statistics[...] = shared["weights"], shared["mean_statistics"]
    logits = model.forward(dataset.normalise(dataset.test_images), training=False)
    loss, _, correct = nn.softmax_cross_entropy(logits, dataset.test_labels)
    evals = reader.read(tmp_path / "run" / "trace.h5").evals
    assert evals["loss"][-1] == pytest.approx(loss, rel=1e-5)
    assert evals["accuracy"][-1] == correct / len(dataset.test_labels)


def test_the_thread_count_reaches_blas(tmp_path: Path) -> None:
    program = tmp_path / "threads.py"
    program.write_text(
        "import sys\nfrom threadpoolctl import threadpool_info\nfrom dls.program import"
        " config, flags,"
        " startup\nfrom dls.comm.world import World\ncommand ="
        " flags.parse_command_line(['--threads', '1', '--steps', '1', '--out',"
        " 'run'])\nstartup.prepare(command, World())\nsys.exit(max(pool['num_threads'] for pool in"
        " threadpool_info() if pool['user_api'] == 'blas'))\n"
    )
    assert launch([(1, [program])], tmp_path, threads="2").status == 1
