"""The programs of runs/examples, in short form, on 2 ranks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.launch import ROOT, launch
from tests.tools.test_data import idx_contents, write_idx

EXAMPLES = ROOT / "runs" / "examples"


def losses(said: str) -> list[float]:
    """Those of the first and of the last step, and of some between."""
    return [float(number) for number in re.findall(r"^step .*?: (?:loss )?([\d.]+)", said, re.M)]


def run(folder: Path, program: str, *options: str, ranks: int = 2) -> str:
    done = launch([(ranks, [EXAMPLES / program, *options])], folder)
    assert done.status == 0, done.err
    return done.out


def test_resnet(tmp_path: Path) -> None:
    small = ["--dataset", "digits", "--width", "4", "--batch", "32", "--steps", "40"]
    said = run(tmp_path, "resnet18.py", *small, "--method", "dls", "--density", "0.1")
    first, last = losses(said)
    assert last < 0.8 * first, said
    (share,) = re.findall(r"^test accuracy ([\d.]+) %$", said, re.M)
    assert float(share) > 20, said  # of ten classes


def test_resnet_reads_files_and_takes_bfloat16(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    contents = {  # PyTorch's convolutions in bfloat16 give NaN for the other tests' 5 × 4 pixels
        name: random.integers(0, 256, (len(some), 8, 8), dtype=np.uint8) if some.ndim == 3 else some
        for name, some in idx_contents().items()
    }
    write_idx(tmp_path / "files", contents)
    small = ["--data-dir", "files", "--width", "4", "--batch", "8", "--steps", "2", "--bfloat16"]
    assert "test accuracy" in run(tmp_path, "resnet18.py", *small, ranks=0)


def test_gpt(tmp_path: Path) -> None:
    """It learns an alphabet, and writes it."""
    (tmp_path / "text").write_text("abcdefghijklmnopqrstuvwxyz\n" * 40)
    small = ["--width", "32", "--layers", "1", "--context", "16", "--sample", "60"]
    learn = ["--steps", "100", "--lr", "0.01", "--density", "0.1", "--text", "text"]
    said = run(tmp_path, "gpt.py", *small, *learn)
    first, *_, last = losses(said)
    assert first > 4
    assert last < 1, said
    written = said[said.index("def ") :]
    assert len(written) >= 60
    assert "klmnop" in written, said
