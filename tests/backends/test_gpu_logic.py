"""The CuPy backend gives the reference's bits: on the GPU where there is one, else its kernels'
very source, run on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu import cupy
from gpu.cupy import device, selection
from reference import adjustment, ops, wire
from tests import gpu_on_host

pytestmark = pytest.mark.usefixtures("gpu_or_host")

NASTY = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 1.0000001, 3.4e38, -3.4e38, 0.5, -0.5],
    dtype=np.float32,
)


put, got = device.from_host, device.to_host
cupy_ops, cupy_adjustment, cupy_wire = cupy.Ops(), cupy.Adjustment(), cupy.Wire()


def vectors(rng: np.random.Generator, sizes: list[int], nasty: bool) -> list[np.ndarray]:
    if nasty:
        return [rng.choice(NASTY, n) for n in sizes]
    return [(rng.standard_t(3, n) * rng.lognormal()).astype(np.float32) for n in sizes]


def assert_same(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        assert got(a).tobytes() == b.tobytes()


def test_ranks_take_turns_at_the_gpus_of_a_machine() -> None:
    used: list[int] = []
    three = SimpleNamespace(getDeviceCount=lambda: 3)
    card, gpu = (
        lambda number: SimpleNamespace(use=lambda: used.append(number)),
        object.__new__(device.Cuda),
    )
    gpu.xp = SimpleNamespace(cuda=SimpleNamespace(Device=card, runtime=three))  # type: ignore[assignment]
    for rank_on_node in range(5):
        gpu.choose(rank_on_node)
    assert used == [0, 1, 2, 0, 1]


layer_sizes = st.lists(st.integers(1, 300), min_size=1, max_size=7)


@settings(max_examples=150, deadline=None)
@given(layer_sizes, st.integers(0, 2**32), st.booleans(), st.data())
def test_selections_thresholds_and_residuals_have_the_reference_s_bits(
    sizes, seed, nasty, data
) -> None:
    rng = np.random.default_rng(seed)
    k = np.array([data.draw(st.integers(0, n)) for n in sizes])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    mine, theirs = cupy_ops.zeros(offsets[-1]), ops.zeros(offsets[-1])
    hints = np.array(
        [data.draw(st.sampled_from([0.0, 1e-3, 1.0, np.inf, np.nan, 1e300])) for _ in sizes]
    )
    for _ in range(3):
        g = np.concatenate(vectors(rng, sizes, nasty)) / np.float32(4)
        one = cupy_ops.select_layers(mine, put(g), offsets, k, hints)
        two = ops.select_layers(theirs, g, offsets, k, hints)
        assert_same(one[:3], two[:3])
        assert got(mine).tobytes() == theirs.tobytes()
        cupy_ops.scatter_subtract(mine, *one[:2])
        ops.scatter_subtract(theirs, *two[:2])
        hints = two[2]


@pytest.mark.parametrize("threads", [1, 5, 256])
def test_many_equal_values_and_many_layers(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More equals than there is room for candidates, and layers of several chunks, in blocks of so
    many threads.
    """
    monkeypatch.setattr(gpu_on_host, "THREADS", threads)
    monkeypatch.setattr(selection, "SLACK", 3)
    monkeypatch.setattr(device, "CHUNK", 64)
    device.cut_once.cache_clear()
    rng = np.random.default_rng(1)
    sizes = [5000, 1, 777]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    g = np.concatenate(
        [rng.choice(np.array([1, -1, 2], dtype=np.float32), n, p=[0.4, 0.4, 0.2]) for n in sizes]
    )
    k, hints, crowded = np.array([1200, 1, 30]), np.zeros(3), selection.Candidates.take_equals
    layers: list[int] = []
    monkeypatch.setattr(
        selection.Candidates, "take_equals", lambda *args: (layers.append(args[1]), crowded(*args))
    )
    one = cupy_ops.select_layers(cupy_ops.zeros(g.size), put(g), offsets, k, hints)
    device.cut_once.cache_clear()
    assert layers == [0, 2]
    assert_same(one[:3], ops.select_layers(np.zeros_like(g), g, offsets, k, hints)[:3])


@settings(max_examples=150, deadline=None)
@given(layer_sizes, st.integers(0, 2**32), st.booleans(), st.data())
def test_adjustment_is_the_reference_s(sizes, seed, nasty, data) -> None:
    v = vectors(np.random.default_rng(seed), sizes, nasty)
    k = np.array([data.draw(st.integers(0, n)) for n in sizes])
    t, on_device = adjustment.fresh_thresholds(v, k), [put(layer) for layer in v]
    assert cupy_adjustment.fresh_thresholds(on_device, k).tobytes() == t.tobytes()
    for _ in range(3):
        mine, theirs = (
            cupy_adjustment.one_step_adjustment(on_device, k, t),
            adjustment.one_step_adjustment(v, k, t),
        )
        assert mine[0].tolist() == theirs[0].tolist()
        assert mine[1].tobytes() == theirs[1].tobytes()
        k, t = theirs
    assert (
        cupy_adjustment.optimal_adjustment(on_device, k).tolist()
        == adjustment.optimal_adjustment(v, k).tolist()
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32), st.booleans(), st.floats(allow_nan=True))
def test_single_layers_too(n: int, seed: int, nasty: bool, t: float) -> None:
    (v,) = vectors(np.random.default_rng(seed), [n], nasty)
    on_device = put(v)
    assert cupy_ops.count_at_least(on_device, t) == ops.count_at_least(v, t)
    for k in (0, 1, n // 2, n, n + 1):
        assert cupy_ops.kth_largest(on_device, k) == ops.kth_largest(v, k)
        if k <= n:
            one, two = cupy_ops.top_k(on_device, k), ops.top_k(v, k)
            assert_same(one[:3], two[:3])
            assert cupy_wire.encode(*one, n).tobytes() == wire.encode(*two, n).tobytes()


def test_the_lower_index_first_however_large_it_is() -> None:
    v = np.zeros(1 << 22, dtype=np.float32)
    places = np.sort(np.random.default_rng(0).choice(v.size, 50, replace=False))
    v[places] = np.where(np.arange(50) % 3, 1, -1)
    for k in (1, 20, 49):
        assert_same(cupy_ops.top_k(put(v), k), (places[:k], v[places[:k]]))


class Record:
    """What crosses to the device and back, and how many blocks each kernel takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[tuple[str, int]] = []
        self.crossed: Counter[str] = Counter()
        launch = device.current().launch
        monkeypatch.setattr(
            device.current(),
            "launch",
            lambda *args, **more: (self.blocks.append(args[:2]), launch(*args, **more)),
        )
        for name, function in (("to_host", got), ("from_host", put)):
            monkeypatch.setattr(device, name, partial(self._cross, name, function))

    def _cross(
        self, name: str, function: Callable[[np.ndarray], np.ndarray], array: np.ndarray
    ) -> np.ndarray:
        self.crossed[name] += 1
        return function(array)

    def of(self, kernel: str) -> list[int]:
        return [blocks for name, blocks in self.blocks if name == kernel]


@pytest.mark.parametrize(("hint", "most"), [(0.0, 18), (0.5, 10)])
def test_launches_and_transfers_do_not_grow_with_the_number_of_layers(
    hint: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(layers: int) -> tuple[int, Counter[str]]:
        offsets, k = np.arange(layers + 1) * 40, np.full(layers, 4)
        g = put(np.random.default_rng(0).standard_normal(layers * 40).astype(np.float32))
        v = cupy_ops.zeros(layers * 40)
        with monkeypatch.context() as patch:
            record = Record(patch)
            _, _, t, _ = cupy_ops.select_layers(v, g, offsets, k, np.full(layers, hint))
            if hint:
                assert record.crossed["to_host"] == 1
            cupy_adjustment.one_step_adjustment([v[i : i + 40] for i in offsets[:-1]], k, t)
        return len(record.blocks), record.crossed

    assert work(3) == work(60)
    assert work(3)[0] <= most


def test_a_layer_that_missed_is_searched_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a model of many chunks, whose table is there from the first step on."""
    sizes, k = [20 * device.CHUNK, 40], np.array([2000, 4])
    offsets, g = (
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate(vectors(np.random.default_rng(0), sizes, False)),
    )
    hints = ops.select_layers(np.zeros_like(g), g, offsets, k, np.zeros(2))[2] * [1, 0]
    for _ in range(2):
        record, misses = Record(monkeypatch), device.cut_once.cache_info().misses
        cupy_ops.select_layers(cupy_ops.zeros(g.size), put(g), offsets, k, hints)
    assert record.of("collect") == [21, 1]
    assert record.of("digit_histogram")[:3] == [1, 1, 1]
    assert device.cut_once.cache_info().misses == misses


def test_norms_of_all_layers_take_one_launch_and_one_transfer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the sums have the same bits each time, as runs that are resumed must go on with them."""
    sizes = [3 * device.CHUNK + 1, *range(60)]
    offsets, v = (
        np.concatenate([[0], np.cumsum(sizes)]),
        put(vectors(np.random.default_rng(0), [100_000], False)[0]),
    )
    cupy_ops.l2_norms(v, offsets)
    record = Record(monkeypatch)
    one = cupy_ops.l2_norms(v, offsets)
    assert len(record.blocks) == record.crossed["to_host"] == 1
    assert one.tobytes() == cupy_ops.l2_norms(v, offsets).tobytes()


@pytest.mark.parametrize("k", [10, 2000, 20_000])
def test_the_last_threshold_is_a_good_hint(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of thin tails lie close together: a cut far below the hint would find more than there
    is room for.
    """
    v, hints = cupy_ops.zeros(1_000_000), np.zeros(1)
    for seed in range(2):
        g, record = (
            np.random.default_rng(seed).standard_normal(v.size).astype(np.float32),
            Record(monkeypatch),
        )
        v[...] = 0
        hints = cupy_ops.select_layers(v, put(g), np.array([0, v.size]), np.array([k]), hints)[2]
    assert len(record.of("collect")) == 1


def test_thresholds_are_searched_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in layers whose threshold is known, and not for a step that does not follow."""
    v = [
        put(layer) for layer in vectors(np.random.default_rng(0), [5 * device.CHUNK, 30, 40], False)
    ]
    k, record = np.array([500, 0, 40]), Record(monkeypatch)
    t = cupy_adjustment.fresh_thresholds(v, k)
    assert record.of("digit_histogram") == [5] * 3 + [2] * 3
    record.blocks.clear()
    cupy_adjustment.complete_thresholds(v, k, [float(t[0])])
    assert record.of("digit_histogram") == [2] * 3
    record.blocks.clear()
    cupy_adjustment.adjust(v, k, t, 1)
    assert [name for name, _ in record.blocks] == ["count_at_least"]
