"""Every method and every collective goes through the laws of an exchange, as workers here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import dls
from dls import backends
from dls.comm import local
from dls.exchange import methods
from dls.exchange.exchanger import Exchanger
from dls.exchange.layout import Layer, Layout
from dls.exchange.methods.dense import Dense
from dls.exchange.methods.dls import Dls
from dls.exchange.methods.global_topk import GlobalTopk
from dls.exchange.methods.layerwise_topk import LayerwiseTopk
from dls.exchange.settings import build
from reference import collectives
from reference.collectives import LockStepError
from tests import cases, exchanging, newcomers
from tests.cases import Case
from tests.parts import EF21


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("case", cases.every(), ids=str)
def test_every_exchange_obeys_the_laws(case: Case, ranks: int) -> None:
    exchanging.check(case, ranks)


@pytest.mark.parametrize("case", cases.corners(), ids=str)
def test_so_do_one_value_and_one_layer_and_very_many(case: Case) -> None:
    exchanging.check(case, 3)


@pytest.mark.parametrize("name", methods.names())
def test_the_cases_are_all_that_a_method_knows(name: str) -> None:
    """Every value of every setting is there, every collective too, and the corners are met."""
    own = cases.of(name)
    for key, values in cases.settings_of(name).items():
        assert {dict(case.values)[key] for case in own} == set(values)
    for each in (cases.SIZES, cases.BUCKET_SIZES, ("stop", "skip")):
        found = {value for case in own for value in (case.sizes, case.bucket_size, case.on_nan)}
        assert found >= set(each)
    found = {case.collective for case in own}
    knows = "collective" in cases.settings_of(name)
    assert found == set(collectives.COLLECTIVES) if knows else len(found) == 1
    corners = {case.sizes for case in cases.corners() if case.method == name}
    assert corners == {(1,), (7,), cases.MANY}


@pytest.mark.parametrize("collective", collectives.COLLECTIVES)
def test_a_rank_sends_nothing_of_a_layer_where_another_does(collective: str) -> None:
    """The cases reach this corner with every collective."""
    for case in cases.every():
        if case.collective == collective and case.on_nan == "stop":
            steps = zip(*exchanging.workers(case, 2), strict=True)
            if any(((one.sent == 0) != (other.sent == 0)).any() for one, other in steps):
                return
    pytest.fail("in no case")


@pytest.mark.parametrize("case", cases.every(), ids=str)
def test_buckets_mean_nothing_where_no_collective_chooses_inside_them(case: Case) -> None:
    if case.collective not in collectives.BY_BUCKET and not exchanging.sums_in_any_order(case):
        runs = [exchanging.workers(replace(case, bucket_size=size), 2) for size in (1, 0)]
        bits = [[[seen.bits for seen in own] for own in run] for run in runs]
        assert bits[0] == bits[1]


# --- gradients that are read where they lie -----------------------------------------------------


class Chooses(Dls):
    """A method that looks at gradients itself."""

    def select(self, bucket: Any, gradient: Any) -> Any:
        assert gradient.shape == (bucket.size,)
        return super().select(bucket, gradient)


class Remembers(LayerwiseTopk):
    """A method with a memory that says nothing of pieces."""

    def make_memory(self) -> Any:
        return EF21(self.layout.n, self.ops)


@pytest.mark.parametrize(
    ("method", "settings", "on_nan", "copied"),
    [
        (Dls, {}, "stop", False),
        (LayerwiseTopk, {}, "stop", False),
        (GlobalTopk, {}, "stop", False),
        (Dls, {"dls_from": "left"}, "stop", False),
        (Dls, {"dls_from": "ahead"}, "stop", True),
        (Dls, {}, "skip", True),
        (Dense, {}, "stop", True),
        (Chooses, {}, "stop", True),
        (Remembers, {}, "stop", True),
    ],
    ids=str,
)
@pytest.mark.parametrize("in_place", [True, False])
def test_a_gradient_is_copied_only_where_a_method_needs_it_in_one_piece(
    method: Any, settings: dict[str, Any], on_nan: str, copied: bool, in_place: bool
) -> None:
    layout = Layout([Layer("a", 6), Layer("b", 4)])
    own = build(method.Settings, settings | ({} if method is Dense else {"density": 0.5}))
    exchanger = Exchanger(
        layout, method, own, local.alone(), backends.load("numba"), bucket_size=1, on_nan=on_nan
    )
    exchanger.clock.restart()
    exchanger.begin(0)
    pieces = {0: [np.arange(1, 5, dtype=np.float32), np.array([[9.0, 8.0]], dtype=np.float32)]}
    pieces[1] = [np.array([5, -6, 7, -8], dtype=np.float32)]
    for layer in (1, 0):
        exchanger.ready(layer, pieces[layer], in_place=in_place)
    exchanger.end()
    given = np.concatenate([piece.reshape(-1) for piece in (*pieces[0], *pieces[1])])
    expected = given if copied or not in_place else np.zeros(10)
    assert exchanger.gradients.tolist() == expected.tolist()
    sent = exchanger.update != 0
    assert exchanger.update[sent].tolist() == given[sent].tolist()
    assert sent.sum() == (10 if method is Dense else 5)


def test_pieces_that_do_not_make_up_the_layer_are_refused() -> None:
    layout, method = Layout([Layer("a", 6)]), LayerwiseTopk
    own = build(method.Settings, {"density": 0.5})
    exchanger = Exchanger(layout, method, own, local.alone(), backends.load("numpy"))
    exchanger.clock.restart()
    exchanger.begin(0)
    for in_place in (True, False):
        with pytest.raises(ValueError, match="layer a has 6 values, and its gradient 5"):
            exchanger.ready(
                0, [np.ones(2, dtype=np.float32), np.ones(3, dtype=np.float32)], in_place=in_place
            )


# --- newcomers ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("newcomers_known")
def test_a_newcomer_is_found_and_goes_through_the_suite() -> None:
    """A method registered here, and each method with a collective that came just now."""
    new = [case for case in cases.every() if case.method in ("every-round", "shy")]
    carried = [case for case in cases.every() if case.collective == newcomers.RING]
    assert {case.method for case in new} == {"every-round", "shy"}
    knows = {name for name in methods.names() if "collective" in cases.settings_of(name)}
    assert {case.method for case in carried} == knows
    for number, case in enumerate([*new, *carried]):
        exchanging.check(case, 1 + number % 4)


@pytest.mark.usefixtures("newcomers_known")
@pytest.mark.parametrize(("wrong", "law"), newcomers.WRONG.items(), ids=str)
def test_a_method_that_is_wrong_fails(wrong: type[methods.Method], law: str) -> None:
    dls.register("wrong")(wrong)
    case = next(case for case in cases.of("wrong") if case.settings.density == 0.3)
    run = exchanging.workers(case, 2)
    with pytest.raises(AssertionError):
        getattr(exchanging, f"check_{law}")(case, run)


@pytest.mark.usefixtures("newcomers_known")
def test_a_method_whose_messages_are_not_as_announced_fails() -> None:
    dls.register("wrong")(newcomers.Boasts)
    for case in cases.of("wrong"):
        with pytest.raises((ArithmeticError, AssertionError, LockStepError, ValueError)):
            exchanging.check(case, 2)
