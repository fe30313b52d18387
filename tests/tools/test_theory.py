"""Laws of what `dls.theory` measures: variances with known answers, error figures, both properties
against brute force.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dls.cli import UsageError
from dls.tasks import data, models
from dls.tasks.batches import Batches
from dls.theory import __main__ as theory
from dls.theory import errors as theory_errors
from dls.theory import forms, networks, properties, recording
from dls.theory import sentences as theory_sentences
from dls.theory import variance as theory_variance
from dls.theory.forms import FORMS
from dls.theory.networks import LINEAR, Chain, Stage
from dls.theory.rows import ErrorRow, FixedRow, RatioRow, RunRow, from_json, of_kind
from dls.theory.variance import Plan
from reference import adjustment, methods, nn, ops, variance
from reference.cluster import Cluster
from tests.launch import ROOT
from tests.strategies import INT, QUICK, SLOW, layers_and_k, vectors

DIGITS = data.load("digits")


def plan(**changes: Any) -> Plan:
    return Plan(
        **{"dataset": DIGITS, "seeds": 2, "batches": 2, "batch_size": 16, "steps": (0,), "lr": 0.01}
        | changes
    )


def stack(inputs: int, widths: list[int], relu: bool, seed: int) -> models.Model:
    net = models.Builder((inputs, 1, 1), np.random.default_rng(seed), nn)
    for width in widths[:-1]:
        net.linear(width)
        if relu:
            net.relu()
    net.linear(widths[-1])
    return models.Model("stack", (inputs, 1, 1), 1, net, nn, np.float32)


def white_variances(model: models.Model, images: int, seed: int) -> np.ndarray:
    """Of white images, and white gradients of the last layer's output, neither of them the weights'
    own numbers.
    """
    rng = np.random.default_rng([1, seed])
    logits = model.forward(
        rng.standard_normal((images, *model.input_size), dtype=np.float32), training=True
    )
    model.backward(rng.standard_normal(logits.shape, dtype=np.float32), lambda layer: None)
    return theory_variance.weight_variances(model)


# ------------------------------------------------------------------ measuring


def test_the_variance_of_one_linear_layer_by_hand() -> None:
    """∂f/∂W = mean over the batch of (softmax(W x) − onehot) xᵀ; biases are left out."""
    model = stack(64, [10], relu=False, seed=3)
    images, labels = Batches(DIGITS, 0, 16, 0, 1).batch(0)
    x = images.reshape(16, 64, 1, 1)
    theory_variance.differentiate(model, x, labels)
    w = model.parameters[:640].reshape(10, 64).astype(np.float64)
    flat = x.reshape(16, 64).astype(np.float64)
    exponentials = np.exp(flat @ w.T)
    delta = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(10)[labels]
    assert theory_variance.weight_variances(model) == pytest.approx(
        [(delta.T @ flat / 16).var()], rel=1e-4
    )


def test_the_variances_of_a_linear_network_are_known() -> None:
    """Without ReLU, He's weights double E[o²] from layer to layer, and Var(∂f/∂z) grows by 2d/c
    from the back.
    """
    images, widths = 100, [200, 400, 100, 300]
    sizes = [300, *widths]
    measured = np.mean(
        [white_variances(stack(300, widths, False, s), images, s) for s in range(4)], axis=0
    )
    back = 1.0
    for layer in reversed(range(4)):
        assert measured[layer] == pytest.approx(images * 2.0**layer * back, rel=0.15)
        back *= 2 * sizes[layer + 1] / sizes[layer]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("widths", [[300] * 6, [150, 300, 150, 300, 600, 150]])
def test_white_signals_follow_the_linear_form(relu: bool, widths: list[int]) -> None:
    """Where all that the theory assumes is true; equal layers are the case of ratio 1."""
    measured = np.mean(
        [white_variances(stack(300, widths, relu, s), 100, s) for s in range(4)], axis=0
    )
    for (c, d), (before, after) in zip(pairwise(widths), pairwise(measured), strict=True):
        assert theory_errors.error(after / before, variance.eq9_ratio(c, d)) < 0.4


def test_equal_layers_on_images_have_ratios_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.CHAINS, "stack", Chain((Stage(256, LINEAR),) * 5))
    rows = [
        row for row in theory_variance.measure("stack", plan(seeds=4)) if "last" not in row.where
    ]
    assert len(rows) == 4
    for row in rows:
        assert row.measured and row.log2_error
        assert abs(math.log2(row.measured)) < 0.4 + 3 * row.log2_error


def test_a_pair_has_what_its_seeds_gave() -> None:
    settings = plan(seeds=3, steps=(0, 2))
    rows = list(theory_variance.measure("mlp", settings))
    variances = np.array(
        [theory_variance.measure_seed("mlp", settings, seed)[0] for seed in range(3)]
    )
    assert variances.shape == (3, 2, 3)
    assert [(row.step, row.layer) for row in rows] == [
        (s, n) for s in (0, 2) for n in ("linear2", "linear3")
    ]
    ratios = (variances[:, :, 1:] / variances[:, :, :-1]).reshape(3, 4)
    for row, seeds in zip(rows, ratios.T, strict=True):
        assert row.measured == pytest.approx(math.prod(seeds) ** (1 / 3))
        assert row.log2_error == pytest.approx(np.std(np.log2(seeds), ddof=1) / math.sqrt(3))


def test_training_is_plain_sgd_and_measured_on_the_batches_to_come() -> None:
    settings = plan(steps=(0, 2))
    model, batches = networks.build("mlp", DIGITS, 1), Batches(DIGITS, 1, 16, 0, 1)
    for step in range(2):
        theory_variance.differentiate(model, *batches.batch(step))
        model.parameters -= np.float32(settings.lr) * model.gradients
    expected, loss = theory_variance.mean_variances(model, [batches.batch(2), batches.batch(3)])
    variances, losses = theory_variance.measure_seed("mlp", settings, 1)
    assert variances[1] == pytest.approx(expected) and losses[1] == pytest.approx(loss)


def test_what_diverges_is_left_out_and_named() -> None:
    rows = list(theory_variance.measure("strides", plan(steps=(0, 2), lr=1e6, seeds=1, batches=1)))
    broken = [row for row in rows if row.measured is None]
    assert (
        broken and {row.step for row in broken} == {2} and all(row.loss is None for row in broken)
    )
    summary = list(theory_errors.summarise(rows))
    json.dumps([row.to_json() for row in (*rows, *summary)], allow_nan=False)
    assert {row.pairs for row in summary if row.step == 2} == {0}
    assert any(
        "strides diverged within 2" in line
        for line in theory_sentences.sentences([*rows, *summary])
    )


# ------------------------------------------------------------------ the networks and their pairs


def where(name: str) -> list[tuple[str, ...]]:
    return [pair.where for pair in networks.pairs(name, networks.build(name, DIGITS, 0))]


def test_what_stands_between_neighbours() -> None:
    assert where("strides") == [("first",), ("stride",), (), ("stride",), (), ("last", "flatten")]
    assert where("pooling") == [("first",), ("pooling",), (), ("pooling",), ("last", "flatten")]
    assert where("kernels")[:2] == [("first", "other kernel"), ("other kernel",)]
    assert where("kernels-norm")[1] == ("other kernel", "batch norm")
    assert where("equal/raw")[:2] == [("first", "raw images"), ()]
    assert where("average")[-1] == ("last", "average")
    assert where("mlp") == [("first",), ("last",)]


@pytest.mark.parametrize("name", [*networks.CHAINS, "mlp", "lenet", "cnn"])
def test_pairs_are_neighbours(name: str) -> None:
    model = networks.build(name, DIGITS, 0)
    weights = [layer for layer in model.layers if layer.kind != "batch_norm"]
    pairs = networks.pairs(name, model)
    assert [(pair.previous, pair.layer) for pair in pairs] == list(pairwise(weights))
    assert all(pair.layer.channels_in == pair.previous.outputs for pair in pairs)


def test_raw_images_are_the_pixels_at_a_mean_square_of_one() -> None:
    pixels = DIGITS.train_images
    normalised = DIGITS.normalise(pixels)
    assert networks.prepare("equal", DIGITS, normalised) is normalised
    raw = networks.prepare("equal/raw", DIGITS, normalised)
    assert raw.dtype == np.float32 and np.square(raw, dtype=np.float64).mean() == pytest.approx(
        1, rel=1e-3
    )
    assert raw == pytest.approx(pixels * (raw.max() / pixels.max()), abs=1e-5)


def test_only_chains_have_neighbours() -> None:
    with pytest.raises(UsageError, match="shortcuts"):
        networks.build("resnet20", DIGITS, 0)


# ------------------------------------------------------------------ predicting


def test_predictions_are_the_references() -> None:
    """Of a linear layer behind a flatten, too: its inputs for the paper's forms, its channels for
    the corrected one.
    """
    model = networks.build("kernels", DIGITS, 0)
    *_, last = networks.pairs("kernels", model)
    c, d, k = last.layer.inputs, last.layer.outputs, last.previous.kernel
    assert c == 32 * 16 * 16 and last.layer.channels_in == 32
    predicted = forms.predict(last)
    assert predicted == {
        "Eq. 8": variance.eq8_ratio(c, d, 1, k),
        "Eq. 9": variance.eq9_ratio(c, d),
        "corrected": variance.corrected_ratio(32, d),
        "all equal": 1.0,
    }


ratio = st.floats(1e-6, 1e6)


@QUICK
@given(ratio, ratio, st.floats(0.01, 100))
def test_error_counts_doublings(measured: float, predicted: float, factor: float) -> None:
    error = theory_errors.error
    assert error(measured, measured) == 0
    assert error(2 * measured, measured) == pytest.approx(1) == error(measured, 2 * measured)
    assert error(measured, predicted) == pytest.approx(error(predicted, measured), abs=1e-9)
    assert error(factor * measured, factor * predicted) == pytest.approx(
        error(measured, predicted), abs=1e-9
    )


def ratio_row(
    layer: str,
    measured: float | None,
    predicted: float,
    noise: float | None = 0.5,
    where: Sequence[str] = (),
    **others: float,
) -> RatioRow:
    return RatioRow(
        network="n",
        step=0,
        layer=layer,
        previous="p",
        kinds="a to b",
        where=where,
        loss=1.0,
        measured=measured,
        log2_error=noise,
        predicted=dict.fromkeys(FORMS, predicted) | others,
    )


def test_error_figures_by_hand() -> None:
    rows = [
        ratio_row("a", 2.0, 1.0),
        ratio_row("b", 0.25, 2.0, noise=None),
        ratio_row("c", None, 1.0),
        ratio_row("d", 1.0, 1.0),
    ]
    figures = theory_errors.errors(0, "all", "all pairs", rows)
    assert figures.pairs == 3 and figures.noise == 0.5
    assert set(figures.forms) == set(FORMS)
    for form in figures.forms.values():
        assert form.mean == pytest.approx(4 / 3)
        assert form.factor == pytest.approx(2 ** (-2 / 3))
        assert (form.worst, form.worst_by) == ("n b", 3.0)


def test_places_are_counted_once_each() -> None:
    rows = [
        ratio_row("a", 1.0, 1.0, where=["first", "stride"]),
        ratio_row("b", 2.0, 1.0),
        ratio_row("c", 4.0, 1.0, where=["stride", "batch norm"]),
    ]
    found = {row.name: row for row in theory_errors.summarise(rows) if row.of == "place"}
    expected = {
        "inner": ["b"],
        "first": ["a"],
        "stride": ["a"],
        "stride, batch norm": ["c"],
        "batch norm": ["c"],
    }
    assert found.keys() == expected.keys()
    for name, layers in expected.items():
        there = [row for row in rows if row.layer in layers]
        assert theory_errors.errors(0, "place", name, there) == found[name]


def test_forms_that_say_the_same_are_nearest_together() -> None:
    close = {"corrected": 1.9 * (1 + 1e-13), "Eq. 9": 1.9}  # up to rounding
    rows = [ratio_row("a", 2.0, 1.0, **close)]
    (row,) = [row for row in theory_errors.summarise(rows) if row.of == "all"]
    assert theory_sentences.nearest(row) == ["Eq. 9", "corrected"]
    assert "Eq. 9 = corrected" in theory_sentences.sentences([*rows, row])[0]


# ------------------------------------------------------------------ the properties


def chosen(v: list[np.ndarray], k: np.ndarray) -> set[tuple[int, int]]:
    return {
        (layer, int(i))
        for layer, (index, _) in enumerate(methods.layerwise_topk(v, k))
        for i in index
    }


@QUICK
@given(layers_and_k())
def test_overlap_is_that_of_the_chosen_entries(case: tuple[list[np.ndarray], np.ndarray]) -> None:
    v, k = case
    assume(k.sum())
    wanted = {
        (layer, int(i))
        for layer, (index, _) in enumerate(methods.global_topk(v, int(k.sum())))
        for i in index
    }
    share = len(chosen(v, k) & wanted) / len(wanted)
    assert properties.overlap(k, adjustment.optimal_adjustment(v, k)) == pytest.approx(share)


@SLOW
@given(layers_and_k())
def test_properties_on_nasty_layers(case: tuple[list[np.ndarray], np.ndarray]) -> None:
    """Property 1: the set size never grows.

    Property 2: no pair keeps more than half. What is settled stays so.
    """
    v, k = case
    assume(k.sum())
    done = properties.adjust_fixed(v, k, 60)
    assert done.grew == 0
    assert done.largest_pair_factor is None or done.largest_pair_factor <= 0.5
    assert len(done.set_sizes) == len(done.overlaps) == len(done.pair_factors) + 1 == done.count + 1
    t = adjustment.fresh_thresholds(v, k)
    settled = None
    for _ in range(80):
        if settled is None and properties.is_settled(v, k, t):
            settled = k
        k, t = adjustment.one_step_adjustment(v, k, t)
        assert settled is None or k.tolist() == settled.tolist()
    if settled is not None:
        choices = methods.layerwise_topk(v, k), methods.global_topk(v, int(k.sum()))
        own, best = (
            np.sort(np.abs(np.concatenate([values for _, values in choice]))).tolist()
            for choice in choices
        )
        assert own == best


@pytest.mark.parametrize(
    ("other", "t", "settled"),
    [
        ([2.0, 0.5], [2.5, 2.0], True),  # all from the lowest threshold up are chosen
        (
            [2.0, 0.5],
            [1.0, 1.5],
            True,
        ),  # none below the highest is, though one at the lowest is not chosen
        ([2.0, 0.5], [1.0, 2.0], True),
        ([0.75, 0.5], [1.0, 0.75], False),  # 1.0 belongs to Global Top-k, 0.75 does not
        ([0.75, 0.5], [3.0, 0.6], False),
    ],
)
def test_what_is_settled_by_hand(other: list[float], t: list[float], settled: bool) -> None:
    v = [np.array([3.0, -1.0], np.float32), np.array(other, np.float32)]
    assert properties.is_settled(v, np.array([1, 1]), np.array(t)) is settled


@SLOW
@given(st.integers(2, 7), st.integers(0, 2**31), st.floats(0.01, 0.5))
def test_repeated_adjustments_reach_global_topk(count: int, seed: int, density: float) -> None:
    """Brute force: the magnitudes chosen at the end are the K largest of all; the first time and
    for good are told apart.
    """
    rng = np.random.default_rng(seed)
    v = [
        (rng.standard_normal(n) * rng.exponential()).astype(np.float32)
        for n in rng.integers(20, 200, count)
    ]
    sizes = [layer.size for layer in v]
    k = methods.split_budget(max(1, round(density * sum(sizes))), sizes)
    done = properties.adjust_fixed(v, k, 2000)
    largest = np.sort(np.abs(np.concatenate(v)))[::-1][: k.sum()]
    t = adjustment.fresh_thresholds(v, k)
    for number, share in enumerate(done.overlaps):
        own = np.concatenate([values for _, values in methods.layerwise_topk(v, k)])
        common = np.isin(np.abs(own), largest).sum() / k.sum()
        assert share == pytest.approx(common)
        assert done.set_sizes[number] == adjustment.set_size(t)
        assert properties.is_settled(v, k, t) == (
            number == done.count
        )  # it stops there, and not before
        k, t = adjustment.one_step_adjustment(v, k, t)
    assert done.equal_from is not None
    first = properties.first_with(done.overlaps, 1.0)
    assert first is not None and first <= done.equal_from <= done.count
    assert done.overlaps[done.equal_from :] == [1.0] * (done.count + 1 - done.equal_from)


@QUICK
@given(vectors(min_size=2), vectors(min_size=2), st.data())
def test_two_layers_halve_the_set_size(
    one: np.ndarray, other: np.ndarray, draw: st.DataObject
) -> None:
    """With one pair the set size is that pair's difference, so Property 2 bounds it too."""
    v = [one, other]
    k = np.array([draw.draw(st.integers(0, layer.size)) for layer in v], dtype=INT)
    assume(k.sum())
    done = properties.adjust_fixed(v, k, 30)
    rounding = np.spacing(max(ops.kth_largest(layer, 1) for layer in v))
    for before, after in pairwise(done.set_sizes):
        assert after <= before / 2 + rounding


def test_recording_does_not_change_the_run() -> None:
    recorder = recording.record("mlp", plan(), 0.01, 4)
    model, batches = networks.build("mlp", DIGITS, 0), Batches(DIGITS, 0, 16, 0, 1)
    cluster = Cluster([model], methods.Dls(1, reserve=0), recorder.uniform)
    for step in range(4):
        before = cluster.k[0]
        v = cluster.residuals[0].copy()
        cluster.step([batches.batch(step)], plan().lr)
        v += model.gradients
        layers = [v[start:stop] for start, stop in pairwise(model.offsets)]
        row = recorder.steps[step]
        optimal = adjustment.optimal_adjustment(layers, before)
        assert row.overlap == properties.overlap(before, optimal)
        assert row.overlap_after == properties.overlap(cluster.k[0], optimal)
        assert row.set_size == adjustment.set_size(adjustment.fresh_thresholds(layers, before))
        if step + 1 in recorder.kept:
            assert np.concatenate(recorder.kept[step + 1]).tobytes() == v.tobytes()
    assert set(recorder.kept) == {1, 4}


# ------------------------------------------------------------------ the command


SMALL = [
    "--models",
    "mlp,strides",
    "--seeds",
    "2",
    "--batches",
    "1",
    "--batch-size",
    "8",
    "--steps",
    "1",
]
SMALL += ["--property-models", "mlp", "--densities", "0.01", "--record", "2"]


def test_the_command_prints_writes_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {name: tmp_path / name for name in ("rows.json", "plot.png", "report")}
    args = [
        "--json",
        str(out["rows.json"]),
        "--plot",
        str(out["plot.png"]),
        "--report",
        str(out["report"]),
    ]
    assert theory.main([*SMALL, *args]) == 0
    text = capsys.readouterr().out
    rows = json.loads(out["rows.json"].read_text())
    assert {row["table"] for row in rows} == {"settings", "ratio", "error", "fixed", "run"}
    typed = from_json(rows)
    assert [row.to_json() for row in typed] == rows
    assert of_kind(typed, ErrorRow) == list(theory_errors.summarise(of_kind(typed, RatioRow)))
    for line in theory_sentences.sentences(typed):
        assert line in text
    assert out["plot.png"].read_bytes().startswith(b"\x89PNG")
    (report,) = out["report"].iterdir()
    assert (
        re.fullmatch(r"theory-[a-z0-9-]+\.json", report.name)
        and json.loads(report.read_text())["rows"] == rows
    )


def test_the_same_options_give_the_same_figures(tmp_path: Path) -> None:
    texts = []
    for number in range(2):
        path = tmp_path / f"{number}.json"
        assert theory.main([*SMALL, "--json", str(path)]) == 0
        texts.append(path.read_text())
    assert texts[0] == texts[1]


BAD = {
    "unknown network": (["--models", "nope"], "unknown network 'nope'"),
    "no network": (["--models", ""], "unknown network ''"),
    "raw twice": (["--models", "equal/raw/raw"], "unknown network"),
    "shortcuts": (["--models", "mlp,resnet20"], "resnet20 is not a chain"),
    "shortcuts there": (["--property-models", "resnet20"], "resnet20 is not a chain"),
    "no seed": (["--seeds", "0"], "--seeds"),
    "half a seed": (["--seeds", "1.5"], "--seeds"),
    "no batch": (["--batches", "0"], "--batches"),
    "a batch beyond the data": (["--batch-size", "100000"], "--batch-size"),
    "steps backwards": (["--steps=-1"], "--steps"),
    "steps in words": (["--steps", "0,many"], "'many'"),
    "steps without end": (["--steps", "9" * 5000], "--steps"),
    "no density": (["--densities", "0"], "(0, 1]"),
    "density above 1": (["--densities", "0.1,1.5"], "1.5"),
    "density nan": (["--densities", "nan"], "nan"),
    "density of no value": (
        ["--densities", "0.000001", "--property-models", "mlp"],
        "rounds to no value",
    ),
    "rate 0": (["--lr", "0"], "--lr"),
    "rate nan": (["--lr", "nan"], "--lr"),
    "rate inf": (["--lr", "inf"], "--lr"),
    "unknown data": (["--dataset", "nope"], "nope"),
    "data that is not there": (
        ["--dataset", "mnist", "--data-dir", "/nonexistent"],
        "/nonexistent",
    ),
    "json nowhere": (["--json", "/nonexistent/rows.json"], "/nonexistent/rows.json"),
    "json to a folder": (["--json", "/"], "/"),
    "plot nowhere": (["--plot", "/nonexistent/a.png"], "/nonexistent/a.png"),
    "plot of no kind": (["--plot", "a.xyz"], "a.xyz"),
    "report on a file": (["--report", "/dev/null/x"], "/dev/null"),
    "unknown flag": (["--nope"], "--nope"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_before_any_measuring(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theory_variance, "measure_seed", lambda *_: pytest.fail("it measures"))
    args, words = BAD[name]
    assert theory.main(args) == 2
    captured = capsys.readouterr()
    assert (
        captured.out == ""
        and captured.err.startswith("dls.theory: ")
        and captured.err.count("\n") == 1
    )
    assert words in captured.err


def test_without_matplotlib_a_plot_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert theory.main(["--plot", "a.png"]) == 2
    assert (
        capsys.readouterr().err == "dls.theory: --plot needs matplotlib: pip install 'dls[plot]'\n"
    )


# ------------------------------------------------------------------ what is committed


COMMITTED = sorted((ROOT / "runs" / "results").glob("theory-*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_figures_follow_from_the_committed_ratios(path: Path) -> None:
    rows = from_json(json.loads(path.read_text())["rows"])
    again = list(theory_errors.summarise(of_kind(rows, RatioRow)))
    for row, expected in zip(of_kind(rows, ErrorRow), again, strict=True):
        assert row.to_json() == {
            name: pytest.approx(value) if isinstance(value, float) else value
            for name, value in expected.to_json().items()
        }


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_rows_are_read_and_written_without_a_loss(path: Path) -> None:
    rows = json.loads(path.read_text())["rows"]
    assert [row.to_json() for row in from_json(rows)] == rows


def markdown(errors: list[ErrorRow]) -> list[str]:
    """The lines of docs/theory.md's tables: errors of the forms at initialisation, then after the
    last number of steps.
    """
    names = dict.fromkeys((row.of, row.name) for row in errors)
    found = [[row for row in errors if (row.of, row.name) == name] for name in names]
    lines = []
    for first, *_, last in found:
        figures = [first.forms[form].mean for form in FORMS] + [first.forms["corrected"].factor]
        figures += [last.forms[form].mean for form in FORMS] + [last.forms["corrected"].factor]
        written = [f"{figure:.2f}" for figure in figures]
        lines.append(" | ".join([f"| {first.name}", str(first.pairs), *written]) + " |")
    return lines


def markdown_fixed(row: FixedRow) -> str:
    """Its line for a gradient that stays."""
    reached = [row.reached_90, row.reached_99, row.equal_from]
    figures = [
        f"{row.overlaps[0]:.2f}",
        *map(str, reached),
        f"{row.largest_pair_factor:.3f}",
        f"{row.mean_factor:.2f}",
    ]
    return (
        f"| {row.network} | {row.layers} | {row.density:g} | {row.budget:,} | {row.step}"
        f" | {' | '.join(figures)} |"
    )


def markdown_run(row: RunRow) -> str:
    """Its line for a run's changing gradients: means over the steps."""
    overlaps = (row.overlaps, row.overlaps_after, row.overlaps_layerwise)
    figures = [f"{fmean(values):.2f}" for values in overlaps]
    figures.append(f"{fmean(row.set_sizes) / fmean(row.set_sizes_layerwise):.2f}")
    figures.append("never" if row.equal_at is None else str(row.equal_at))
    return f"| {row.network} | {row.density:g} | {row.budget:,} | {' | '.join(figures)} |"


def test_the_documents_figures_are_the_committed_ones() -> None:
    (path,) = COMMITTED
    rows = from_json(json.loads(path.read_text())["rows"])
    expected = markdown(of_kind(rows, ErrorRow))
    expected += [markdown_fixed(row) for row in of_kind(rows, FixedRow)]
    expected += [markdown_run(row) for row in of_kind(rows, RunRow)]
    text = (ROOT / "docs" / "theory.md").read_text().splitlines()
    assert [line for line in expected if line not in text] == []
