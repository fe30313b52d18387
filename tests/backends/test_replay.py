"""Whole runs on recorded gradients: every backend that is present selects, keeps and adds up the
same bits, step after step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cupy.cuda import nvrtc

from dls import backends
from dls.backends import Backend
from dls.comm import local
from dls.exchange import methods as all_methods
from dls.exchange.exchanger import Exchanger
from dls.exchange.layout import Layer, Layout
from dls.program import config, flags, run
from dls.program.config import Config
from dls.record import checkpoint
from dls.tasks import data, models
from dls.tasks.batches import Batches
from dls.tasks.models import Model
from dls.train import main
from gpu.cupy import device
from reference import methods, nn
from reference.ops import NonFiniteError
from tests import cases

pytestmark = pytest.mark.usefixtures("gpu_or_host")

STEPS = 6
FASTER = [name for name in backends.names() if name != "numpy"]
CASES = [
    (backend, cases.flags(name, values))
    for name in all_methods.names()
    for values, backend in cases.meetings(name, FASTER)
]


@pytest.fixture(scope="module")
def recorded() -> tuple[Model, list[np.ndarray]]:
    """A network's layers and the gradients of its first steps, without updates between."""
    dataset = data.load("digits")
    model = models.build("lenet", dataset.input_shape, dataset.classes, 0, nn)
    batches = Batches(dataset, 0, 8, 0, 1)
    gradients = []
    for step in range(STEPS):
        images, labels = batches.batch(step)
        _, dlogits, _ = nn.softmax_cross_entropy(model.forward(images, training=True), labels)
        model.backward(dlogits, lambda layer: None)
        gradients.append(model.gradients.copy())
    return model, gradients


def exchanger(
    settings: Config,
    layers: Sequence[Layer],
    gradients: Any,
    backend: Backend,
    bucket_size: int = 1,
) -> Exchanger:
    """That of a rank alone; every layer is a bucket, unless told otherwise."""
    return Exchanger(
        Layout(layers),
        all_methods.load(settings.method),
        settings.of_method(),
        local.alone(),
        backend,
        gradients=gradients,
        bucket_size=bucket_size,
    )


def layers_of(model: Model) -> list[Layer]:
    return [
        Layer(layer.name, layer.size, channels=(layer.channels_in, layer.outputs))
        for layer in model.layers
    ]


def replay(backend: Backend, method: str, model: Model, gradients: list[np.ndarray]) -> list[bytes]:
    """What each step selects, sends, adds up and keeps."""
    settings = config.build(flags.parse_command_line(method.split()).flags)
    buffer = backend.ops.zeros(model.parameters.size)
    exchange = exchanger(settings, layers_of(model), buffer, backend)
    layers = range(len(exchange.layout))
    assert len(exchange.buckets) == (1 if exchange.method.whole else len(layers))
    seen = []
    for step, gradient in enumerate(gradients):
        buffer[...] = backend.ops.from_host(gradient)
        exchange.clock.restart(timeline_of=len(layers))
        exchange.begin(step)
        for layer in reversed(layers):
            exchange.ready(layer)
        row = exchange.end(record=True)
        seen += [row.k.tobytes(), row.threshold.tobytes()]
        seen += [np.float64(row.diagnosis.global_share).tobytes()]
        seen += [backend.ops.to_host(exchange.update).tobytes()]
        seen += [state.tobytes() for state in exchange.state().values()]
    return seen


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_replayed_run_has_the_reference_s_bits(
    name: str, method: str, recorded: tuple[Model, list[np.ndarray]]
) -> None:
    expected = replay(backends.load("numpy"), method, *recorded)
    assert replay(backends.load(name), method, *recorded) == expected


@pytest.mark.parametrize("name", backends.names())
def test_a_guess_may_go_beyond_float32(name: str) -> None:
    """The gradient once more, where v is finite: no error, and the reference's k."""
    backend = backends.load(name)
    layers = [Layer(str(layer), 4) for layer in range(2)]
    gradient = np.array([3, 2, 2, 2, 3, 2, 2, 1], dtype=np.float32) * np.float32(1e38)
    settings = config.build({"method": "dls", "density": 0.25, "dls_from": "ahead"})
    buffer = backend.ops.from_host(gradient.copy())
    exchange = exchanger(settings, layers, buffer, backend)
    exchange.begin(0)
    for layer in (1, 0):
        exchange.ready(layer)
    v, k = np.split(gradient, 2), np.array([1, 1])
    method = methods.Dls(1, source="ahead")
    expected = method.next_k(v, k, 1, method.select(v, k), v)
    assert exchange.method.next_k().tolist() == expected.tolist()


def test_training_with_arrays_on_the_device(tmp_path: Path) -> None:
    """The whole program on the CuPy backend.

    On the CPU its layers are numpy's: the weights have the reference's bits.
    """
    for name in ("numpy", "cupy"):
        args = [
            "--model",
            "lenet",
            "--steps",
            "4",
            "--batch-size",
            "4",
            "--threads",
            "1",
            "--clip-norm",
            "1",
        ]
        assert main([*args, "--backend", name, "--out", str(tmp_path / name)]) == 0
    one, two = (checkpoint.latest(tmp_path / name) for name in ("numpy", "cupy"))
    assert one is not None
    assert two is not None
    theirs, mine = (checkpoint.load(found, 0)[0]["weights"] for found in (one, two))
    if isinstance(device.current(), device.Cuda):
        assert np.linalg.norm(mine - theirs) <= 1e-3 * np.linalg.norm(theirs)
    else:
        assert mine.tobytes() == theirs.tobytes()


def test_a_run_takes_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is computed: another device would be left with memory taken."""
    told: list[int | str] = []
    launch = device.current().launch
    monkeypatch.setattr(device.current(), "choose", told.append)
    monkeypatch.setattr(
        device.current(),
        "launch",
        lambda *args, **more: (told.append(args[0]), launch(*args, **more)),
    )
    settings = config.build(flags.parse_command_line(["--backend", "cupy"]).flags)
    comm = local.alone()
    comm.rank_on_node = 5
    run.build(settings, comm, 1)
    assert told[0] == 5
    assert told.count(5) == 1


def test_one_question_finds_a_whole_gradient_finite(
    monkeypatch: pytest.MonkeyPatch, recorded: tuple[Model, list]
) -> None:
    model, gradients = recorded
    backend, settings = (
        backends.load("cupy"),
        config.build(flags.parse_command_line(["--method", "dense"]).flags),
    )
    buffer = backend.ops.from_host(gradients[0].copy())
    exchange = exchanger(settings, layers_of(model), buffer, backend, bucket_size=0)
    (bucket,) = exchange.buckets
    launched: list[str] = []
    launch = device.current().launch
    monkeypatch.setattr(
        device.current(),
        "launch",
        lambda *args, **more: (launched.append(args[0]), launch(*args, **more)),
    )
    next(exchange.method.exchange(bucket, buffer))
    assert len(launched) == 1
    buffer[-1] = np.nan
    with pytest.raises(NonFiniteError, match=model.layers[-1].name):
        next(exchange.method.exchange(bucket, buffer))


def test_cuda_compiles_for_the_cards_of_today_and_keeps_denormals() -> None:
    """NVRTC needs no GPU. CuPy adds the last option to those of every module."""
    for architecture in ("sm_80", "sm_90"):
        program = nvrtc.createProgram(device.SOURCE.read_text(), "kernels.cu", [], [])
        options = [f"--gpu-architecture={architecture}", *device.OPTIONS, "-ftz=true"]
        nvrtc.compileProgram(program, options)
        assert len(nvrtc.getCUBIN(program)) > 1000
        code = nvrtc.getPTX(program)
        instructions = code if isinstance(code, str) else code.decode()
        assert "add.rn.f32" in instructions
        assert ".ftz" not in instructions
