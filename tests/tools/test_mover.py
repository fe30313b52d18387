"""Progress of posted operations: how many calls of MPI it takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dls.comm import mover
from dls.comm.mover import Mover, Posted


class Network:
    """Any test of an operation that is not complete makes progress on all of them."""

    def __init__(self) -> None:
        self.tests = self.progress = 0


class Request:
    """An operation that is complete after so much progress."""

    def __init__(self, network: Network, needed: int) -> None:
        self._network, self._needed = network, needed

    def Test(self) -> bool:
        self._network.tests += 1
        if self._network.progress < self._needed:
            self._network.progress += 1
        return self._network.progress >= self._needed


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> Mover:
    """A mover without a thread."""
    stub = SimpleNamespace(Query_thread=lambda: 0, THREAD_MULTIPLE=3, Exception=OSError)
    monkeypatch.setattr(mover, "MPI", stub)
    return Mover()


def posted(network: Network, needed: list[int]) -> list[Posted]:
    """Operations of two requests each."""
    return [Posted(lambda n=n: [Request(network, n), Request(network, n)], "it") for n in needed]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_many_operations_take_few_tests(count: int, moving: Mover) -> None:
    """About one for each beside those that make progress."""
    network = Network()
    operations = posted(network, [10**6] * count)
    for each in operations:
        each.post()
    moving._under_way = list(operations)
    moving.move(tests=16)
    assert network.progress == network.tests == 16 + count
    assert not any(each.done() for each in operations)


@pytest.mark.parametrize("needed", [[3, 3, 3], [9, 1, 5], [1, 2, 40], [40, 2, 1]])
def test_what_is_complete_is_found_in_any_order(needed: list[int], moving: Mover) -> None:
    network = Network()
    operations = posted(network, needed)
    for each in operations:
        moving.begin(each)
    for _ in range(3):
        moving.move()
        complete = [network.progress >= each for each in needed]
        assert [each.done() for each in operations] == complete
    assert all(complete)
    assert moving._under_way == []
