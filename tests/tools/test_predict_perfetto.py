"""A run's timeline for Perfetto: every message and step, where the trace has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dls.inspect import __main__ as inspect
from dls.record.load import load
from tests.launch import work_all

STEPS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("perfetto") / "run"
    flags = f"--method dls --model mlp --mlp-widths 16 --dataset digits --backend numpy --out {out}"
    work_all(2, [f"{flags} --steps {STEPS} --batch-size 16 --diagnose-every 2 --collective gtopk"])
    return out


def test_the_timeline_has_what_the_trace_has(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "timeline.json"
    assert inspect.main([str(run), "--perfetto", str(path)]) == 0
    capsys.readouterr()
    events = json.loads(path.read_text())["traceEvents"]
    blocks = [each for each in events if each["ph"] == "X"]
    recorded = load(run)
    complete = np.isfinite(recorded["messages/posted"]) & np.isfinite(recorded["messages/finished"])
    messages = [each for each in blocks if each["cat"] == "message"]
    assert len(messages) == complete.sum()
    sent = sum(each["args"]["sent"] for each in messages)
    assert sent == recorded["messages/sent"][complete].sum()
    steps = [each for each in blocks if each["cat"] == "step"]
    assert len(steps) == 2 * STEPS
    assert {each["cat"] for each in blocks} >= {"backward", "select", "selection"}
    ends = {each["name"]: each["ts"] + each["dur"] for each in steps}
    for message in messages:
        assert message["dur"] >= 0 and message["ts"] <= max(ends.values())
    named = [each for each in events if each["ph"] == "M"]
    assert {each["args"]["name"] for each in named} >= {"rank 0", "rank 1", "steps", "bucket 0"}


def test_one_run_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "timeline.json")
    assert inspect.main([str(run), str(run), "--perfetto", path]) == 2
    assert "shows one run" in capsys.readouterr().err
    assert inspect.main([str(run), "--perfetto", str(tmp_path / "trace.h5")]) == 2
    assert "ends in .json" in capsys.readouterr().err
