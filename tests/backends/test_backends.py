"""Every backend gives the reference's results, bit for bit, whatever the hints and however many
threads share the work.

A backend that is listed but cannot be loaded is a failure here, not a skip; where there is no GPU,
the kernels run on the CPU.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls import backends
from dls.backends import Backend
from gpu.cupy import device
from gpu.numba import adjustment as numba_adjustment
from gpu.numba import ops as numba_ops
from gpu.numba import search as numba_search
from gpu.numba import selection as numba_selection
from reference import adjustment, nn, ops, wire
from tests.strategies import (
    EXTREME,
    F32,
    LARGEST,
    LARGEST_SUBNORMAL,
    NASTY_LAYERS,
    NASTY_VECTORS,
    QUICK,
    TINY,
    layers_and_k,
    vector,
    vector_and_k,
    vectors,
)

PARTS = {"ops": ops, "adjustment": adjustment, "wire": wire, "nn": nn}
"""A backend's objects, and where their functions are defined."""
ON_HOST = {
    "ops": {"float32_ceiling"},
    "adjustment": {"set_size", "lower_median", "pair_order"},
    "wire": {
        "low_bits",
        "pieces",
        "seal",
        "checksum",
        "unseal",
        "values_to_bytes",
        "bytes_to_values",
    },
    "nn": set(),
}
"""Functions of the reference on single numbers and bytes, which no backend has."""
OF_DEVICES = {
    "in_stream",
    "set_threads",
    "set_device",
    "wait",
    "is_compiled",
    "notes",
    "describe",
    "library",
    "from_dlpack",
}
"""What a backend's primitives have beyond the reference's."""
NEED_GPU = ("cupy",)
HINTS = (
    0.0,
    -1.0,
    math.inf,
    -math.inf,
    math.nan,
    1e-300,
    1e300,
    1e-45,
    0.1,
    0.5,
    0.9,
    1.0,
    1.1,
    2.0,
    1000.0,
)
"""The last seven are factors of the last threshold, the others hints themselves."""


# The numba backend splits work over numba's threads; so many equal shares give the same splits on a
# machine of any size.
OTHERS = tuple(name for name in backends.names() if name != "numpy")
"""All but the reference itself."""
CASES = [(name, shares) for name in OTHERS for shares in ((1, 2, 3) if name == "numba" else (1,))]


def case_id(case: tuple[str, int]) -> str:
    return f"{case[0]}-{case[1]}"


@pytest.fixture(scope="module", params=CASES, ids=case_id)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    name, shares = request.param
    if name in NEED_GPU:
        request.getfixturevalue("gpu_or_host")
    with pytest.MonkeyPatch.context() as patch:
        if name == "numba":
            for module in (numba_ops, numba_adjustment, numba_search, numba_selection):
                patch.setattr(module, "threads_for", lambda n: max(1, min(shares, n)))
        yield backends.load(name)


of_the_reference_too = pytest.mark.parametrize(
    "backend", [("numpy", 1), *CASES], ids=case_id, indirect=True, scope="module"
)
"""For tests that say themselves what comes out."""


# ---------------------------------------------------------------- the same names


Signature = list[tuple[str, Any, Any]]


def signatures(holder: Any) -> dict[str, Signature]:
    """Names, kinds and defaults of the parameters of all public functions; `self` is none."""
    public = [name for name in dir(holder) if not name.startswith("_")]
    functions = {
        name: getattr(holder, name) for name in public if inspect.isroutine(getattr(holder, name))
    }
    return {
        name: [
            (p.name, p.kind, p.default)
            for p in inspect.signature(f).parameters.values()
            if p.name != "self"
        ]
        for name, f in functions.items()
        if not inspect.ismodule(holder) or f.__module__ == holder.__name__
    }


@pytest.mark.parametrize("part", PARTS)
def test_what_is_asked_of_a_backend_has_the_reference_s_names_and_signatures(part: str) -> None:
    asked, defined = signatures(getattr(backends, part.title())), signatures(PARTS[part])
    assert {name: asked.get(name) for name in defined} == defined | dict.fromkeys(ON_HOST[part])
    beyond = set(asked) - set(defined)
    assert beyond == (OF_DEVICES if part == "ops" else set())


@pytest.mark.parametrize("name", backends.names())
@pytest.mark.parametrize("part", PARTS)
def test_a_backend_has_what_is_asked_of_it_and_no_more(name: str, part: str) -> None:
    mine = backends._BACKENDS[name].parts()[list(PARTS).index(part)]
    assert signatures(mine) == signatures(getattr(backends, part.title()))


@pytest.mark.usefixtures("gpu_or_host")
def test_a_compiler_that_is_missing_shows_when_a_backend_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no headers\n1 error detected")

    assert backends.load("cupy").name == "cupy"
    monkeypatch.setattr(device.current(), "launch", fail)
    with pytest.raises(backends.BackendMissing, match=r"no headers.*dls\[cuda\]"):
        backends.load("cupy")


# ---------------------------------------------------------------- selection


def same(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def host(backend: Backend, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [backend.ops.to_host(array) for array in arrays]


class Twins:
    """The same residual twice, one for the backend, one for the reference; every step compares all
    there is.
    """

    def __init__(self, backend: Backend, sizes: Sequence[int]) -> None:
        self.backend, self.offsets = (
            backend,
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        )
        self.mine, self.theirs = (
            backend.ops.zeros(int(self.offsets[-1])),
            ops.zeros(int(self.offsets[-1])),
        )
        self.steps = 0

    def given(self, gradient: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """The gradient whole, or every other step in pieces that may not be written to."""
        if self.steps % 2:
            return gradient
        n = gradient.size
        cuts = sorted({0, n // 5, n // 5 + 1, n // 2, max(n - 1, 0), n})
        pieces = [gradient[start:stop].copy() for start, stop in pairwise(cuts)]
        for piece in pieces:
            if isinstance(piece, np.ndarray):
                piece.flags.writeable = False
        return [*pieces, gradient[:0]]

    def step(
        self,
        gradient: np.ndarray,
        k: np.ndarray,
        hints: np.ndarray,
        expected: np.ndarray | None = None,
    ) -> np.ndarray:
        """Select and clear; `expected` is k unless it is given. Returns the thresholds."""
        expected = k if expected is None else expected
        put, self.steps = self.backend.ops.from_host, self.steps + 1
        with np.errstate(over="ignore"):
            theirs = ops.select_layers(self.theirs, gradient, self.offsets, k, hints)
        *mine, heads = self.backend.ops.select_layers(
            self.mine, self.given(put(gradient)), self.offsets, k, hints, expected
        )
        same(host(self.backend, mine), theirs[:3])
        check_heads(self.backend, heads, np.split(self.theirs, self.offsets[1:-1]), theirs)
        left = self.theirs.size - int(k.sum())
        for more in {0, 1, left // 7, left // 2, left}:
            if 0 <= more <= left:
                found = self.backend.ops.top_k_of_rest(self.mine, self.offsets, heads, more)
                same(
                    host(self.backend, found),
                    ops.top_k_of_rest(self.theirs, self.offsets, theirs[3], more),
                )
        same(host(self.backend, [self.mine]), [self.theirs])
        self.backend.ops.scatter_subtract(self.mine, *mine[:2])
        ops.scatter_subtract(self.theirs, *theirs[:2])
        same(host(self.backend, [self.mine]), [self.theirs])
        return theirs[2]


def check_heads(
    backend: Backend,
    heads: Sequence[ops.Head],
    layers: Sequence[np.ndarray],
    selected: tuple[Any, ...],
) -> None:
    """A head is the largest entries of its layer: the k chosen ones, and whatever is above its
    floor.
    """
    for head, layer, threshold, chosen in zip(heads, layers, *selected[2:], strict=True):
        places, values = (
            backend.ops.to_host(head.positions).astype(np.int64),
            backend.ops.to_host(head.values),
        )
        assert (np.diff(places) > 0).all()
        assert values.tobytes() == layer[places].tobytes()
        assert (head.chosen, head.threshold) == (chosen.chosen, threshold)
        assert np.isin(chosen.positions, places).all()
        assert not math.isnan(head.floor)
        assert np.isin(np.flatnonzero(np.abs(layer) > head.floor), places).all()


def test_what_was_chosen_of_larger_heads(backend: Backend) -> None:
    """Of heads that hold more than was chosen; a refusal leaves v as it was."""
    v = np.array([3, 1, 2, 4, 5, 9], dtype=F32)
    heads = [
        ops.Head(np.array([0, 2, 3]), v[[0, 2, 3]], 1, 4.0, 1.0),
        ops.Head(np.array([1]), v[[5]], 1, 9.0, 9.0),
    ]
    mine, offsets = backend.ops.from_host(v.copy()), np.array([0, 4, 6])
    own = [
        head._replace(
            positions=backend.ops.from_host(head.positions),
            values=backend.ops.from_host(head.values),
        )
        for head in heads
    ]
    for k in range(5):
        found = host(backend, backend.ops.top_k_of_rest(mine, offsets, own, k))
        same(found, ops.top_k_of_rest(v, offsets, heads, k))
        assert found[0].tolist() == sorted([4, 0, 2, 1][:k])
    with pytest.raises(ValueError):
        backend.ops.top_k_of_rest(mine, offsets, own, 5)
    same(host(backend, [mine]), [v])


def hint_of(choice: float, threshold: float) -> float:
    return choice * threshold if 0.1 <= choice <= 1000 else choice


@QUICK
@given(layers_and_k(), st.data())
def test_selections_of_several_steps(
    backend: Backend, case: tuple[list[np.ndarray], np.ndarray], data: st.DataObject
) -> None:
    layers, k = case
    twins = Twins(backend, [layer.size for layer in layers])
    gradient, thresholds = np.concatenate(layers) / F32(4), np.zeros(len(layers))
    for _ in range(3):
        choices = [data.draw(st.sampled_from(HINTS)) for _ in layers]
        with np.errstate(invalid="ignore"):
            hints = np.array([hint_of(*pair) for pair in zip(choices, thresholds, strict=True)])
        thresholds = twins.step(gradient, k, hints, data.draw(st.sampled_from([1, 3])) * k)
        gradient = -gradient[::-1].copy() / F32(2)


def draw(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Values that make a selection hard in one way or another."""
    values = {
        "heavy tails": lambda: rng.standard_t(3, n),
        "ties": lambda: rng.integers(-2, 3, n),
        "all equal": lambda: np.full(n, -1.5),
        "mostly zeros": lambda: np.where(rng.random(n) < 0.9995, -0.0, rng.standard_normal(n)),
        "denormals": lambda: rng.integers(-50, 51, n) * TINY,
        "one ulp apart": lambda: rng.choice(np.nextafter(F32(1), F32([0, 2])), n),
        "huge range": lambda: rng.choice([LARGEST / 8, 1.0, LARGEST_SUBNORMAL, 0.0, -TINY], n),
        "all at the end": lambda: (
            np.where(np.arange(n) < n - n // 50, 1e-3, 1.0) * rng.standard_normal(n)
        ),
    }[kind]()
    return values.astype(F32)


KINDS = (
    "heavy tails",
    "ties",
    "all equal",
    "mostly zeros",
    "denormals",
    "one ulp apart",
    "huge range",
    "all at the end",
)


@pytest.mark.parametrize("kind", KINDS)
def test_large_layers(backend: Backend, kind: str) -> None:
    """Between layers of a few values, at every density, along residuals that drift."""
    rng = np.random.default_rng(5)
    sizes = np.array([3, 70_001, 129, 40_000, 1, 128])
    shares = [
        [0.001] * 6,
        [0.01] * 6,
        [0.001, 0.3, 0, 1, 1, 0.5],
        [0.5, 0.02, 1, 0, 0, 0.1],
        [0.5, 0.0001, 0, 0.12, 1, 0],
    ]
    twins, thresholds = Twins(backend, sizes.tolist()), np.zeros(6)
    for share, factor in zip(shares * 3, HINTS, strict=True):
        hints = np.array([hint_of(factor, t) if t < math.inf else t for t in thresholds])
        k = np.minimum(np.ceil(sizes * share), sizes).astype(np.int64)
        thresholds = twins.step(draw(kind, rng, int(sizes.sum())), k, hints)


@of_the_reference_too
def test_a_layer_beyond_the_integers_of_float32(backend: Backend) -> None:
    """Indices above 2^24, which float32 cannot tell apart."""
    n, rng = 2**24 + 3, np.random.default_rng(0)
    gradient = np.zeros(n, dtype=F32)
    gradient[:: n // 1000] = rng.standard_normal(gradient[:: n // 1000].size)
    gradient[-4:] = [5, -5, 5, 4]
    residual = backend.ops.zeros(n)
    expected = np.sort(np.argsort(-np.abs(gradient), kind="stable")[:500])
    for hint in (0.0,) if backend.name == "numpy" else (0.0, 1.0):
        residual[...] = 0
        index, values, threshold = backend.ops.select(
            residual, backend.ops.from_host(gradient), 500, hint
        )
        same(host(backend, [index, values]), [expected, gradient[expected]])
        assert threshold == np.abs(gradient[expected]).min()
    assert expected[-1] > 2**24


@QUICK
@given(vector_and_k())
def test_one_layer(backend: Backend, case: tuple[np.ndarray, int]) -> None:
    v, k = case
    put = backend.ops.from_host
    same(host(backend, backend.ops.top_k(put(v), k)), ops.top_k(v, k))
    residual = put(np.zeros_like(v))
    *chosen, threshold = backend.ops.select(residual, put(v), k, math.nan)
    *expected, t = ops.select(np.zeros_like(v), v, k, math.nan)
    same(host(backend, chosen), expected)
    assert isinstance(threshold, float) and threshold == t


@of_the_reference_too
@pytest.mark.parametrize("n", [5, 200, 70_000])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_non_finite_is_refused_and_the_next_call_works(
    backend: Backend, bad: float, n: int
) -> None:
    put, rng = backend.ops.from_host, np.random.default_rng(n)
    v = rng.standard_normal(n).astype(F32)
    offsets, k = np.array([0, n // 3, n]), np.array([1, n // 2])
    for position in (0, n // 3, n - 1):
        broken = v.copy()
        broken[position] = bad
        assert not backend.ops.all_finite(put(broken))
        for hint in (0.0, 1.0):
            with pytest.raises(ops.NonFiniteError):
                backend.ops.select_layers(
                    put(np.zeros_like(v)), put(broken), offsets, k, np.array([hint, hint])
                )
        for count in (0, 1, n):
            with pytest.raises(ops.NonFiniteError):
                backend.ops.top_k(put(broken), count)
        with pytest.raises(ops.NonFiniteError):
            backend.adjustment.optimal_adjustment([put(broken), put(v)], np.array([1, 0]))
    assert backend.ops.all_finite(put(v))
    same(host(backend, backend.ops.top_k(put(v), 3)), ops.top_k(v, 3))


@of_the_reference_too
def test_a_sum_that_overflows_is_refused(backend: Backend) -> None:
    residual, gradient = (backend.ops.from_host(vector([1.0, LARGEST, 2.0])) for _ in range(2))
    with np.errstate(over="ignore"), pytest.raises(ops.NonFiniteError):
        backend.ops.select(residual, gradient, 1, 0.0)


@of_the_reference_too
@pytest.mark.parametrize("k", [-1, 4])
def test_a_wrong_k_is_refused(backend: Backend, k: int) -> None:
    v = vector([1, 2, 3])
    for attempt in (
        lambda: backend.ops.top_k(backend.ops.from_host(v), k),
        lambda: backend.ops.select(backend.ops.zeros(3), backend.ops.from_host(v), k, 0.0),
        lambda: backend.ops.kth_largest(backend.ops.from_host(v), k + (k > 0)),
    ):
        with pytest.raises(ValueError, match="k must lie in"):
            attempt()


@of_the_reference_too
def test_arguments_need_be_neither_contiguous_nor_writable(backend: Backend) -> None:
    v = np.arange(-50, 50, dtype=F32)
    k = np.array([5])
    frozen, strided = v.copy(), np.repeat(v, 2)[::2]
    frozen.flags.writeable = False
    for same_values in (frozen, strided):
        given_vector = backend.ops.from_host(same_values)
        same(host(backend, backend.ops.top_k(given_vector, 7)), ops.top_k(v, 7))
        assert backend.ops.kth_largest(given_vector, 7) == ops.kth_largest(v, 7)
        assert backend.ops.count_at_least(given_vector, 7.5) == ops.count_at_least(v, 7.5)
        residual = backend.ops.zeros(100)
        same(host(backend, backend.ops.select(residual, given_vector, 7, 0.0)[:2]), ops.top_k(v, 7))
        same([backend.adjustment.optimal_adjustment([given_vector], k)], [k])


@QUICK
@given(vector_and_k(), st.integers(0, 1))
def test_numba_s_search_without_a_hint(case: tuple[np.ndarray, int], above: int) -> None:
    """The ways that only large layers take, on layers small enough to be drawn."""
    v, k = case
    k = max(k, 1)
    index, values = np.empty(k, dtype=np.int64), np.empty(k, dtype=F32)
    magnitude = numba_search.choose_by_histogram(v, k, 7, index, values)
    same([index - 7, values], ops.top_k(v, k))
    assert magnitude == np.abs(values).view(np.int32).min()
    cut, _, exact = numba_search.narrow(v.view(np.int32), k, above, 1)
    assert cut == magnitude if exact else cut <= magnitude


# ---------------------------------------------------------------- the other primitives


@QUICK
@given(vectors(), st.sampled_from([*HINTS, 3.0, TINY / 2, 3.5e38, 1 + 1e-9]))
def test_counts_and_ranks(backend: Backend, v: np.ndarray, t: float) -> None:
    mine = backend.ops.from_host(v)
    assert backend.ops.count_at_least(mine, t) == ops.count_at_least(v, t)
    for k in range(v.size + 2):
        assert backend.ops.kth_largest(mine, k) == ops.kth_largest(v, k)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_of_a_large_layer(backend: Backend, kind: str) -> None:
    v = draw(kind, np.random.default_rng(2), 100_003)
    mine = backend.ops.from_host(v)
    for k in (1, 2, 1000, 50_000, v.size - 1, v.size):
        assert backend.ops.kth_largest(mine, k) == ops.kth_largest(v, k)
        assert backend.ops.count_at_least(mine, ops.kth_largest(v, k)) == ops.count_at_least(
            v, ops.kth_largest(v, k)
        )


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 127, 128, 129, 1000, 65_537, 300_001])
def test_norms_and_updates(backend: Backend, n: int) -> None:
    rng, put = np.random.default_rng(n), backend.ops.from_host
    v = (rng.standard_t(3, n) * 10.0 ** rng.integers(-20, 10, n)).astype(F32)
    g = rng.standard_normal(n).astype(F32)
    offsets = np.array([0, 0, n // 3, n // 3 + 1, n])
    rtol = 1e-12 if backend.name == "cupy" else 0  # sums in another order there
    np.testing.assert_allclose(backend.ops.l2_norm(put(v)), ops.l2_norm(v), rtol=rtol)
    np.testing.assert_allclose(
        backend.ops.l2_norms(put(v), offsets), ops.l2_norms(v, offsets), rtol=rtol
    )
    for limit in (1e-3, 1e30):
        one, two = put(g.copy()), g.copy()
        backend.ops.clip_norm(one, limit)
        ops.clip_norm(two, limit)
        np.testing.assert_allclose(backend.ops.to_host(one), two, rtol=3e-7)
    index = np.sort(rng.choice(n, n // 2, replace=False))
    for function, arguments in (
        ("accumulate", (g,)),
        ("scale", (1 / 3,)),
        ("scatter_add", (index, g[: n // 2])),
        ("scatter_subtract", (index, g[: n // 2])),
    ):
        one, two = put(v.copy()), v.copy()
        getattr(backend.ops, function)(
            one, *(put(a) if isinstance(a, np.ndarray) else a for a in arguments)
        )
        getattr(ops, function)(two, *arguments)
        same(host(backend, [one]), [two])


@pytest.mark.parametrize("n", [1, 1000, 100_001])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_rounds_every_operation(backend: Backend, n: int, nesterov: bool) -> None:
    rng = np.random.default_rng(n)
    theirs = [rng.standard_normal(n).astype(F32) for _ in range(3)]
    mine = [backend.ops.from_host(array.copy()) for array in theirs]
    for _ in range(3):
        backend.ops.sgd_update(*mine, 0.1, 0.9, 1e-4, nesterov)
        ops.sgd_update(*theirs, 0.1, 0.9, 1e-4, nesterov)
        same(host(backend, mine), theirs)


@QUICK
@given(vector_and_k())
def test_messages(backend: Backend, case: tuple[np.ndarray, int]) -> None:
    v, k = case
    put, (index, values) = backend.ops.from_host, ops.top_k(v, k)
    for value_dtype in wire.VALUE_BYTES:
        small = values * F32(2.0**-120)
        for given_ in (
            small,
            values,
            np.clip(values, F32(-1e26), F32(1e26)) * F32(3.4e12),
        ):  # within the range, and beyond
            same(
                host(backend, [backend.wire.round_values(put(given_), value_dtype)]),
                [wire.round_values(given_, value_dtype)],
            )
        rounded = wire.round_values(small, value_dtype)
        payload = backend.wire.encode(put(index), put(rounded), v.size, value_dtype)
        same([np.asarray(payload)], [wire.encode(index, rounded, v.size, value_dtype)])
        same(host(backend, backend.wire.decode(payload, v.size, k, value_dtype)), [index, rounded])
    with pytest.raises(wire.MessageError, match="bytes"):
        backend.wire.decode(np.append(payload, np.uint8(0)), v.size, k, value_dtype)


# ---------------------------------------------------------------- Algorithm 2


def head_of(layer: np.ndarray, m: int) -> ops.Head:
    """The m largest of a layer."""
    places, values = ops.top_k(layer, m)
    return ops.Head(places, values, m, ops.kth_largest(values, m), ops.kth_largest(values, m))


def check_adjustment(backend: Backend, layers: list[np.ndarray], k: np.ndarray) -> None:
    v = [backend.ops.from_host(layer) for layer in layers]
    mine, theirs = backend.adjustment, adjustment
    t = theirs.fresh_thresholds(layers, k)
    same([mine.fresh_thresholds(v, k)], [t])
    k_before, t_before = k.copy(), t.copy()
    same(mine.one_step_adjustment(v, k, t), theirs.one_step_adjustment(layers, k, t))
    for steps in range(6):
        same([mine.adjust(v, k, t, steps)], [theirs.adjust(layers, k, t, steps)])
    for more in (0.0, 0.1, 1.0):  # heads with ever more than the k largest
        sizes = [int(kl + more * (layer.size - kl)) for layer, kl in zip(layers, k, strict=True)]
        heads = [head_of(layer, m) for layer, m in zip(layers, sizes, strict=True)]
        heads = [head._replace(values=backend.ops.from_host(head.values)) for head in heads]
        for steps in range(4):
            found = mine.adjust(v, k, t, steps, heads)
            same([found], [theirs.adjust(layers, k, t, steps)])
    same([mine.optimal_adjustment(v, k)], [theirs.optimal_adjustment(layers, k)])
    same([k, t], [k_before, t_before])


@QUICK
@given(layers_and_k())
def test_adjustments(backend: Backend, case: tuple[list[np.ndarray], np.ndarray]) -> None:
    check_adjustment(backend, *case)


@pytest.mark.parametrize("name", NASTY_LAYERS)
def test_adjustments_of_nasty_layers(backend: Backend, name: str) -> None:
    layers, k = NASTY_LAYERS[name]
    check_adjustment(backend, layers, np.array(k, dtype=np.int64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_adjustments_of_large_layers(backend: Backend, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 16, 128, 2304, 9000, 70_000], rng.integers(2, 8))
    layers = [draw(kind, rng, n) * F32(rng.lognormal()) for n in sizes]
    k = np.array([rng.choice([0, n, n // 2, -(-n // 100), -(-n // 1000)]) for n in sizes])
    check_adjustment(backend, layers, k)


@pytest.mark.parametrize("name", NASTY_VECTORS)
def test_top_k_of_nasty_vectors(backend: Backend, name: str) -> None:
    check_top_k(backend, NASTY_VECTORS[name])


@QUICK
@given(st.lists(EXTREME, min_size=1, max_size=6))
def test_top_k_at_every_k(backend: Backend, values: list[float]) -> None:
    check_top_k(backend, vector(values))


def check_top_k(backend: Backend, v: np.ndarray) -> None:
    for k in range(v.size + 1):
        same(host(backend, backend.ops.top_k(backend.ops.from_host(v), k)), ops.top_k(v, k))
