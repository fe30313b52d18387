"""What a run takes its identity from."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from dls.program import sources
from tests.checkout import commit_all, write

SOURCES = {
    "dls/__init__.py": "",
    "dls/train.py": "from dls.tasks import task\n",
    "dls/tasks/task.py": "def f():\n    import dls.step\n    from dls.kit.small.tool import g\n",
    "dls/kit/__init__.py": "",
    "dls/kit/small/__init__.py": "",
    "dls/kit/small/tool.py": "",
    "dls/kit/small/other.py": "",
    "dls/step/__init__.py": "",
    "dls/step/part.py": "",
    "dls/step/other.py": "",
    "dls/exchange/__init__.py": "",
    "dls/exchange/methods/__init__.py": "",
    "dls/exchange/methods/dense.py": "from dls.exchange.methods._base import Method\n",
    "dls/exchange/methods/my_own.py": "from dls.step import part\n",
    "dls/exchange/methods/_base.py": "",
    "dls/inspect/page.py": "",
    "dls/tasks/assets/digits.npz": "",
    "reference/ops.py": "",
    "gpu/kernels.cu": "",
}
"""A training that imports a worker, which imports a package, and a module of another; two methods,
and a tool beside them."""
READ = (
    "dls/train.py",
    "dls/tasks/task.py",
    "dls/step/__init__.py",
    "dls/kit/__init__.py",
    "dls/kit/small/__init__.py",
    "dls/kit/small/tool.py",
    "dls/tasks/assets/digits.npz",
    "reference/ops.py",
    "gpu/kernels.cu",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path, SOURCES | {"runs/results/study.md": ""})
    monkeypatch.setattr(
        sys.modules["__main__"], "__file__", str(tmp_path / "dls" / "train.py"), raising=False
    )
    return tmp_path


@pytest.fixture
def checkout(root: Path) -> Path:
    commit_all(root)
    return root


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        *((name, {"dense", "my-own"}) for name in READ),
        ("dls/exchange/methods/dense.py", {"dense"}),
        ("dls/exchange/methods/_base.py", {"dense"}),
        ("dls/exchange/methods/my_own.py", {"my-own"}),
        ("dls/step/part.py", {"my-own"}),
        ("dls/step/other.py", set()),
        ("dls/kit/small/other.py", set()),
        ("dls/inspect/page.py", set()),
    ],
)
def test_what_a_run_reads_makes_its_hash(name: str, methods: set[str], checkout: Path) -> None:
    before = {method: sources.training_hash(method, checkout) for method in ("dense", "my-own")}
    (checkout / name).write_text(SOURCES[name] + "# other\n")
    assert {
        method for method in before if sources.training_hash(method, checkout) != before[method]
    } == methods


@pytest.mark.parametrize("name", [*READ, "dls/inspect/page.py", "dls/exchange/methods/new.py"])
def test_a_commit_is_no_name_for_files_that_differ_from_it(name: str, checkout: Path) -> None:
    head = sources.commit("dense", checkout)
    assert re.fullmatch(r"[0-9a-f]{40}", head)
    (checkout / name).write_text("# other\n")
    assert sources.commit("dense", checkout) == f"{head}+{sources.training_hash('dense', checkout)}"


@pytest.mark.parametrize(
    "name", ["dls/tasks/task.py", "dls/exchange/methods/dense.py", "dls/inspect/page.py", *READ]
)
def test_the_version_moves_with_every_source(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks with different kernels must not train together."""
    monkeypatch.setattr(sources, "ROOT", root)
    before = sources.version()
    (root / name).write_text("# other\n")
    assert sources.version() != before


def test_a_file_that_is_no_python_is_a_source_without_imports(checkout: Path) -> None:
    (checkout / "dls/exchange/methods/my_own.py").write_text("def (:\n")
    assert "dls/exchange/methods/my_own.py" in sources.training_files("my-own", checkout)
    assert "dls/step/part.py" not in sources.training_files("my-own", checkout)


def test_older_commits_have_their_methods_elsewhere(tmp_path: Path) -> None:
    """A trace that names such a commit alone is compared by what it holds."""
    write(
        tmp_path, {"dls/train.py": "", "dls/sparsifiers/dense.py": "", "dls/sparsifiers/dls.py": ""}
    )
    files = [name for name in sources.training_files("dense", tmp_path) if name.endswith(".py")]
    assert files == ["dls/sparsifiers/dense.py", "dls/train.py"]


def test_an_own_program_is_a_source(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, program = sources.commit("dense", checkout), tmp_path / "my_train.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(program), raising=False)
    seen = set()
    for text in ("one", "two"):
        program.write_text(text)
        seen.add(sources.commit("dense", checkout))
    assert len(seen) == 2
    assert all(each.startswith(f"{head}+") for each in seen)


def test_a_report_is_no_source(checkout: Path) -> None:
    before = sources.commit("dense", checkout)
    (checkout / "runs/results/study.md").write_text("rebuilt")
    (checkout / "runs/results/new.md").write_text("new")
    assert sources.commit("dense", checkout) == before


def test_what_is_no_checkout_has_its_hash_alone(root: Path) -> None:
    assert sources.commit("dense", root) == f"+{sources.training_hash('dense', root)}"


@pytest.mark.parametrize("name", ["<stdin>", "gone.py", "app.pyz/__main__.py"])
def test_a_program_without_a_file_is_a_source_too(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a pipe, deleted meanwhile, or in an archive."""
    head = sources.commit("dense", checkout)
    archive = checkout.parent / "app.pyz"
    monkeypatch.setattr(
        sys.modules["__main__"], "__file__", str(checkout.parent / name), raising=False
    )
    seen = set()
    for text in ("one", "two"):
        archive.write_text(text)
        seen.add(sources.commit("dense", checkout))
    assert len(seen) == 1 + name.startswith("app")
    assert all(each.startswith(f"{head}+") for each in seen)
