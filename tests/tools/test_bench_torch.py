"""`python -m dls.bench torch`: what it compares, measures, judges and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dls.bench import __main__ as bench
from dls.bench import torch_report, torch_targets
from dls.bench.torch_names import check, hook_of, model_and_batch
from dls.bench.torch_network import RaceRow, TorchRow, _blamed, _figures, last_words, rows_in
from dls.cli import UsageError
from dls.tools.hosts import HostsError
from dls.tools.hosts import check as check_hosts

ROW = TorchRow("gpt", 4, "1gbit", 2, "dls", rounds=5, step_ms=110.0, by_none=1.1, by_ddp=0.4)
ROW = replace(ROW, step_low_ms=108.0, step_high_ms=115.0, by_none_low=1.08, by_none_high=1.15)


def measured(tmp_path: Path, *args: str) -> list[dict[str, Any]]:
    path = tmp_path / "rows.json"
    common = ["--models", "small/4", "--steps", "2", "--block", "1", "--json", str(path)]
    assert bench.main(["torch", *common, *args]) == 0
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def hosts_or_memory() -> str:
    """A rate of links where this process may make hosts, else ranks without any."""
    try:
        check_hosts()
    except HostsError:
        return "memory"
    return "1gbit"


def test_contenders_take_turns_on_two_ranks(tmp_path: Path) -> None:
    """All kinds of them, over a network where there can be one; the one that fails is named."""
    rate = hosts_or_memory()
    names = ["none", "ddp", "ddp/fp16", "ddp/powersgd=1/bucket_mb=5", "ddp/topk=0.1", "dense"]
    names += ["dls", "dls/at-end"]
    markdown, chart = tmp_path / "rows.md", tmp_path / "rows.png"
    files = ["--markdown", str(markdown), "--chart", str(chart)]
    rows = measured(tmp_path, "--rates", rate, "--contenders", ",".join(names), *files)
    assert [row["contender"] for row in rows] == names
    assert not [row["failed"] for row in rows if "failed" in row]
    assert {row["rounds"] for row in rows} == {2}
    assert rows[0]["step / none"] == rows[1]["step / ddp"] == 1
    losses = {row["contender"]: row["loss"] for row in rows}
    assert losses["ddp"] == pytest.approx(losses["dense"], rel=1e-5)
    assert losses["dls"] == losses["dls/at-end"]
    assert losses["ddp/fp16"] == pytest.approx(losses["ddp"], rel=1e-2)
    assert losses["none"] != pytest.approx(losses["ddp"], rel=1e-3)
    if rate != "memory":
        sent = {row["contender"]: row["kB sent"] for row in rows}
        values = rows[0]["parameters"]
        for dense in ("ddp", "dense"):
            assert 4 * values / 1000 < sent[dense] < 5 * values / 1000
        assert sent["none"] < sent["dls"] < sent["ddp/fp16"] < 0.6 * sent["ddp"]
    assert "| ddp/powersgd=1/bucket_mb=5 |" in markdown.read_text()
    assert chart.stat().st_size > 1000


def test_what_is_learned_in_a_second_and_resuming(tmp_path: Path) -> None:
    """On one rank without a network; the second time nothing is measured, and nothing is lost of
    the file from which it goes on and to which it writes.
    """
    alone = ["--rates", "memory", "--hosts", "1", "--contenders", "none,layerwise-topk"]
    first = measured(tmp_path, *alone, "--seconds", "0.05")
    assert [row["contender"] for row in first] == ["none", "layerwise-topk"]
    for row in first:
        assert row["steps"] >= 1
        assert 0 < row["loss"] < 10
        assert 0 <= row["accuracy"] <= 1
    again = ["--seconds", "9999", "--resume", str(tmp_path / "rows.json")]
    assert measured(tmp_path, *alone, *again) == first


def test_figures_are_of_the_same_round() -> None:
    """The machine slows down in the second of three rounds; the ratios do not see it."""
    rounds = {
        "none": [[0.1, 0, 3], [0.4, 0, 2], [0.1, 0, 1]],
        "ddp": [[0.2, 9000, 3], [0.8, 9000, 2], [0.2, 9000, 1.5]],
    }
    figures = _figures("ddp", rounds)
    assert figures["step, ms"] == pytest.approx(200)
    assert figures["step / none"] == figures["step / none, upper quartile"] == pytest.approx(2)
    assert figures["exposed, ms"] == pytest.approx(100)
    assert (figures["kB sent"], figures["loss"], figures["step / ddp"]) == (9, 1.5, 1)
    assert _figures("dls", rounds) == {}


def test_names() -> None:
    assert hook_of("ddp/powersgd=4/bucket_mb=5") == ("powersgd", 4, 5)
    assert hook_of("ddp") == ("", 0, 0)
    for name in ("ddp/fp16", "none", "dls/density=0.001", "dense"):
        assert check(name) == name
    for wrong in ("ddp/fp8", "ddp/topk", "ddp/fp16=2", "ddp/powersgd=x", "nothing", "dls/x=1"):
        with pytest.raises(UsageError):
            check(wrong)
    assert model_and_batch("resnet18/4") == "resnet18/4"
    for wrong in ("resnet18", "resnet18/0", "vgg/4"):
        with pytest.raises(ValueError, match=wrong):
            model_and_batch(wrong)


def test_who_failed_and_how() -> None:
    said = "Traceback (most recent call last):\n  File x\nRuntimeError: no such hook\nrank 0 ended"
    assert last_words(said, 1) == "RuntimeError: no such hook"
    said = "terminate called after throwing an instance of 'gloo::Enforce'\n  what():  too long"
    assert last_words(said, 134) == "what():  too long"
    assert last_words("", 139) == "it ended with status 139"
    names = ["none", "ddp", "ddp/fp16", "dls"]
    assert _blamed("ddp/fp16", "words", names) == {"ddp/fp16": "words"}
    assert list(_blamed("gloo", "words", names)) == ["ddp", "ddp/fp16"]
    with pytest.raises(UsageError, match="before any"):
        _blamed("start", "words", names)


def test_rows_come_back(tmp_path: Path) -> None:
    failed = TorchRow("gpt", 4, "1gbit", 2, "ddp", failed="RuntimeError: words")
    race = RaceRow("gpt", 4, "1gbit", 2, "dls", 10.0, steps=3, loss=2.0, accuracy=0.5)
    rows = [ROW, failed, race]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [row.to_json() for row in rows]}))
    assert rows_in(path) == rows
    path.write_text('[{"model": "gpt"}]')
    with pytest.raises(UsageError, match="no rows"):
        rows_in(path)


def test_the_chart_has_what_is_asked_for_and_the_file_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is in the file, so nothing is measured."""
    rows = [ROW, replace(ROW, contender="ddp"), replace(ROW, rate="100mbit")]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row.to_json() for row in rows]))
    drawn: list[list[TorchRow]] = []
    monkeypatch.setattr(torch_report, "draw", lambda rows, path: drawn.append(rows))
    asked = ["--models", "gpt/4", "--rates", "1gbit", "--contenders", "none,dls"]
    files = ["--resume", str(path), "--json", str(path), "--chart", str(tmp_path / "rows.png")]
    assert bench.main(["torch", *asked, *files]) == 0
    assert drawn == [[ROW]]
    assert rows_in(path) == rows


def judged(*rows: TorchRow) -> dict[str, str]:
    return {row.target: row.reached for row in torch_targets.judge(rows)}


def test_targets() -> None:
    none = replace(ROW, contender="none", step_ms=100.0, by_none=1.0, by_ddp=0.4)
    ddp = replace(ROW, contender="ddp", step_ms=250.0, exposed_ms=150.0, by_none=2.5, by_ddp=1.0)
    hook = replace(ddp, contender="ddp/fp16", by_ddp=0.3)
    assert judged(ROW, none, ddp, hook) == {
        "dls / without communication": "yes",
        "dls / ddp, which waits 60% of its step": "yes",
        "dls / ddp": "yes",
        "dls / ddp/fp16": "no",
    }
    little = replace(ddp, exposed_ms=20.0)
    assert judged(replace(ROW, by_none=1.2), little) == {"dls / without communication": "no"}
    assert judged(replace(ROW, rate="100mbit"), replace(little, rate="100mbit")) == {}
    memory = [replace(row, rate="memory") for row in (ROW, ddp)]
    assert judged(*memory) == {"dls / ddp, in shared memory": "yes"}
    alone = replace(ROW, hosts=1, rate="memory", contender="dense", by_none=1.02)
    assert judged(alone) == {"dense on one rank / plain loop": "yes"}


def test_a_failure_stands_in_the_tables(tmp_path: Path) -> None:
    failed = TorchRow("gpt", 4, "1gbit", 2, "ddp/fp16", failed="RuntimeError: words")
    torch_report.write_markdown([ROW, failed], tmp_path / "rows.md")
    assert "| ddp/fp16 | failed: RuntimeError: words |" in (tmp_path / "rows.md").read_text()
