"""A close look at a step finds what a plain sort finds, changes no bit, and is recorded once."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from dls.exchange import clock
from dls.record import reader
from dls.record.schema import Trace
from tests.launch import launch, train_all
from tests.mpi.test_bits import loaded

COMMON = "--density 0.02 --batch-size 8 --threads 1 --mlp-widths 12,8 --check-every 0"
METHODS = (
    "dense",
    "global-topk --backend numpy",
    "layerwise-topk --bucket-size 1",
    "dls",
    "dls --backend numpy --on-nan skip",
)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_looking_closely_finds_the_share_changes_no_bit_and_is_recorded_once(
    ranks: int, tmp_path: Path
) -> None:
    command = []
    for number, method in enumerate(METHODS):
        plain, closely = tmp_path / f"plain{number}", tmp_path / f"closely{number}"
        command += [
            f"{COMMON} --method {method} --steps 10 --out {plain}",
            (
                f"{COMMON} --method {method} --steps 7 --checkpoint-every 5 --diagnose-every 2"
                f" --trace-every 3 --out {closely}"
            ),
            f"--out {closely} --resume --steps 10",
        ]
    done = launch([(ranks, [Path(__file__).with_name("shares.py"), *command])], tmp_path)
    assert done.status == 0, done.err
    assert all(f"<checked {rank}>" in done.out for rank in range(ranks))
    for number, method in enumerate(METHODS):
        states = [loaded(tmp_path / f"{name}{number}", ranks) for name in ("plain", "closely")]
        for a, b in zip(*states, strict=True):
            assert all(a[name].tobytes() == b[name].tobytes() for name in a), method
        plain, closely = (
            reader.read(tmp_path / f"{name}{number}" / "trace.h5") for name in ("plain", "closely")
        )
        assert len(plain.diagnostics["step"]) == 0
        assert closely.steps["step"].tolist() == [3, 6, 9]
        check(closely, ranks, all_of_it=method.split()[0] in ("dense", "global-topk"))


def check(found: Trace, ranks: int, all_of_it: bool) -> None:
    rows, layers = found.diagnostics, found.header.layer_count
    assert rows["step"].tolist() == [2, 4, 6, 8, 10]
    assert rows["global_share"].shape == (5, ranks)
    assert (rows["global_share"] == 1).all() if all_of_it else (rows["global_share"] <= 1).all()
    assert (rows["global_share"] > 0).any()
    begin, end = rows["begin"], rows["end"]
    assert begin.shape == end.shape == (5, ranks, layers, len(clock.OF_LAYERS))
    assert np.isfinite(begin).all() and np.isfinite(end).all()
    assert (begin >= 0).all() and (begin <= end).all()
    backward, select, exchange, _ = np.moveaxis(end, -1, 0)
    assert (np.diff(backward, axis=-1) <= 0).all()  # the last layer's gradient is complete first
    assert (
        (backward <= begin[..., 1]).all()
        and (select <= begin[..., 2]).all()
        and (exchange <= begin[..., 3]).all()
    )


def test_a_trace_without_diagnostics_is_read_and_gone_on_with(tmp_path: Path) -> None:
    """Those of before there were any."""
    first, second = (
        f"{COMMON} --steps 4 --out {tmp_path}/old",
        f"--out {tmp_path}/old --resume --steps 8 --diagnose-every 4",
    )
    train_all(2, [first], tmp_path)
    with h5py.File(tmp_path / "old" / "trace.h5", "r+") as file:
        del file["diagnostics"]
    assert reader.read(tmp_path / "old" / "trace.h5").diagnostics["begin"].shape == (0, 2, 3, 4)
    train_all(2, [second], tmp_path)
    found = reader.read(tmp_path / "old" / "trace.h5")
    assert (found.steps["step"].tolist(), found.diagnostics["step"].tolist()) == (
        [*range(1, 9)],
        [8],
    )
