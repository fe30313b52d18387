"""Predictions from traces: what they say, what they are made of, and what is refused."""

from __future__ import annotations

import json
import lzma
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dls import backends
from dls.cost import profiles
from dls.cost.clock import Pattern
from dls.cost.network import Network, NetworkError, Range
from dls.cost.replay import Plan, play_all
from dls.cost.store import load_network, save_network
from dls.exchange import methods
from dls.exchange.methods.layerwise_topk import LayerwiseTopk
from dls.predict import __main__ as predict
from dls.predict import recording, rehearse, scale, validate
from dls.predict.forecast import Forecast
from dls.predict.shapes import SHAPES
from dls.record.load import load
from reference.collectives import COLLECTIVES, Net
from tests.launch import ROOT, work_all

OLD = ROOT / "tests" / "tools" / "traces" / "dls-trace-1.h5.xz"
STEPS = 8
METHODS = ("dense", "layerwise-topk", "dls", "global-topk")


def command(method: str, out: Path, more: str = "") -> str:
    return (
        f"--method {method} --model mlp --mlp-widths 32,16 --dataset digits --backend numpy"
        f" --batch-size 16 --bucket-size 1000 --density 0.1 --steps {STEPS} --out {out} {more}"
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of two workers, one of each method, and one of a single worker."""
    folder = tmp_path_factory.mktemp("predict")
    flags = [command(name, folder / name) for name in METHODS]
    flags.append(command("dls", folder / "gtopk", "--collective gtopk"))
    work_all(2, flags)
    work_all(1, [command("dls", folder / "alone")])
    return folder


def answer(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    assert predict.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert predict.main([*map(str, argv)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


# --------------------------------------------------------------------------- answers


def test_an_answer_has_every_method_and_collective(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--hosts", 4, "--rate", "10mbit", "--latency", "50us")
    found = answer(capsys, runs / "dls", *where, "--densities", "0.01")
    sparse = {(each["method"], each["collective"]) for each in found["methods"]}
    expected = {(name, by) for name in methods.names() for by in COLLECTIVES if name != "dense"}
    assert sparse == expected | {("dense", "allreduce")}
    for each in found["methods"]:
        assert 0 < each["low_ms"] <= each["step_ms"] <= each["high_ms"]
        assert each["sent_bytes"] > 0 and each["received_bytes"] > 0
        assert each["computing_ms"] <= each["step_ms"] * 1.001
    assert found["best"] == min(found["methods"], key=lambda each: each["step_ms"])
    assert found["network"]["assumed"] and not found["validated"]
    assert found["break_even"] is None or found["break_even"] > 0


def test_the_table_begins_with_a_sentence(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(runs / "dls"), "--methods", "dense,dls", "--network", "internet"]
    assert predict.main(given) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("On 2 hosts and internet, 100 Mbit/s and 30 ms ")
    assert "assumed, not measured" in shown
    assert "Outside what was validated" in shown


def test_a_slow_network_favours_sparse_methods_and_a_fast_one_does_not(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def steps(rate: str) -> dict[str, float]:
        where = ("--rate", rate, "--latency", "1us", "--methods", "dense,layerwise-topk")
        found = answer(capsys, runs / "dls", *where, "--densities", "0.01")
        return {each["method"]: each["step_ms"] for each in found["methods"]}

    slow = steps("100kbit")
    assert slow["layerwise-topk"] < slow["dense"] / 5
    assert steps("1tbit")["dense"] < slow["dense"] / 5


@pytest.mark.parametrize("name", [*METHODS, "gtopk"])
def test_bytes_of_the_same_settings_are_those_that_were_recorded(runs: Path, name: str) -> None:
    run = recording.read(runs / name)
    forecast = Forecast(run, predict._backend(run))
    plan = forecast.plan(forecast.recorded, 2)
    moves = 0.05 if run.method == "dls" else 0.01  # its k does, and a message's size a little
    assert plan.received().mean() == pytest.approx(run.received, rel=moves)
    assert plan.sent().mean() == pytest.approx(run.sent, rel=moves)


@pytest.mark.parametrize("name", METHODS)
def test_a_replay_computes_as_long_as_was_recorded(runs: Path, name: str) -> None:
    """Workers in one process have no network: what is left is what they computed."""
    run = recording.read(runs / name)
    exposed = load(runs / name)["steps/seconds/exposed"]
    for step, recorded, waited in zip(
        run.steps, run.seconds, exposed[-len(run.steps) :], strict=True
    ):
        # what was waited for before the backward pass is taken for computing
        assert (step.computing >= recorded - waited - 1e-6).all()
        assert (step.computing <= recorded + 1e-6).all()


def test_a_method_that_a_program_registers_appears_by_itself(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(LayerwiseTopk):
        """Another one."""

    monkeypatch.setitem(methods._registered, "mine", Mine)
    monkeypatch.setitem(COLLECTIVES, "other", COLLECTIVES["allgather"])
    found = answer(capsys, runs / "dls", "--methods", "mine", "--densities", "0.1")
    assert {each["collective"] for each in found["methods"]} == set(COLLECTIVES)


def test_a_picture(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "steps.svg"
    given = [str(runs / "dls"), "--methods", "dense,dls", "--plot", str(picture)]
    assert predict.main(given) == 0
    capsys.readouterr()
    assert picture.stat().st_size > 1000


# --------------------------------------------------------------------------- a recorded step

SIZE, MESSAGE = 1000, 5000
LATENCY, PER_BYTE = 1e-3, 1e-6


def synthetic(steps: int, before: float, layers: Sequence[float], message: int) -> Any:
    """A recording of two ranks whose times a pencil gives: two layers, each its own bucket and
    message of so many bytes; selection takes 2 ms, decoding 3, the update 4.
    """
    select, decode, update = 0.002, 0.003, 0.004
    travel = LATENCY + PER_BYTE * message
    rows: list[dict[str, float]] = []
    totals = np.zeros((steps, 2))
    for number in range(steps):
        ready = before + layers[1]
        first = ready + select
        second = first + layers[0]
        last = second + select
        ends = [first + travel, max(last + travel, first + 2 * PER_BYTE * message + LATENCY)]
        now = last
        for end in ends:
            now = max(now, end) + decode
        totals[number] = now + update
        for rank in (0, 1):
            for bucket, (at, selected) in enumerate([(ready, first), (second, last)]):
                own = {"step": number + 1, "rank": rank, "bucket": bucket, "round": 0}
                bytes_of = {"sent": message, "received": message}
                rows.append({**own, **bytes_of, "ready": at, "selected": selected})
    messages = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    busy = before + sum(layers) + 2 * select + 2 * decode + update
    phases = {
        "total": totals,
        "exposed": totals - busy,
        "backward": np.full_like(totals, sum(layers)),
        "decode": np.full_like(totals, 2 * decode),
        "adjust": np.zeros_like(totals),
    }
    values = {f"steps/seconds/{name}": each for name, each in phases.items()}
    values["steps/step"] = np.arange(1, steps + 1)
    values["steps/loss"] = np.ones((steps, 2))
    values["steps/payload_bytes"] = np.full((steps, 2), 2 * message)
    values["steps/received_bytes"] = np.full((steps, 2), 2 * message)
    values["layers/size"] = np.array([SIZE, SIZE])

    class Fake(SimpleNamespace):
        def __getitem__(self, name: str) -> Any:
            return values[name]

    return Fake(
        ranks=2,
        attributes={},
        messages=messages,
        steps={"loss": values["steps/loss"]},
        diagnostics={"step": []},
        layers={"name": ["one", "two"], "size": [SIZE, SIZE], "positions": [1, 1]},
        config={"method": "layerwise-topk", "density": 0.5, "bucket_size": SIZE},
    )


@pytest.mark.parametrize("message", [10, 5000, 100_000])
def test_a_replay_on_its_own_network_gives_the_recorded_step(message: int) -> None:
    """Within a millionth, where nothing disturbed it."""
    run = recording._of(synthetic(4, 0.020, [0.010, 0.015], message), "synthetic")
    step = run.steps[0]
    assert step.before == pytest.approx([0.020] * 2)
    assert step.backward[0].tolist() == pytest.approx([0.010, 0.015])
    assert step.select[0].tolist() == pytest.approx([0.002, 0.002])
    pattern = Pattern("gather", np.array([message] * 2))
    plan = Plan([bucket.layers for bucket in run.buckets], [[pattern], [pattern]])
    network = Network((Range(0, LATENCY, PER_BYTE),))
    found = play_all(run.steps, plan, network)
    assert found == pytest.approx(run.seconds.mean(axis=1).tolist(), rel=1e-6)


# --------------------------------------------------------------------------- refusals


def test_a_run_of_one_rank_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "one rank" in refused(capsys, runs / "alone")


def test_an_older_trace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.h5"
    trace.write_bytes(lzma.decompress(OLD.read_bytes()))
    assert "no messages" in refused(capsys, trace)


def test_skipped_steps_are_refused() -> None:
    found = synthetic(4, 0.02, [0.01, 0.01], 10)
    found["steps/loss"][1:] = np.nan
    assert len(recording._of(found, "some skipped").steps) == 1
    found["steps/loss"][2:] = 1.0
    found["steps/seconds/total"][:] = np.nan
    with pytest.raises(ValueError, match="no recorded step is complete"):
        recording._of(found, "incomplete")


def test_a_run_all_of_whose_steps_were_skipped_is_refused() -> None:
    found = synthetic(4, 0.02, [0.01, 0.01], 10)
    found["steps/loss"][:] = np.nan
    found.config["on_nan"] = "skip"
    with pytest.raises(ValueError, match="every recorded step was skipped"):
        recording._of(found, "all skipped")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--rate", "0mbit"], "impossible"),
        (["--rate", "fast"], "impossible"),
        (["--latency=-1s"], "impossible"),
        (["--latency", "99s"], "impossible"),
        (["--hosts", "1"], "fewer than 2"),
        (["--hosts", "5000"], "4,096 is the most"),
        (["--network", "no-such-network"], "no profile of that name"),
        (["--network", "internet", "--rate", "1gbit"], "leave out"),
        (["--methods", "no-such-method"], "expected"),
        (["--densities", "2"], "in (0, 1]"),
        (["--plot", "steps.txt"], "choose one of"),
        (["--model", "lenet"], "one of them"),
    ],
)
def test_bad_usage_is_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    assert words in refused(capsys, runs / "dls", *argv)


def test_no_run_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "one of them" in refused(capsys)
    assert str(tmp_path / "none") in refused(capsys, tmp_path / "none")
    (tmp_path / "trace.h5").write_bytes(b"no trace")
    refused(capsys, tmp_path / "trace.h5")


def test_messages_that_do_not_fit_the_buckets_are_refused() -> None:
    found = synthetic(4, 0.02, [0.01, 0.01], 10)
    found.messages["bucket"][:] = 0
    with pytest.raises(ValueError, match="do not fit"):
        recording._of(found, "odd")


def test_missing_times_are_refused() -> None:
    found = synthetic(4, 0.02, [0.01, 0.01], 10)
    found.messages["ready"][:] = np.nan
    with pytest.raises(ValueError, match="times of messages are missing"):
        recording._of(found, "odd")


def test_settings_of_another_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = synthetic(4, 0.02, [0.01, 0.01], 10)
    found.config["bucket_size"] = [1]
    monkeypatch.setattr(recording, "load", lambda path: found)
    with pytest.raises(ValueError, match="lacks what a run's trace has"):
        recording.read(Path("odd"))


# --------------------------------------------------------------------------- networks in files


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_networks_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    save_network(profiles.PROFILES[name], path, ranks=4)
    assert load_network(path) == profiles.PROFILES[name]
    assert tomllib.loads(path.read_text())["ranks"] == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "format = 'something/1'",
        "format = 'dls-network/1'",
        "format = 'dls-network/1'\nranges = []",
        "format = 'dls-network/1'\nranges = [{least=0, latency=-1, seconds_per_byte=0}]",
        "format = 'dls-network/1'\nranges = [{least=0, latency=1, seconds_per_byte=nan}]",
        "format = 'dls-network/1'\nranges = [{least=5, latency=1, seconds_per_byte=0}]",
        "not toml",
    ],
)
def test_files_that_are_no_network(text: str, tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text(text)
    with pytest.raises(NetworkError, match=r"net\.toml"):
        load_network(path)


def test_a_network_lies_between_two_fits() -> None:
    low, high = (Network((Range(0, 1e-4, each),)) for each in (8e-8, 8e-9))
    found = validate.between(low, high, 8e-8, 8e-9, 4e-8)
    assert found.ranges[0].seconds_per_byte == pytest.approx(4e-8)
    assert found.ranges[0].latency == pytest.approx(1e-4)


# --------------------------------------------------------------------------- on paper


@pytest.mark.parametrize(
    ("name", "values"),
    [("ResNet-50", 25_557_032), ("BERT-large", 335_141_888), ("7 B transformer", 6_738_415_616)],
)
def test_shapes_have_the_published_sizes(name: str, values: int) -> None:
    assert SHAPES[name]().n == values


def test_where_one_curve_overtakes_another() -> None:
    ours, theirs = {2: 1.0, 4: 3.0, 8: 9.0}, {2: 2.0, 4: 2.5, 8: 3.0}
    assert scale._overtaken(ours, theirs) == 4
    assert scale._overtaken(theirs, ours) is None


def test_a_scaled_gradient_asks_for_about_as_much() -> None:
    layout = SHAPES["ResNet-50"]()
    method = methods.load("layerwise-topk")
    setup = rehearse.Setup("layerwise-topk", layout, method.Settings(density=0.01), 4, 65_536)
    small = rehearse.scaled(setup, 500_000)
    assert small.setup.layout.n == pytest.approx(500_000, rel=0.01)
    assert [each.layers for each in small.buckets] == [each.layers for each in setup.buckets]
    asked, _ = rehearse.demand(setup, backends.load("numpy"), 500_000)
    received = sum(rehearse.expand(each, setup)[0].received()[0] for each in asked)
    expected = method(layout, setup.settings, Net(0, 4), backends.load("numpy"), setup.buckets)
    assert received == pytest.approx(expected.bytes_received(), rel=0.03)
