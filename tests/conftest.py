"""What the tests share: ranks started from plain pytest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.launch import Finished, launch


@pytest.fixture(scope="session")
def mpirun() -> Callable[..., Finished]:
    """Run `python ARGS…` on so many ranks, or several programs side by side."""
    return launch


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Finished]:
    """Run `python -m dls.train ARGS…` on so many ranks, from a folder that is not the checkout."""

    def run(ranks: int, *args: str | Path, cwd: Path = tmp_path) -> Finished:
        return launch([(ranks, ["-m", "dls.train", *args])], cwd)

    return run


def lines(text: str) -> Sequence[str]:
    """The lines that hold something."""
    return [line for line in text.splitlines() if line.strip()]
