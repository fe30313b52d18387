"""Cases of what is recorded of a run."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dls.comm.base import Comm
from dls.inspect.__main__ import main as inspect
from dls.record.reader import read
from tests.torch.cases import attach, case, loss, net, raises
from tests.torch.going_on import folder_of


def record(comm: Comm, out: Path, resume: bool, until: int, **options: Any) -> None:
    model = net()
    sync = attach(model, comm, out=out, diagnose_every=2, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if resume:
        assert sync.resume(out, optimizer=optimizer) > 0
    while sync.steps < until:
        value = loss(model, comm.rank, sync.steps)
        value.backward()
        sync.log(loss=value, lr=0.1)
        sync.wait()
        optimizer.step()
        optimizer.zero_grad()
    sync.log_evaluation(loss=float(comm.rank), accuracy=0.5)
    sync.save(out, optimizer=optimizer)
    raises(
        ValueError, "accuracy cannot be logged; loss, epoch, lr can", lambda: sync.log(accuracy=1)
    )
    sync.close()


@case
def a_trace_holds_the_run_and_can_be_looked_at(comm: Comm) -> None:
    out = folder_of(comm)
    record(comm, out, resume=False, until=4)
    record(comm, out, resume=True, until=6)
    found = read(out / "trace.h5")
    steps, header = found.steps, found.header
    assert steps["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert sorted(header.layers["name"]) == ["0", "2", "4"]
    assert set(header.layers["kind"]) == {"Linear"}
    assert steps["loss"].shape == (6, comm.size)
    own = [loss(net(), rank, 0).item() for rank in range(comm.size)]
    np.testing.assert_allclose(steps["loss"][0], own, rtol=1e-6)
    assert np.isfinite(steps["loss"]).all()
    assert (steps["lr"] == 0.1).all()
    assert (steps["k"].sum(axis=2) == round(0.2 * sum(header.layers["size"]))).all()
    assert (steps["threshold"] > 0).any()
    assert (steps["payload_bytes"] > 0).all()
    assert (steps["seconds/total"] > 0).all()
    for phase in ("forward", "backward", "select", "exchange", "update"):
        assert (steps[f"seconds/{phase}"][1:] > 0).any(), phase
    assert found.diagnostics["step"].tolist() == [2, 4, 6]
    assert np.isfinite(found.diagnostics["begin"]).all()
    assert found.evals["step"].tolist() == [4, 6]
    comm.allgather_objects(None)
    if comm.rank == 0:
        look_at(out)
    other = attach(net(), comm, out=out)
    loss(other.model, comm.rank, 0).backward()
    raises(ValueError, "holds the trace of another run: choose another folder", other.wait)
    other.close()
    comm.allgather_objects(None)
    folder_of(comm)


def look_at(out: Path) -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert inspect([str(out)]) == 0
        assert inspect([str(out), "--html", str(out / "page.html")]) == 0
    assert "dls" in text.getvalue() and "Sequential" in text.getvalue()
    assert (out / "page.html").stat().st_size > 10_000
