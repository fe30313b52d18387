"""What a run takes its identity from."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dls import sources

FILES = ("dls/train.py", "dls/sparsifiers/dense.py", "reference/ops.py", "gpu/kernels.cu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (*FILES, "runs/results/study.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.fixture
def checkout(root: Path) -> Path:
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e@e.e", "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    return root


@pytest.mark.parametrize("name", [*FILES, "dls/sparsifiers/own.py"])
def test_every_source_counts(name: str, checkout: Path) -> None:
    """Ranks with different kernels must not train together, and a commit is no name for files that differ from it."""
    before, head = sources.fingerprint(checkout), sources.commit(checkout)
    assert re.fullmatch(r"[0-9a-f]{40}", head)
    seen = {before}
    for text in ("one", "two"):
        (checkout / name).write_text(text)
        seen.add(sources.fingerprint(checkout))
        assert sources.commit(checkout) == f"{head}+{sources.fingerprint(checkout)}"
    assert len(seen) == 3


def test_a_report_is_no_source(checkout: Path) -> None:
    before = sources.commit(checkout), sources.fingerprint(checkout)
    (checkout / "runs/results/study.md").write_text("rebuilt")
    (checkout / "runs/results/new.md").write_text("new")
    assert (sources.commit(checkout), sources.fingerprint(checkout)) == before


def test_what_is_no_checkout_has_its_hash_alone(root: Path) -> None:
    assert sources.commit(root) == f"+{sources.fingerprint(root)}"
