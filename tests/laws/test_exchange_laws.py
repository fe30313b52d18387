"""Every method and every collective goes through the laws of an exchange, as workers here."""

from __future__ import annotations

from dataclasses import replace

import pytest

import dls
from dls.exchange import methods
from reference import collectives
from reference.collectives import LockStepError
from tests import cases, exchanging, newcomers
from tests.cases import Case


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
