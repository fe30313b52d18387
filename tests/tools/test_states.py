"""Runs are of one state where their trainings read the same: what a trace tells of it, and what is
made of that.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dls.inspect import __main__ as inspect
from dls.inspect import groups, reading
from dls.inspect.run import Run
from dls.program import sources
from dls.record.repair import go_on
from dls.study import page
from dls.study.rows import StudyRow
from tests.checkout import commit_all, write
from tests.tools.test_inspect import CONFIG, header, rows
from tests.tools.test_inspect import write as write_trace

FILES = {
    "dls/__init__.py": "",
    "dls/train.py": "from dls.tasks import task\n",
    "dls/tasks/task.py": "",
    "dls/exchange/methods/__init__.py": "",
    "dls/exchange/methods/dls.py": "",
    "reference/ops.py": "",
    "gpu/kernels.cu": "",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that stands for the one of the program itself."""
    root = tmp_path / "checkout"
    write(root, FILES)
    commit_all(root)
    monkeypatch.setattr(sources, "ROOT", root)
    monkeypatch.setattr(
        sys.modules["__main__"], "__file__", str(root / "dls" / "train.py"), raising=False
    )
    return root


def head(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def about(root: Path, old: bool = False) -> dict[str, Any]:
    """The attributes of a run that starts now; `old`: as of before there were `sources`."""
    found = {
        "commit": sources.commit("dls", root),
        "sources": [sources.state("dls", root).to_text()],
    }
    return {"commit": found["commit"]} if old else found


def run(folder: Path, seed: int, lr: float = 0.05, **attributes: Any) -> Run:
    """A run of DLS as its trace tells of it."""
    config = (
        CONFIG.format(method="dls")
        .replace("seed = 7", f"seed = {seed}")
        .replace("lr = 0.05", f"lr = {lr}")
    )
    write_trace(folder / "trace.h5", rows([1, 2]), **({"config": config} | attributes))
    return reading.load(folder)


def labels(*runs: Run) -> list[str]:
    return [group.label for group in groups.by_seed(runs)]


@pytest.mark.parametrize("old", [False, True])
def test_another_methods_new_file_splits_no_seeds(
    old: bool, checkout: Path, tmp_path: Path
) -> None:
    """The first run is of a commit, the second of none: the tree has a file more."""
    one = run(tmp_path / "run-0", 0, **about(checkout, old))
    (checkout / "dls/exchange/methods/new.py").write_text("# another method\n")
    two = run(tmp_path / "run-1", 1, **about(checkout, old))
    assert one.about.commit != two.about.commit
    assert labels(one, two) == ["run (2 seeds)"]


@pytest.mark.parametrize("old", [False, True])
def test_a_commit_that_training_does_not_read_splits_no_seeds(
    old: bool, checkout: Path, tmp_path: Path
) -> None:
    one = run(tmp_path / "run-0", 0, **about(checkout))
    (checkout / "README.md").write_text("words")
    commit_all(checkout)
    two = run(tmp_path / "run-1", 1, **about(checkout, old))
    assert one.about.commit != two.about.commit == head(checkout)
    assert labels(one, two) == ["run (2 seeds)"]


def test_the_file_that_differs_is_named(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "a", 0, **about(checkout))
    (checkout / "dls/tasks/task.py").write_text("# other\n")
    run(tmp_path / "b", 1, **about(checkout))
    assert inspect.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert (
        capsys.readouterr().err
        == "dls.inspect: b does not group with a: another dls/tasks/task.py\n"
    )


def test_commits_that_nobody_knows_are_named(checkout: Path, tmp_path: Path) -> None:
    one, two, three = (
        run(tmp_path / name, seed, commit=commit)
        for seed, (name, commit) in enumerate(["ax", "bx", "cy"])
    )
    assert labels(one, two, three) == ["a (2 seeds)", "c"]
    (line,) = groups.apart(groups.by_seed([one, two, three]))
    assert line == "c does not group with a (2 seeds): commit y, not x"


def test_the_setting_that_differs_is_named(checkout: Path, tmp_path: Path) -> None:
    """Of the group that differs in least; runs of one seed, and other methods, need no word."""
    known = about(checkout)
    one, far = (
        run(tmp_path / "a", 0, **known),
        run(tmp_path / "far", 0, 0.1, version="1.3", **known),
    )
    near = run(tmp_path / "b", 1, 0.2, **known)
    dense = run(tmp_path / "dense", 2, config=CONFIG.format(method="dense"), **known)
    lines = list(groups.apart(groups.by_seed([far, one, near, dense])))
    assert lines == ["b does not group with a: --lr 0.2, not 0.05"]


def test_a_state_passes_through_a_trace(checkout: Path, tmp_path: Path) -> None:
    state = sources.state("dls", checkout)
    found = run(tmp_path / "a", 0, **about(checkout)).sources
    assert [(each.digest, each.commit, each.files) for each in found] == [
        (state.digest, head(checkout), state.files)
    ]
    assert set(state.files) == set(FILES)


def test_a_trace_that_goes_on_keeps_all_states(checkout: Path, tmp_path: Path) -> None:
    run(tmp_path / "a", 0, **about(checkout))
    (checkout / "dls/tasks/task.py").write_text("# other\n")
    for step, (attributes, states) in enumerate(
        [(about(checkout), 2), (about(checkout), 2)], start=1
    ):
        writer = go_on(tmp_path / "a", step, header(**attributes))
        writer.append("steps", rows([step + 1]))
        writer.close()
        assert len(reading.load(tmp_path / "a").sources) == states
    go_on(tmp_path / "a", 3, header(commit="of an older program")).close()
    assert [state.digest for state in reading.load(tmp_path / "a").sources][:1] == [""]


def test_a_study_made_in_one_go_is_of_one_state() -> None:
    """Methods read different files; what tells them apart are no other states."""
    rows = [_row("a", "c" * 40 + "+1", ["1"]), _row("b", "c" * 40 + "+2", ["2"])]
    assert (
        list(page.origin(rows))[1]
        == "The runs are of 1 state of the code: cccccccccccc with changes."
    )
    rows[1] = replace(rows[1], sources=["2", "3"])
    assert list(page.origin(rows))[1].startswith(
        "The runs are of 2 states of the code: cccccccccccc+1, "
    )


def _row(method: str, commit: str, states: list[str]) -> StudyRow:
    """A row of a study that has no runs, but their code."""
    names = ("accuracy", "loss", "ms", "kB", "overlap", "k", "seeds")
    about = {"workload": "w", "density": None, "method": method, "planned": 1, "failed": {}}
    about |= {"places": [], "ranks": 1, "settings": {"method": method}, "repeat": ""}
    code = {"commits": [commit], "sources": states}
    return StudyRow.from_json(about | code | {name: [] for name in names})
