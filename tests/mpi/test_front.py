"""dls.Exchange under mpirun: beside others and the program's messages, and one after the other."""

from __future__ import annotations

from pathlib import Path

from tests.launch import ROOT, launch


def test_exchanges_keep_to_themselves(tmp_path: Path) -> None:
    done = launch([(2, [ROOT / "tests" / "mpi" / "front.py"])], tmp_path)
    assert (done.status, done.out.count("done")) == (0, 2), done.err
