"""What a run takes its identity from."""

from __future__ import annotations

from pathlib import Path

import pytest

import dls
from dls import startup


@pytest.mark.parametrize("source", ["dls/worker.py", "dls/sparsifiers/dense.py", "reference/ops.py", "gpu/kernels.cu"])
def test_the_code_version_moves_with_every_source(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks with different kernels must not train together."""
    monkeypatch.setattr(dls, "__file__", str(tmp_path / "dls" / "__init__.py"))
    path = tmp_path / source
    path.parent.mkdir(parents=True)
    versions = set()
    for text in ("one", "two"):
        path.write_text(text)
        versions.add(startup.code_version())
    assert len(versions) == 2
