"""dls.Exchange, the exchange for arrays of any program: forms, errors, state, and what it leaves
alone.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import dls
from dls.comm import local
from dls.comm.base import Comm
from dls.comm.errors import ExchangeError
from dls.exchange.exchanger import Row
from dls.exchange.settings import SettingError
from reference.ops import NonFiniteError
from tests.launch import ROOT

SHAPES = {"w": (6, 5), "b": 5, "scale": ()}
N = 36


def make(comm: Comm | None = None, **options: Any) -> dls.Exchange:
    chosen = {"method": "dls", "density": 0.2, "backend": "numpy", "threads": 1} | options
    return dls.Exchange(SHAPES, comm=comm, **chosen)


def gradients(rank: int, step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng([rank, step])
    shapes = {"w": (6, 5), "b": (5,), "scale": ()}
    return {name: random.standard_normal(shape) for name, shape in shapes.items()}


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays.values()]).astype(np.float32)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("collective", ["allgather", "gtopk"])
def test_all_forms_give_the_same_mean(ranks: int, collective: str) -> None:
    def work(comm: Comm) -> list[bytes]:
        whole, mapped, pieces = (make(comm, collective=collective) for _ in range(3))
        seen = []
        for step in range(3):
            own = gradients(comm.rank, step)
            mean = whole(flat(own))
            assert mean.dtype == np.float32
            assert mean.shape == (N,)
            named = mapped({name: own[name] for name in reversed(own)})
            assert [(a.shape, a.dtype) for a in named.values()] == [
                (a.shape, a.dtype) for a in own.values()
            ]
            assert np.array_equal(flat(named), mean)
            pieces.begin()
            for name in ("b", "scale", "w"):
                pieces.ready(name, own[name])
            arrived = {name: array.copy() for name, array in pieces.arrivals()}
            assert np.array_equal(flat({name: arrived[name] for name in own}), mean)
            assert (whole.steps, mapped.steps, pieces.steps) == (step + 1,) * 3
            seen.append(mean.tobytes())
        return seen

    first, *others = local.run(ranks, work)
    assert all(other == first for other in others)


def test_density_one_is_the_mean() -> None:
    def work(comm: Comm) -> np.ndarray:
        return make(comm, density=1.0)(flat(gradients(comm.rank, 0)))

    mean = local.run(2, work)[0]
    expected = np.mean([flat(gradients(rank, 0)) for rank in range(2)], axis=0)
    assert np.allclose(mean, expected, rtol=0, atol=1e-6)


def test_what_is_not_sent_stays_and_is_sent_later() -> None:
    exchange = make(density=1 / N, method="global-topk")
    first = np.arange(N, dtype=np.float32)
    sums = exchange(first)
    for _ in range(N):
        sums = sums + exchange(np.zeros(N, dtype=np.float32))
    assert np.array_equal(sums, first)
    assert not exchange.state()["residual"].any()


@pytest.mark.parametrize("method", ["dls", "dense"])
def test_a_state_goes_on_with_the_same_bits(method: str) -> None:
    options = {"density": 0.1, "density_warmup": 6} if method == "dls" else {}
    options |= {"method": method}
    one, two = (dls.Exchange(SHAPES, backend="numpy", threads=1, **options) for _ in range(2))
    for step in range(3):
        one(flat(gradients(0, step)))
    state = one.state()
    assert (method == "dense") or any("residual" in name for name in state)
    one_later = one(flat(gradients(0, 3)))
    two.restore(state)
    assert two.steps == 3
    assert two(flat(gradients(0, 3))).tobytes() == one_later.tobytes()


WRONG = {
    "no such method": (lambda: make(method="topk"), "there is no method 'topk'"),
    "no such setting": (lambda: make(densty=0.1), "there is no setting 'densty'"),
    "a method without settings": (lambda: make(method="dense"), "here; there are none"),
    "a value out of range": (lambda: make(density=2.0), "2.0 is outside"),
    "a value of another type": (lambda: make(density="much"), "expected a number"),
    "no layers": (lambda: dls.Exchange({}, backend="numpy"), "there is no layer"),
    "an empty layer": (lambda: dls.Exchange({"a": 0}, backend="numpy"), "at least 1"),
    "no shape": (lambda: dls.Exchange({"a": "big"}, backend="numpy"), "needs a size or a shape"),
    "on_nan": (lambda: make(on_nan="ignore"), "not 'stop' or 'skip'"),
    "a density of nothing": (lambda: make(density=0.001), "rounds to no value"),
    "another length": (lambda: make()(np.zeros(7, np.float32)), r"the shape \(7,\)"),
    "a missing layer": (lambda: make()({"w": np.zeros((6, 5))}), "no gradient of layer b"),
    "an unknown layer": (lambda: make()(gradients(0, 0) | {"c": np.zeros(3)}), "no layer 'c'"),
    "another shape": (lambda: make()(gradients(0, 0) | {"b": np.zeros(6)}), "the gradient of b"),
    "a foreign state": (lambda: make().restore({"k": np.zeros(3)}), "the state has no"),
    "a bucket of half a value": (lambda: make(bucket_size=1.5), "bucket_size is 1.5"),
    "a bucket without an end": (lambda: make(bucket_size=float("inf")), "bucket_size is inf"),
    "no bucket": (lambda: make(bucket_size=0), "bucket_size is 0"),
    "threads": (lambda: make(threads=-1), "threads is -1"),
    "timeout": (lambda: make(timeout=float("nan")), "timeout is nan"),
    "nothing begun": (lambda: make().end(), "no step has begun"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_bad_input_is_one_clear_exception(case: tuple[Any, str]) -> None:
    act, words = case
    with pytest.raises(ValueError, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)


FULL = {"w": np.ones((6, 5)), "b": np.ones(5), "scale": np.ones(())}
BAD_GRADIENTS = {
    "another length": np.zeros(3, np.float32),
    "another shape": FULL | {"b": np.ones((1, 5))},
    "integers": FULL | {"b": np.arange(5)},
    "integers, flat": np.arange(N),
    "complex numbers": FULL | {"scale": np.array(1j)},
    "texts": FULL | {"b": np.array(["x"] * 5)},
    "truth": FULL | {"b": np.ones(5, bool)},
    "a layer too few": {"w": FULL["w"], "b": FULL["b"]},
    "a layer too many": FULL | {"c": np.ones(1)},
    "ragged": FULL | {"b": [[1.0], [1.0, 2.0]]},
    "nothing": None,
}


@pytest.mark.parametrize("case", BAD_GRADIENTS)
@pytest.mark.parametrize("method", ["dls", "global-topk"])
def test_a_bad_gradient_changes_nothing(case: str, method: str) -> None:
    exchange, other = make(method=method), make(method=method)
    for step in range(3):
        with pytest.raises(ValueError):
            exchange(BAD_GRADIENTS[case])
        own = flat(gradients(0, step))
        assert exchange(own).tobytes() == other(own).tobytes()
    assert same(exchange, other)


def same(one: dls.Exchange, other: dls.Exchange) -> bool:
    a, b = one.state(), other.state()
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_a_wrong_order_of_calls_changes_nothing() -> None:
    """On two workers, which make the same mistakes."""

    def work(comm: Comm) -> None:
        exchange, other = make(comm, bucket_size=1), make(comm, bucket_size=1)
        for step in range(3):
            own = gradients(comm.rank, step)
            wrong("ready comes after begin", lambda: exchange.ready("b", own["b"]))  # noqa: B023
            wrong("arrivals come after begin", lambda: next(exchange.arrivals()))
            exchange.begin()
            wrong("scale is not ready", lambda: next(exchange.arrivals()), "not ready")
            exchange.ready("scale", own["scale"])
            wrong("has been ready", lambda: exchange.ready("scale", own["scale"]))  # noqa: B023
            wrong("there is no layer 'c'", lambda: exchange.ready("c", own["b"]))  # noqa: B023
            wrong("has the shape", lambda: exchange.ready("b", own["w"]))  # noqa: B023
            wrong("has the type", lambda: exchange.ready("b", np.arange(5)))
            wrong("is not ready", lambda: next(exchange.arrivals()))
            wrong("is not ready", exchange.end)
            wrong("is not ready", exchange.begin)  # it would end this step
            wrong("is not ready", lambda: exchange(flat(own)))  # noqa: B023
            wrong("between steps", exchange.state)
            wrong("between steps", lambda: exchange.restore({}))
            wrong("between steps", exchange.close)
            exchange.ready("b", own["b"])
            exchange.ready("w", own["w"])
            wrong("has been ready", lambda: exchange.ready("w", own["w"]))  # noqa: B023
            arrived = {name: mean.copy() for name, mean in exchange.arrivals()}
            mean = flat({name: arrived[name] for name in own})
            assert mean.tobytes() == other(flat(own)).tobytes()
            assert exchange.steps == other.steps == step + 1
        assert same(exchange, other)

    local.run(2, work)


def wrong(words: str, act: Any, instead: str = "") -> None:
    with pytest.raises(ValueError, match=instead or words):
        act()


def test_a_row_has_k_where_it_was_asked_for() -> None:
    exchange = make()
    own = flat(gradients(0, 0))
    exchange(own)
    assert exchange.row is not None
    assert recorded(exchange.row) == [False, False, False]
    for record in (False, True):
        exchange.begin()
        for name, gradient in gradients(0, 1).items():
            exchange.ready(name, gradient)
        row = exchange.end(record=record)
        assert row is exchange.row
        assert recorded(row) == [record] * 3
    assert row.k is not None
    assert row.k.sum() == round(0.2 * N)


def recorded(row: Row) -> list[bool]:
    return [each is not None for each in (row.k, row.threshold, row.residual_norm)]


KINDS: list[dict[str, Any]] = [
    {},
    {"on_nan": "skip"},
    {"collective": "gtopk"},
    {"method": "layerwise-topk"},
]


@pytest.mark.parametrize("options", KINDS)
def test_bytes_of_exchanges_that_take_turns_are_counted_apart(options: dict[str, Any]) -> None:
    def work(comm: Comm) -> None:
        small, large, small_alone, large_alone = (
            make(comm, density=density, **options) for density in (0.2, 0.9, 0.2, 0.9)
        )
        for step in range(3):
            own = gradients(comm.rank, step)
            small.begin()
            large.begin()
            for name in ("scale", "b", "w"):
                small.ready(name, own[name])
                large.ready(name, own[name])
            small.end()
            large.end()
            small_alone(flat(own))
            large_alone(flat(own))
            moved = [bytes_of(each) for each in (small, large, small_alone, large_alone)]
            assert moved[:2] == moved[2:]
            assert 0 < moved[0][0] < moved[1][0]

    local.run(2, work)


def bytes_of(exchange: dls.Exchange) -> tuple[int, int]:
    assert exchange.row is not None
    return exchange.row.payload_bytes, exchange.row.received_bytes


@pytest.mark.parametrize("options", KINDS[:2])
def test_where_one_exchange_fails_another_s_step_ends_at_once(options: dict[str, Any]) -> None:
    """The other's next step, after a fresh start from its last state, is as if nothing had been."""

    def work(comm: Comm) -> None:
        fails, goes, alone = make(comm), make(comm, **options), make(comm)
        own = flat(gradients(comm.rank, 0))
        goes(own)
        alone(own)
        state = goes.state()
        goes.begin()
        for name, gradient in gradients(comm.rank, 1).items():
            goes.ready(name, gradient)
        with pytest.raises(NonFiniteError):
            fails(own * np.float32(np.nan))
        with pytest.raises(ExchangeError, match="dropped, as another exchange between these"):
            goes.end()
        again = make(comm, **options)
        again.restore(state)
        own = flat(gradients(comm.rank, 1))
        assert again(own).tobytes() == alone(own).tobytes()

    local.run(2, work)


@pytest.mark.parametrize("layers", [("scale",), ("scale", "b", "w")])
def test_a_step_that_was_dropped_drops_no_other(layers: tuple[str, ...]) -> None:
    """Of three exchanges one fails, one is in its step, and one begins before that hears of it."""

    def work(comm: Comm) -> None:
        fails, hears, goes, alone = (make(comm, bucket_size=1) for _ in range(4))
        own = gradients(comm.rank, 0)
        hears.begin()
        for name in layers:
            hears.ready(name, own[name])
        with pytest.raises(NonFiniteError):
            fails(np.full(N, np.nan, np.float32))
        goes.begin()
        for name in ("scale", "b", "w"):
            goes.ready(name, own[name])
        with pytest.raises(ExchangeError, match="dropped"):
            hears.end() if "w" in layers else hears.ready("b", own["b"])
        with pytest.raises(RuntimeError, match="closed"):
            hears.begin()
        arrived = {name: mean.copy() for name, mean in goes.arrivals()}
        assert flat({name: arrived[name] for name in own}).tobytes() == alone(flat(own)).tobytes()
        fails.close()
        hears.close()
        assert goes(flat(own)).tobytes() == alone(flat(own)).tobytes()

    local.run(2, work)


def test_ranks_that_differ_are_named() -> None:
    def work(comm: Comm) -> str:
        with pytest.raises(ValueError, match="rank 1 differs from rank 0 in settings") as caught:
            make(comm, density=0.2 + 0.1 * comm.rank)
        return str(caught.value)

    assert len(set(local.run(3, work))) == 1


def test_settings_errors_are_value_errors() -> None:
    assert issubclass(SettingError, ValueError)


def test_what_is_not_finite_ends_the_exchange_or_the_step_alone() -> None:
    bad = flat(gradients(0, 0))
    bad[3] = np.nan
    stops, skips = make(), make(on_nan="skip")
    with pytest.raises(NonFiniteError, match="layer w"):
        stops(bad)
    with pytest.raises(RuntimeError, match="closed"):
        stops(flat(gradients(0, 1)))
    before = skips.state()
    assert not skips(bad).any()
    assert skips.row is not None
    assert list(skips.row.met_by) == [0]
    after = skips.state()
    assert all(np.array_equal(before[name], after[name]) for name in ("residual", "k"))


def test_float64_beyond_float32_is_not_finite() -> None:
    with pytest.raises(NonFiniteError, match="layer b"):
        make()(gradients(0, 0) | {"b": np.full(5, 1e300)})


IMPORT = """
import signal, sys, threading
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
import dls
assert not {"mpi4py", "h5py", "numba", "numpy"} & sys.modules.keys(), sys.modules.keys()
exchange = dls.Exchange({"a": 4}, density=0.5, backend="numpy")
exchange([1.0, 2.0, 3.0, 4.0])
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
assert before == [signal.getsignal(number) for number in numbers]
assert threading.active_count() == 1
assert "mpi4py" not in sys.modules and "h5py" not in sys.modules
"""


def test_nothing_happens_at_import_and_a_program_that_is_alone_needs_no_mpi() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
