"""Checkpoints hold everything, are whole or not there, and the newest that verifies is taken."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dls.record import checkpoint, reader
from tests.conftest import lines
from tests.launch import Outcome, launch, outcomes, train_all
from tests.mpi.test_bits import loaded

ARGS = [
    "--mlp-widths",
    "16",
    "--density",
    "0.05",
    "--batch-size",
    "8",
    "--threads",
    "1",
    "--backend",
    "numpy",
]
MANIFEST, RANK = "manifest.json", "rank-00001.h5"
RESUMES = ("--resume", "--resume=auto")


def folders(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def flip(path: Path, where: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)


def edit(folder: Path, seal: bool = False, **changes: object) -> None:
    """Change a manifest's entries, its seal too or not."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    manifest["seal"] = checkpoint._seal(manifest) if seal else manifest["seal"]
    (folder / MANIFEST).write_text(json.dumps(manifest))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a rank": (
        lambda f: flip(f / RANK),
        f"{RANK} is damaged: its SHA-256 is not the manifest's",
    ),
    "a bit of the weights": (
        lambda f: flip(f / "shared.h5"),
        "shared.h5 is damaged: its SHA-256 is not the manifest's",
    ),
    "a cut file": (lambda f: os.truncate(f / RANK, 100), f"{RANK} is damaged"),
    "no file": (
        lambda f: (f / RANK).unlink(),
        f"{RANK} cannot be read (No such file or directory)",
    ),
    "no manifest": (
        lambda f: (f / MANIFEST).unlink(),
        "its manifest.json cannot be read (No such file or directory)",
    ),
    "a cut manifest": (
        lambda f: os.truncate(f / MANIFEST, 300),
        "its manifest.json cannot be used",
    ),
    "another learning rate": (
        lambda f: edit(f, config="lr = 9.0"),
        "its seal is not that of its text",
    ),
    "no seal": (
        lambda f: (f / MANIFEST).write_text('{"format": "dls-checkpoint/2"}'),
        "its manifest.json has no 'seal'",
    ),
    "of another program": (
        lambda f: edit(f, format="dls-checkpoint/9"),
        "its format is 'dls-checkpoint/9'",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps on two ranks with checkpoints after 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("whole")
    done = launch(
        [
            (
                2,
                [
                    "-m",
                    "dls.train",
                    *ARGS,
                    "--steps",
                    "6",
                    "--checkpoint-every",
                    "2",
                    "--out",
                    "run",
                ],
            )
        ],
        folder,
    )
    assert done.status == 0, done.err
    return folder / "run"


@pytest.fixture(scope="module")
def resumed(whole: Path) -> dict[str, Outcome]:
    """What came of resuming copies of that run.

    One for each of DAMAGES, and two that have no checkpoint left that is whole.
    """
    folder = whole.parent
    commands = {}
    for case, (spoil, _) in DAMAGES.items():
        shutil.copytree(whole, folder / case)
        spoil(folder / case / "checkpoints/step-00000006")
        for step, date in ((2, 3e9), (4, 2e9), (6, 1e9)):  # a clock that went backwards
            os.utime(folder / case / f"checkpoints/step-{step:08d}", (date, date))
        commands[case] = ["--out", case, "--resume"]
    for resume in RESUMES:
        shutil.copytree(whole, folder / resume)
        for step in (folder / resume / "checkpoints").iterdir():
            flip(step / RANK)
        commands[resume] = ["--out", f"./{resume}", resume]
    happened = outcomes(2, "dls.train", map(shlex.join, commands.values()), folder)
    return dict(zip(commands, happened, strict=True))


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    case: str, whole: Path, resumed: dict[str, Outcome]
) -> None:
    out, done = whole.parent / case, resumed[case]
    assert done.statuses == [0, 0], done.err
    (line,) = [line for line in lines(done.out) if line.startswith("passed over: ")]
    assert "step-00000006" in line and DAMAGES[case][1] in line
    assert "from step 4 on" in done.out
    for a, b in zip(loaded(whole, 2), loaded(out, 2), strict=True):
        assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert reader.read(out / "trace.h5").steps["step"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("resume", RESUMES)
def test_where_none_is_whole_nothing_is_begun(
    resume: str, whole: Path, resumed: dict[str, Outcome]
) -> None:
    out, done = whole.parent / resume, resumed[resume]
    assert done.statuses == [2, 2]
    (line,) = lines(done.err)
    assert f"none of the 3 checkpoints in {resume} is whole; of the newest, " in line
    assert f"{RANK} is damaged" in line
    assert folders(out) == folders(whole)
    assert (out / "trace.h5").read_bytes() == (whole / "trace.h5").read_bytes()


def test_old_checkpoints_go(tmp_path: Path) -> None:
    left = {"0": [2, 4, 6, 7], "1": [7], "2": [6, 7]}
    common = f"{' '.join(ARGS)} --steps 7 --checkpoint-every 2"
    commands = [f"{common} --keep-checkpoints {keep} --out {keep}" for keep in left]
    train_all(2, commands, tmp_path)
    for keep, steps in left.items():
        assert folders(tmp_path / keep) == [f"step-{step:08d}" for step in steps]


def test_old_checkpoints_stay_until_a_new_one_is_complete(tmp_path: Path) -> None:
    """Rank 1 dies while it writes its part of the third; what that left behind is gone after the
    next.
    """
    program = tmp_path / "die.py"
    program.write_text(
        "import os, signal, sys\nfrom dls import train; from dls.record import checkpoint\nwrite ="
        " checkpoint._write\ndef dying(path, arrays):\n    if 'step-00000006' in str(path) and"
        " path.name == 'rank-00001.h5': os.kill(os.getpid(), signal.SIGKILL)\n    return"
        " write(path, arrays)\ncheckpoint._write = dying\ntrain.main(sys.argv[1:])\n"
    )
    args = [
        *ARGS,
        "--steps",
        "9",
        "--checkpoint-every",
        "2",
        "--keep-checkpoints",
        "1",
        "--out",
        "run",
    ]
    assert launch([(2, [program, *args])], tmp_path).status != 0
    assert folders(tmp_path / "run") == ["step-00000004", "step-00000006.partial"]
    again = launch(
        [
            (
                2,
                [
                    "-m",
                    "dls.train",
                    "--out",
                    "run",
                    "--resume",
                    "--checkpoint-every",
                    "5",
                    "--steps",
                    "9",
                ],
            )
        ],
        tmp_path,
    )
    assert again.status == 0, again.err
    assert folders(tmp_path / "run") == ["step-00000009"]
