"""What a checkpoint of an older program does not say, its run had at the default."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dls.record import checkpoint
from dls.train import main
from tests.conftest import lines

TINY = "--mlp-widths 4 --batch-size 4 --threads 1 --backend numpy --density 0.1 --workers 2"


def run(out: Path, flags: str = "", forgotten: str = "") -> None:
    """Two steps, whose checkpoint says nothing of that setting."""
    assert main([*TINY.split(), *flags.split(), "--steps", "2", "--out", str(out)]) == 0
    path = checkpoint.place(out, 2) / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    if forgotten:
        manifest["config"], removed = re.subn(
            rf"^{forgotten} = .*\n", "", manifest["config"], flags=re.MULTILINE
        )
        assert removed == 1
    path.write_text(json.dumps(manifest | {"seal": checkpoint._seal(manifest)}))


def resume(out: Path, flags: str) -> int:
    return main(["--resume", "--out", str(out), "--steps", "3", "--workers", "2", *flags.split()])


CASES = {
    "collective": (
        "",
        "collective",
        "--collective gtopk",
        "--collective gtopk is not that of the run in {out}, which has allgather",
    ),
    "its default": ("", "collective", "--collective allgather", ""),
    "a bucket": ("", "bucket_size", "--bucket-size 100", ""),
    "seed": ("", "seed", "--seed 1", "--seed 1 is not that of the run in {out}, which has 0"),
    "gtopk's buckets": (
        "--collective gtopk",
        "bucket_size",
        "--bucket-size 100",
        "--bucket-size 100 is not that of the run in {out}, which has 65536",
    ),
    "gtopk's own buckets": (
        "--collective gtopk --bucket-size 500",
        "",
        "--bucket-size 100",
        "--bucket-size 100 is not that of the run in {out}, which has 500",
    ),
    "the same buckets": ("--collective gtopk --bucket-size 500", "", "--bucket-size 500", ""),
    "dense has no collective": ("--method dense --collective gtopk", "", "--bucket-size 100", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_setting_that_is_not_there_is_its_default(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun_with, forgotten, flags, refused = CASES[case]
    out = tmp_path / "run"
    run(out, begun_with, forgotten)
    capsys.readouterr()
    assert resume(out, flags) == (2 if refused else 0), capsys.readouterr()
    if refused:
        assert lines(capsys.readouterr().err) == [f"dls.train: {refused.format(out=out)}"]
