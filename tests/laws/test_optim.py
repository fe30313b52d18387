"""Learning rates, the update and clipping, by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls.optim import learning_rate
from dls.program.config import Config
from reference import methods, ops


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, [0.4] * 8),
        ({"lr_schedule": "step"}, [0.4, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004]),
        ({"lr_schedule": "cosine"}, [0.2 * (1 + math.cos(math.pi * s / 8)) for s in range(8)]),
        ({"lr_warmup": 4}, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4]),
        ({"lr_warmup": 2, "lr_schedule": "step"}, [0.2, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004]),
    ],
)
def test_learning_rates(settings: dict[str, object], rates: list[float]) -> None:
    config = Config(lr=0.4, **settings)  # type: ignore[arg-type]
    assert [learning_rate(config, step, 8) for step in range(8)] == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_update_is_sgd_with_momentum_and_weight_decay(nesterov: bool) -> None:
    rng = np.random.default_rng(3)
    w, m, u = (rng.standard_normal(50).astype(np.float32) for _ in range(3))
    decayed = u.astype(float) + 0.01 * w
    momentum = 0.9 * m + decayed
    expected = w - 0.1 * (decayed + 0.9 * momentum if nesterov else momentum)
    ops.sgd_update(w, m, u, 0.1, 0.9, 0.01, nesterov)
    np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(m, momentum, rtol=1e-5, atol=1e-6)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction_and_bounds_the_norm(
    values: list[float], limit: float
) -> None:
    before = np.array(values, dtype=np.float32)
    after = before.copy()
    ops.clip_norm(after, limit)
    norm = float(np.linalg.norm(before.astype(float)))
    if norm <= limit:
        assert after.tobytes() == before.tobytes()
    else:
        np.testing.assert_allclose(after, before * (limit / norm), rtol=1e-5, atol=1e-30)
        assert np.linalg.norm(after.astype(float)) <= limit * (1 + 1e-5)


@given(st.floats(1e-4, 1), st.integers(1, 50))
def test_density_warmup_falls_to_the_density_and_stays(density: float, warmup: int) -> None:
    series = [methods.warmup_density(density, step, warmup) for step in range(warmup + 3)]
    assert series[0] == pytest.approx(max(0.25, density))
    assert series[warmup:] == [density] * 3
    assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(series))
    assert methods.warmup_density(density, 7, 0) == density
    ratios = [b / a for a, b in itertools.pairwise(series[: warmup + 1])]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_rescaling_k_meets_any_budget(layers: list[tuple[int, float]], share: float) -> None:
    sizes = [n for n, _ in layers]
    k = np.array([round(n * part) for n, part in layers])
    budget = round(share * sum(sizes))
    moved = methods.rescale(k, sizes, budget)
    assert moved.sum() == budget
    assert all(0 <= kl <= n for kl, n in zip(moved, sizes, strict=True))
    assert methods.rescale(k, sizes, int(k.sum())).tolist() == k.tolist()
    exact = [budget * kl / k.sum() if k.sum() else 0 for kl in k]
    if k.sum() and all(share <= n for share, n in zip(exact, sizes, strict=True)):
        assert all(abs(kl - share) <= 1 for kl, share in zip(moved, exact, strict=True))
