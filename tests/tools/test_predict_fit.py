"""`dls.bench exchange --fit`: a network measured between two ranks."""

from __future__ import annotations

from pathlib import Path

from dls.cost.store import load_network
from tests.launch import launch


def test_a_network_is_fitted_or_refused(tmp_path: Path) -> None:
    """On a busy machine there may be no fit worth having: then one line says so."""
    path = tmp_path / "net.toml"
    flags = ["exchange", "--steps", "1", "--fit", str(path)]
    done = launch([(2, ["-m", "dls.bench", *flags])], tmp_path)
    if done.status == 2:
        assert "do not describe" in done.err or "larger ones" in done.err
        assert done.err.count("\n") == 1
        assert not path.exists()
        return
    assert done.status == 0, done.err
    network = load_network(path)
    assert not network.assumed
    assert network.rate > 0
    assert "residual" in done.out
    assert "a check" in done.out


def test_one_rank_has_no_network(tmp_path: Path) -> None:
    done = launch(
        [(1, ["-m", "dls.bench", "exchange", "--fit", str(tmp_path / "net.toml")])], tmp_path
    )
    assert done.status == 2
    assert "at least two ranks" in done.err
