"""How a machine's cores are divided among its ranks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls.comm import cores
from dls.comm.cores import Grant


def granted(*masks: Sequence[int], **quotas: str) -> list[int]:
    """Every rank's share, with these masks and, for all of them, these quotas of named groups."""
    grants = [
        Grant(frozenset(mask), {name: Fraction(q) for name, q in quotas.items()}) for mask in masks
    ]
    return [cores.share(grants, own) for own in range(len(grants))]


@pytest.mark.parametrize(
    ("masks", "shares"),
    [
        ([range(8)], [8]),
        ([range(8), range(8)], [4, 4]),
        ([range(8), range(8), range(8)], [2, 2, 2]),
        ([range(8), range(8, 16)], [8, 8]),
        ([[0, 2], [1, 3], [4, 6], [5, 7]], [2, 2, 2, 2]),
        ([range(8), range(4)], [6, 2]),
        ([range(2), range(2), range(2)], [1, 1, 1]),
        ([[0], range(8)], [1, 7]),
    ],
)
def test_cores_are_divided_where_masks_overlap(
    masks: list[Sequence[int]], shares: list[int]
) -> None:
    assert granted(*masks) == shares


@pytest.mark.parametrize(
    ("ranks", "quota", "share"),
    [(1, "2", 2), (1, "7/2", 3), (1, "1/2", 1), (2, "4", 2), (2, "3", 1), (4, "100", 4)],
)
def test_a_quota_is_divided_among_those_in_its_group(ranks: int, quota: str, share: int) -> None:
    assert granted(*[range(16)] * ranks, group=quota) == [share] * ranks


def test_every_container_has_its_own_quota() -> None:
    grants = [Grant(frozenset(range(16)), {name: Fraction(6)}) for name in ("one", "two")]
    assert [cores.share(grants, own) for own in range(2)] == [6, 6]


@given(st.lists(st.frozensets(st.integers(0, 9), min_size=1), min_size=1, max_size=6))
def test_no_more_threads_than_cores_but_one_each(masks: list[frozenset[int]]) -> None:
    shares = granted(*map(sorted, masks))
    assert all(1 <= share <= len(mask) for share, mask in zip(shares, masks, strict=True))
    assert sum(share for share in shares if share > 1) <= len(frozenset().union(*masks))


def test_the_quotas_of_a_group_and_of_those_above_count(tmp_path: Path) -> None:
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "job" / "cpu.max").write_text("350000 100000\n")
    found = cores.quotas("0::/job/step\n", tmp_path)
    assert list(found.values()) == [Fraction(7, 2)]
    (inner / "cpu.max").write_text("50000 100000\n")
    assert sorted(cores.quotas("0::/job/step\n", tmp_path).values()) == [
        Fraction(1, 2),
        Fraction(7, 2),
    ]
    assert (
        cores.quotas("0::/job\n", tmp_path) == found
    )  # the same group, by whatever way one comes to it
    assert cores.quotas("0::/\n1:name=systemd:/job\n", tmp_path) == {}


def test_the_first_version_of_control_groups_too(tmp_path: Path) -> None:
    folder = tmp_path / "cpu,cpuacct" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder.parent / "cpu.cfs_quota_us").write_text("-1\n")
    (folder.parent / "cpu.cfs_period_us").write_text("100000\n")
    assert list(cores.quotas("4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n", tmp_path).values()) == [2]


@pytest.mark.parametrize("text", ["", "max\n", "many few\n", "100000 0\n", "-1 100000\n"])
def test_what_is_no_quota_limits_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores.quotas("0::/\n", tmp_path) == {}


def test_this_process_has_cores() -> None:
    assert cores.share([cores.grant()], 0) >= 1
