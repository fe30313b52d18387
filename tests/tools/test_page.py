"""The page and its pictures: what stands in them, whom they trust, and that they need nothing but
themselves.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dls.exchange import clock
from dls.inspect import __main__ as inspect
from dls.inspect import figures, groups, page, pictures, ranks, reading, sheets, summary
from dls.record import reader
from dls.record.schema import LAYER_FIELDS, WORDS, Header
from dls.record.writer import Writer
from tests.tools.test_inspect import CONFIG, header, rows, write

pytest.importorskip("matplotlib", reason="drawing needs the extra 'plot'")

HOSTILE = (
    "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)> $\\frac{1}{$ -->"
    " ]]> \x1b[31m &amp; \u4e2d"
)
VOID = {"meta", "img", "br", "hr", "link", "input"}
ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    ),
    *("p", "figure", "figcaption", "dl", "dt", "dd", "details", "summary", "pre"),
    *("svg", "g", "path", "defs", "use", "clippath", "rect", "image", "pattern"),
}


class Reader(HTMLParser):
    """Collects a page's elements, attributes and texts, and holds that elements are closed in
    order.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def config(seed: int, **settings: Any) -> str:
    """The configuration of a run, as its trace holds it."""
    found = (
        CONFIG.format(method="dls").replace("seed = 7", f"seed = {seed}") + f'out = "runs/{seed}"\n'
    )
    return found + "".join(f"{name} = {value!r}\n" for name, value in settings.items())


def diagnosed(folder: Path, steps: list[int], share: Any, ranks: int = 2) -> Path:
    """Steps that were looked at closely, put into a run's trace."""
    shape = (len(steps), ranks, 2, len(clock.OF_LAYERS))
    begin = np.broadcast_to(np.arange(4) * 0.001, shape)
    columns = {
        "step": steps,
        "global_share": np.broadcast_to(share, (len(steps), ranks)),
        "begin": begin,
        "end": begin + 0.0005,
    }
    with h5py.File(folder / "trace.h5", "r+") as file:
        for name, column in columns.items():
            file[f"diagnostics/{name}"].resize(len(steps), axis=0)
            file[f"diagnostics/{name}"][:] = column
    return folder


def seeded(tmp_path: Path, seed: int, loss: float, **about: Any) -> Path:
    """Ten steps of a run of that seed."""
    table = rows(range(1, 11), loss=loss, threshold=[1.0, 1.0 + loss])
    folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    return write(
        folder / "trace.h5",
        table,
        [(10, 1.0, 0.5 + loss / 10)],
        **({"config": config(seed)} | about),
    )


def test_a_page_needs_nothing_but_itself_and_says_what_the_tables_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = diagnosed(seeded(tmp_path, 0, 0.5), [4, 8], [[0.5, 0.75], [0.25, 0.5]])
    dense = write(
        tmp_path / "dense" / "trace.h5",
        rows([1, 2], threshold=0.0, payload_bytes=400),
        method="dense",
    )
    assert inspect.main([str(folder), str(dense), "--html", str(tmp_path / "x.html")]) == 0
    capsys.readouterr()
    text = (tmp_path / "x.html").read_text()
    found = Reader(text)
    for tag, attributes in found.tags:
        assert tag in ALLOWED, tag
        assert not any(
            name.startswith("on") or name in ("src", "srcset", "action") for name in attributes
        ), attributes
        for name in ("href", "xlink:href"):
            target = attributes.get(name, "#") or ""
            assert target.startswith(("#", "data:image/png;base64,")), target
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    policy = next(
        attributes["content"] for tag, attributes in found.tags if attributes.get("http-equiv")
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "Residual" not in found.words  # all of it is zero here
    pictured = {
        "Training loss",
        "Test accuracy",
        "Set size",
        "Threshold ratio",
        "Share of Global Top-k's choice",
    }
    pictured |= {"Test accuracy over bytes", "Test accuracy over time"}
    pictured |= {
        "Bytes beside a ring Allreduce",
        "Where a step's time went",
        "Threshold of every layer",
        "k of every layer",
    }
    pictured |= {"Step 8 on rank 0", "Step 8 on rank 1"}
    assert pictured | {"37.50%", str(folder)} <= set(found.words)
    assert sum(tag == "svg" for tag, _ in found.tags) == len(pictured) + 1  # k of dense, too


def test_the_same_runs_make_the_same_page(tmp_path: Path) -> None:
    (group,) = groups.by_seed([reading.load(seeded(tmp_path, seed, 0.5)) for seed in (0, 1)])
    for picture in pictures.of_one_group(group):
        assert sheets.svg(picture) == sheets.svg(picture)


def test_what_a_trace_says_is_text(tmp_path: Path) -> None:
    """Names of layers and folders, the configuration, hosts, versions."""
    quoted = HOSTILE.replace("\\", "\\\\").replace("\x1b", "\\u001b")
    about = {
        "config": config(0) + f'note = "{quoted}"\nmethod2 = "{quoted}"\n',
        "version": HOSTILE,
        "commit": HOSTILE,
    }
    folder = seeded(tmp_path, 0, 0.5, **about, hosts=[HOSTILE] * 2, started=HOSTILE)
    with h5py.File(folder / "trace.h5", "r+") as file:
        for row in (0, 1):
            file["layers/name"][row] = f"_{row}{HOSTILE}"
        file["layers/kind"][0] = HOSTILE
    named = folder.rename(tmp_path / HOSTILE.replace("/", "_"))
    run = reading.load(diagnosed(named, [5], 0.5))
    text = page.page(groups.by_seed([run, run]))  # with legends
    found = Reader(text)
    assert {tag for tag, _ in found.tags} <= ALLOWED
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert "\x1b" not in text and "<script" not in text
    assert any("<script>alert('x')" in words for words in found.words)
    sheets.sheet(groups.by_seed([run]), tmp_path / "x.png")


def test_the_mean_and_deviation_of_seeds(tmp_path: Path) -> None:
    """Against the standard library's, at the steps that all runs have."""
    losses = [0.5, 1.0, 2.5]
    folders = [seeded(tmp_path, seed, loss) for seed, loss in enumerate(losses)]
    (group,) = groups.by_seed([reading.load(folder) for folder in folders])
    assert (group.label, len(group.runs)) == ("run (3 seeds)", 3)
    mean, sd = statistics.mean(losses), statistics.stdev(losses)
    for table, name, middle, spread in (
        ("steps", "loss", mean, sd),
        ("steps", "set_size", mean, sd),
        ("steps", "threshold_ratio", 1 + mean, sd),
        ("evals", "accuracy", 0.5 + mean / 10, sd / 10),
    ):
        curve = group.curve(table, name)
        assert curve.step.tolist() == ([10] if table == "evals" else list(range(1, 11)))
        np.testing.assert_allclose(curve.mean, middle)
        np.testing.assert_allclose(curve.sd, spread)
    assert group.curve("steps", "threshold").mean.shape == (10, 2)
    known = figures.of_group(group)
    assert known["accuracy"] == pytest.approx((0.5 + mean / 10, sd / 10))
    assert (known["ranks"], known["density"], known["steps"]) == ([2], 0.1, 10)
    cells = Reader(page.page([group])).words
    assert f"{0.5 + mean / 10:.2%} ± {sd / 10:.2%}" in cells
    assert "0, 1, 2" in cells


def test_a_figure_that_no_run_has_is_none_of_the_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the ratio of thresholds of dense, which are 0 in all layers."""
    table = rows(range(1, 11), threshold=[0.0, 0.0])
    folders = [tmp_path / f"dense-{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        write(folder / "trace.h5", table, config=config(seed))
    (group,) = groups.by_seed([reading.load(folder) for folder in folders])
    assert figures.of_group(group)["threshold_ratio"] is None
    assert inspect.main([*map(str, folders)]) == 0
    assert ["threshold", "ratio", "-"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]
    assert "- ± -" not in Reader(page.page([group])).words


def test_seeds_are_one_column_of_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what one of them does not have, the group does not."""
    folders = [seeded(tmp_path, seed, loss) for seed, loss in enumerate((0.5, 1.0, 2.5))]
    assert inspect.main([*map(str, folders)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["run", "(3", "seeds)"] in lines
    assert ["train", "loss", "1.3333", "±", "1.0408"] in lines
    assert ["density", "0.1"] in lines
    write(tmp_path / "other" / "trace.h5", rows([1]), config=config(9))
    (group,) = groups.by_seed([reading.load(folder) for folder in (folders[0], tmp_path / "other")])
    known = figures.of_group(group)
    assert (known["accuracy"], known["train_loss"]) == (None, pytest.approx((0.75, 0.125**0.5)))


@pytest.mark.parametrize(
    ("names", "label"),
    [
        ("a-0 a-1", "a"),
        ("a-seed10 a-seed11", "a"),
        ("a-s1 a-s2", "a"),
        ("lr0.05a lr0.05b", "lr0.05"),
        ("a.1 a.2", "a"),
    ],
)
def test_a_group_is_called_what_its_runs_have_in_common(
    names: str, label: str, tmp_path: Path
) -> None:
    folders = [
        write(tmp_path / name / "trace.h5", rows([1]), config=config(seed))
        for seed, name in enumerate(names.split())
    ]
    assert [
        group.label for group in groups.by_seed([reading.load(folder) for folder in folders])
    ] == [f"{label} (2 seeds)"]


def test_a_curve_has_the_steps_that_all_runs_have(tmp_path: Path) -> None:
    one = reading.load(
        write(tmp_path / "a" / "trace.h5", rows([1, 2, 4, 6], loss=1.0), config=config(0))
    )
    two = reading.load(
        write(tmp_path / "b" / "trace.h5", rows([2, 3, 6, 7], loss=3.0), config=config(1))
    )
    (group,) = groups.by_seed([one, two])
    curve = group.curve("steps", "loss")
    assert (curve.step.tolist(), curve.mean.tolist()) == ([2, 6], [2.0, 2.0])
    assert curve.sd.tolist() == pytest.approx([2**0.5] * 2)
    many = reading.load(write(tmp_path / "c" / "trace.h5", rows(range(1, 2001))))
    drawn = groups.by_seed([many])[0].curve("steps", "loss")
    assert (len(drawn.step), drawn.step[0], drawn.step[-1]) == (groups.DRAWN, 1, 2000)
    assert not drawn.sd.any()


OTHERS: Mapping[str, Mapping[str, Any]] = {
    "another setting": {"config": config(1, lr_warmup=3)},
    "another version": {"version": "1.3"},
    "another commit": {"commit": "abd"},
    "the same seed": {"config": config(0)},
}


@pytest.mark.parametrize("case", OTHERS)
def test_runs_that_differ_in_more_than_their_seed_stand_alone(case: str, tmp_path: Path) -> None:
    one, two = seeded(tmp_path, 0, 0.5), seeded(tmp_path, 1, 0.5, **OTHERS[case])
    found = groups.by_seed([reading.load(folder) for folder in (one, two)])
    assert [group.label for group in found] == ["run-0", "run-1"]


def test_runs_that_say_nothing_of_themselves_stand_alone(tmp_path: Path) -> None:
    runs = [reading.load(seeded(tmp_path, seed, 0.5, config="")) for seed in (0, 1)]
    assert len(groups.by_seed(runs)) == 2


def test_groups_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [
        reading.load(seeded(tmp_path, seed, 0.5, commit=commit))
        for seed in (0, 1)
        for commit in ("a", "b")
    ]
    assert [group.label for group in groups.by_seed(runs)] == [
        "run (2 seeds) #1",
        "run (2 seeds) #2",
    ]


def test_a_run_without_a_step(tmp_path: Path) -> None:
    empty, other = write(tmp_path / "new" / "trace.h5", None), seeded(tmp_path, 0, 0.5)
    alone = Reader(page.page(groups.by_seed([reading.load(empty)])))
    assert "Nothing recorded yet." in alone.words
    assert "svg" not in {tag for tag, _ in alone.tags}
    both = Reader(page.page(groups.by_seed([reading.load(empty), reading.load(other)])))
    assert "Nothing recorded yet." not in both.words
    assert "svg" in {tag for tag, _ in both.tags}


def test_many_runs(tmp_path: Path) -> None:
    """More than there are colours; nothing selected; losses that are not there."""
    loss = np.full((10, 2), np.nan)
    folders = [seeded(tmp_path, 0, 0.5, config=config(0, lr_warmup=n)) for n in range(9)]
    odd = write(
        tmp_path / "odd" / "trace.h5",
        rows(range(1, 11), loss=loss, k=[0, 10], threshold=[0.0, 1.0]),
        [(1, 0, 0)],
    )
    grouped = groups.by_seed([reading.load(folder) for folder in (*folders, odd)])
    assert len(grouped) == 10
    drawn = [
        sheets.svg(picture)
        for picture in (*pictures.of_groups(grouped), *pictures.of_one_group(grouped[-1]))
    ]
    assert len(drawn) == 8 + 2


def test_many_layers(tmp_path: Path) -> None:
    """More than get a colour of their own, and than can be named."""
    layers = 40
    names = {
        name: [f"layer{i}" if name == "name" else "linear" for i in range(layers)] for name in WORDS
    }
    numbers = {name: [50] * layers for name in LAYER_FIELDS if name not in WORDS}
    writer = Writer(tmp_path / "trace.h5", Header(header().attributes, names | numbers))
    few = rows([1, 2, 3])
    writer.append(
        "steps",
        {
            name: np.repeat(column, layers // 2, axis=2) if column.ndim == 3 else column
            for name, column in few.items()
        },
    )
    writer.close()
    (group,) = groups.by_seed([reading.load(tmp_path)])
    shown = pictures.of_one_group(group)
    assert [picture.title for picture in shown] == ["Threshold of every layer", "k of every layer"]
    assert all(sheets.svg(picture).startswith("<svg") for picture in shown)


def test_a_run_whose_ranks_became_more(tmp_path: Path) -> None:
    """What was looked at twice counts once, and the timeline is the last one's."""
    diagnosed(write(tmp_path / "trace.h5", rows(range(1, 11))), [4, 8], [[0.5, 0.75], [0.0, 0.0]])
    second = write(tmp_path / "later" / "trace.h5", rows([7, 8, 9], ranks=3), ranks=3)
    diagnosed(second, [8], [[0.25, 0.5, 0.75]], ranks=3)
    (second / "trace.h5").rename(tmp_path / "trace-00000006.h5")
    run = reading.load(tmp_path)
    assert run.diagnostics["step"].tolist() == [4, 8]
    assert run.diagnostics["global_share"].tolist() == [0.625, 0.5]
    assert run.closest is not None
    assert (run.closest.step, run.closest.begin.shape) == (8, (3, 2, 4))
    curve = summary.summarise(run).curve
    latest = dict(zip(curve.step, curve.global_share, strict=True))
    assert latest == {1: None, 2: None, 3: None, 4: 0.625, 6: 0.625, 7: 0.625, 8: 0.5, 9: 0.5}


def test_how_much_of_the_exchange_was_hidden(tmp_path: Path) -> None:
    """Two ranks, two layers: intervals that overlap, lie in one another, or are apart; by hand."""
    exchange = clock.OF_LAYERS.index("exchange")
    folder = diagnosed(
        write(tmp_path / "trace.h5", rows([1, 2, 3], seconds={"exposed": [[4.0, 4.0]] * 3})),
        [2, 3, 5],
        0.5,
    )
    times = {
        "begin": [[[1, 3], [2, 9]], [[1, 2], [np.nan, 1]], [[1, 1], [1, 1]]],
        "end": [[[6, 9], [8, 11]], [[9, 4], [np.nan, 2]], [[2, 2], [2, 2]]],
    }
    with h5py.File(folder / "trace.h5", "r+") as file:
        for name, values in times.items():
            file[f"diagnostics/{name}"][..., exchange] = values
    found = ranks.hidden_share(reader.read(folder / "trace.h5"))
    np.testing.assert_array_equal(
        found, [[0.5, 0.5], [0.5, 0.0], [np.nan, np.nan]]
    )  # waited 4 of 8, 8; 8, 1; not recorded
    timing = summary.summarise(reading.load(folder)).timing
    assert timing is not None and timing.hidden_share == 0.375


def test_no_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = seeded(tmp_path, 0, 0.5)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert inspect.main([str(folder), "--html", str(tmp_path / "x.html")]) == 2
    assert capsys.readouterr() == (
        "",
        "dls.inspect: --html needs matplotlib: pip install 'dls[plot]'\n",
    )
    assert not (tmp_path / "x.html").exists()


ODD = (-1.0, np.inf, -np.inf, 1e308, 5e-324)
COUNTS = (-1, 2**62, -(2**63))


@pytest.mark.parametrize("value", [*ODD, *COUNTS])
def test_any_number_can_stand_in_a_trace(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files come from anywhere: each is shown, in every form, without a warning."""
    names = (
        ("k", "payload_bytes") if isinstance(value, int) else ("loss", "threshold", "residual_norm")
    )
    table = rows(
        [1, 2, 2**63 - 1], **dict.fromkeys(names, value), seconds={"total": value, "forward": value}
    )
    folder = write(tmp_path / "a" / "trace.h5", table, [(1, value, value), (2, 0.5, 0.5)])
    other = write(tmp_path / "b" / "trace.h5", rows([1, 2, 2**63 - 1]), config=config(8))
    with h5py.File(diagnosed(folder, [1, 2], value) / "trace.h5", "r+") as file:
        for place, name in enumerate(("begin", "end")):
            file[f"diagnostics/{name}"][1, place] = value
    for options in ([], ["--json"], [str(other), "--html", str(tmp_path / "x.html")]):
        assert inspect.main([str(folder), *options]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "name", "words"),
    [
        ("--html", "trace.h5", "a page's name ends in .html"),
        ("--html", "page.png", "a page's name ends in .html"),
        ("--html", "no/page.html", "there is no folder"),
        ("--plot", "no/page.png", "there is no folder"),
        ("--plot", ".", "that is a folder"),
    ],
)
def test_what_cannot_be_written_shows_before_any_work(
    option: str, name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(tmp_path / "trace.h5", rows([1, 2])).joinpath("trace.h5").read_bytes()
    assert inspect.main([str(tmp_path), option, str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dls.inspect: {option} ") and words in line
    assert (tmp_path / "trace.h5").read_bytes() == before
