"""Settings that have no effect are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dls.exchange import methods
from dls.program import config, idle
from dls.program.config import FIELDS
from dls.tasks import data, models

OWNED = {
    owner: {name for name in FIELDS if FIELDS[name].metadata["of"] == owner}
    for owner in ("method", "model", "dataset")
}
OWNED["method"] |= methods.settings().keys()


def remark(**given: Any) -> str | None:
    return idle.remark(given, config.build(given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"method": "dense", "value_dtype": "float16"},
            "--value-dtype float16 with --method dense",
        ),
        (
            {"method": "dense", "density": 0.1, "density_warmup": 5},
            "--density 0.1, --density-warmup 5 with --method dense",
        ),
        (
            {"method": "layerwise-topk", "dls_steps": "optimal"},
            "--dls-steps optimal with --method layerwise-topk",
        ),
        (
            {"method": "global-topk", "dls_init": "variance"},
            "--dls-init variance with --method global-topk",
        ),
        ({"method": "global-topk", "overlap": False}, "--no-overlap with --method global-topk"),
        ({"dls_steps": 0, "dls_from": "left"}, "--dls-from left with --dls-steps 0"),
        ({"overlap": False, "bucket_size": 1}, "--bucket-size 1 with --no-overlap"),
        ({"steps": 5, "epochs": 3}, "--epochs 3 with --steps 5"),
        ({"model": "lenet", "mlp_widths": (8, 9)}, "--mlp-widths 8,9 with --model lenet"),
        (
            {"synthetic_classes": 3, "data_dir": "/x"},
            "--synthetic-classes 3, --data-dir /x with --dataset digits",
        ),
        ({"dataset": "synthetic", "data_dir": "/x"}, "--data-dir /x with --dataset synthetic"),
        (
            {"method": "dense", "density": 0.5, "overlap": False, "bucket_size": 7},
            "--density 0.5 with --method dense; --bucket-size 7 with --no-overlap",
        ),
    ],
)
def test_what_has_no_effect_is_named_with_what_leaves_it_idle(
    given: dict[str, Any], words: str
) -> None:
    assert remark(**given) == f"without effect: {words}"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {
            "density": 0.1,
            "value_dtype": "float16",
            "dls_steps": 3,
            "dls_every": 2,
            "mlp_widths": (8,),
        },
        {"method": "dense", "overlap": False},
        {"method": "dense", "bucket_size": 5},
        {
            "method": "layerwise-topk",
            "density": 0.1,
            "density_warmup": 5,
            "value_dtype": "bfloat16",
        },
        {"dataset": "mnist", "data_dir": "/x"},
        {"dataset": "synthetic", "synthetic_size": 5, "synthetic_shape": (1, 2, 3)},
        {"epochs": 3},
        {name: FIELDS[name].default for name in FIELDS},
    ],
)
def test_what_has_an_effect_is_not(given: dict[str, Any]) -> None:
    assert remark(**given) is None


def test_every_setting_of_an_owner_is_read_by_one_and_no_other_is() -> None:
    read = {
        "method": frozenset().union(*(methods.reads(name) for name in methods.names())),
        "model": {setting for name in models.names() for setting in models._READS[name]},
        "dataset": {setting for name in data.names() for setting in data._READS[name]},
    }
    assert read == OWNED


def run(train, *args: str | Path) -> Sequence[str]:
    tiny = ("--mlp-widths", "8", "--batch-size", "4", "--threads", "1", "--backend", "numpy")
    done = train(2, *tiny, *args)
    assert done.status == 0, done.err
    return done.out.splitlines()


def test_a_run_names_them_once_and_goes_on(tmp_path: Path, train) -> None:
    (tmp_path / "a.toml").write_text('density = 0.5\nepochs = 2\nmethod = "dls"\n')
    flags = ("--method", "dense", "--steps", "2", "--lr-warmup", "9", "--out", "run")
    first, second, third, *_ = run(train, "--config", "a.toml", *flags)
    assert (
        first == "without effect: --density 0.5 with --method dense"
    )  # a flag takes the place of the file's epochs
    assert second == "--lr-warmup 9 is not over when the run ends, after step 2"
    assert third.startswith("dense at density 1: ")
    assert run(train, "--out", "run", "--resume", "--steps", "3")[0].startswith(
        "dense at density 1: "
    )
