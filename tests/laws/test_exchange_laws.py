"""Every method and every collective goes through the laws of an exchange, as workers in this process."""

from __future__ import annotations

import pytest

from tests import cases, exchanging
from tests.cases import Case


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("case", cases.every(), ids=str)
def test_every_exchange_obeys_the_laws(case: Case, ranks: int) -> None:
    exchanging.check(case, ranks)
