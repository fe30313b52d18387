"""The command line as a user runs it: what it does, and what it refuses, in one clear line, on all
ranks alike.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dls.exchange import methods
from dls.record import checkpoint, reader
from dls.tasks import models
from tests.conftest import lines
from tests.launch import ROOT, Outcome, launch, outcomes

TINY = ("--mlp-widths", "8", "--batch-size", "4", "--threads", "1", "--backend", "numpy")

ADVICE = "; a lower --lr, --clip-norm or --on-nan skip may help"
"""What the line of a loss or gradient that is not finite ends with."""

REFUSED = {
    "unknown method": (
        ["--method", "topk"],
        f"unknown method 'topk': choose one of {', '.join(methods.names())}",
    ),
    "unknown model": (
        ["--model", "alexnet"],
        f"unknown model 'alexnet': choose one of {', '.join(models.names())}",
    ),
    "unknown dataset": (["--dataset", "imagenet"], "unknown dataset 'imagenet': choose one of"),
    "unknown backend": (["--backend", "tpu"], "unknown backend 'tpu': choose one of"),
    "density 0": (["--density", "0"], "--density 0.0 is outside (0, 1]"),
    "density above 1": (["--density", "1.5"], "--density 1.5 is outside (0, 1]"),
    "density nan": (["--density", "nan"], "--density nan is outside (0, 1]"),
    "density a word": (["--density", "low"], "--density low: expected a number"),
    "no value at all": (["--density", "1e-9"], "rounds to no value"),
    "batch too large": (["--batch-size", "1000"], "--batch-size"),
    "steps a word": (
        ["--dls-steps", "best"],
        "--dls-steps best: expected a whole number or 'optimal'",
    ),
    "negative": (["--steps", "-1"], "--steps -1 is outside [0, 1e+12]"),
    "unknown flag": (
        ["--densty", "0.1"],
        "unrecognized arguments: --densty 0.1; did you mean --density?",
    ),
    "flag without value": (["--lr"], "argument --lr: expected one argument"),
    "no such config": (
        ["--config", "none.toml"],
        "cannot read the configuration none.toml: No such file or directory",
    ),
    "no data": (["--dataset", "cifar10", "--data-dir", "nowhere"], "nowhere"),
    "resume without folder": (["--resume"], "--resume needs --out"),
    "nothing to resume": (["--resume", "--out", "empty"], "nothing to resume in empty"),
    "no value after the warm-up": (
        ["--density", "1e-9", "--density-warmup", "9"],
        "rounds to no value",
    ),
    "a number beyond all": (["--seed", "9" * 400], "is outside [0, 2147483647]"),
    "a model beyond memory": (["--mlp-widths", "1000000000,1000000000"], "do not fit into memory"),
    "not a chain": (
        ["--model", "resnet20", "--dls-init", "variance"],
        "--dls-init variance needs a model whose layers form a",
    ),
    "nesterov alone": (["--nesterov", "--momentum", "0"], "--nesterov needs --momentum above 0"),
    "elastic alone": (
        ["--elastic"],
        "--elastic needs Open MPI with its fault tolerance, a run started as mpirun --with-ft ulfm",
    ),
    "out is a file": (["--out", "file.txt"], "file.txt is in the way; choose another --out"),
}


FILES = {
    "densty = 0.1": "bad.toml: there is no setting 'densty'; did you mean density?",
    "density = ": "bad.toml is not valid TOML",
    "density = true": "--density true: expected a number",
    "batch_size = 2.5": "--batch-size 2.5: expected a whole number",
    "mlp_widths = []": "--mlp-widths needs at least one width",
    "method = 3": "--method 3: expected a text",
    "[dls]\nsteps = 1": "bad.toml: [dls] is a table; settings stand at the top level",
}
"""Configuration files and what is said of each."""

UNCHANGED = {
    "another model": (
        ["--model", "lenet"],
        "--model lenet is not that of the run in run, which has mlp",
    ),
    "other widths": (["--mlp-widths", "9"], "--mlp-widths 9 is not that of the run"),
    "another density": (["--density", "0.5"], "--density 0.5 is not that of the run"),
    "fewer steps": (
        ["--steps", "1"],
        "the run already has 2 steps, more than the 1 that --steps or --epochs ask for",
    ),
}
"""What a resumed run cannot change."""


def is_refused(outcome: Outcome, words: str) -> None:
    """Status 2 on all ranks, and one line from one of them."""
    assert set(outcome.statuses) == {2}, outcome
    (line,) = lines(outcome.err)
    assert line.startswith("dls.train: ")
    assert words in line
    assert outcome.out == ""


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What came of every command line of REFUSED and of every file of FILES, on two ranks."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "file.txt").write_text("in the way")
    commands = {case: ["--steps", "1", *args] for case, (args, _) in REFUSED.items()}
    for number, text in enumerate(FILES):
        (folder / str(number)).mkdir()
        (folder / str(number) / "bad.toml").write_text(text)
        commands[text] = ["--config", f"{number}/bad.toml"]
    happened = outcomes(2, "dls.train", map(shlex.join, commands.values()), folder)
    return dict(zip(commands, happened, strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_bad_usage_is_one_line_and_status_2(case: str, refused: dict[str, Outcome]) -> None:
    is_refused(refused[case], REFUSED[case][1])
    assert refused[case].left == sorted(["file.txt", *map(str, range(len(FILES)))])


@pytest.mark.parametrize("text", FILES)
def test_a_bad_configuration_file_too(text: str, refused: dict[str, Outcome]) -> None:
    is_refused(refused[text], FILES[text])


def test_mpirun_ends_with_the_status_of_the_ranks(tmp_path: Path, train) -> None:
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (tmp_path / name).write_bytes(b"\0\0\x08\x03\0\0\0\x05")
    done = train(2, "--dataset", "mnist", "--data-dir", tmp_path)
    assert done.status == 2
    assert len(lines(done.err)) == 1
    assert "train-images-idx3-ubyte" in done.err


def test_without_mpirun_it_is_a_world_of_one(tmp_path: Path, train) -> None:
    done = train(0, *TINY, "--steps", "3", "--out", "alone")
    assert done.status == 0, done.err
    assert reader.read(tmp_path / "alone" / "trace.h5").header.ranks == 1


def test_a_day_of_a_user(tmp_path: Path) -> None:
    """Help, runs, resumes and what is refused of them, on two ranks, one after the other."""
    (tmp_path / "a.toml").write_text(
        'density = 0.1\nmethod = "layerwise-topk"\nmlp_widths = [8]\nbatch_size = 4\nsteps = 7'
    )
    day = {
        "help": ["--help"],
        "file and flag": ["--config", "a.toml", "--density", "0.2", "--out", "first"],
        "what it kept": ["--config", "first/config.toml", "--out", "again"],
        "no name": [*TINY, "--steps", "1"],
        "run": [*TINY, "--steps", "2", "--out", "run"],
        "run again": [*TINY, "--steps", "2", "--out", "run"],
        **{case: ["--out", "run", "--resume", *args] for case, (args, _) in UNCHANGED.items()},
        "auto": [*TINY, "--steps", "2", "--out", "auto", "--resume=auto"],
        "auto again": [*TINY, "--steps", "4", "--out", "auto", "--resume=auto"],
    }
    happened = outcomes(2, "dls.train", map(shlex.join, day.values()), tmp_path)
    told = dict(zip(day, happened, strict=True))
    refused = {case: words for case, (_, words) in UNCHANGED.items()}
    refused["run again"] = "run already holds a run; add --resume"
    for case, outcome in told.items():
        if case in refused:
            is_refused(outcome, refused[case])
        else:
            assert (set(outcome.statuses), outcome.err) == ({0}, ""), case

    assert told["help"].out.count("usage:") == 1
    assert "--dls-steps" in told["help"].out

    kept = tomllib.loads((tmp_path / "first" / "config.toml").read_text())
    assert (kept["density"], kept["method"], kept["mlp_widths"], kept["steps"]) == (
        0.2,
        "layerwise-topk",
        [8],
        7,
    )
    one, two = (reader.read(tmp_path / name / "trace.h5") for name in ("first", "again"))
    assert one.steps["loss"].tolist() == two.steps["loss"].tolist()

    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("digits-mlp-dls-")
    assert (out / "checkpoints" / "step-00000001" / "manifest.json").exists()
    for name, steps in (("run", [1, 2]), ("auto", [1, 2, 3, 4])):
        assert reader.read(tmp_path / name / "trace.h5").steps["step"].tolist() == steps
        assert reader.trace_files(tmp_path / name) == [tmp_path / name / "trace.h5"]


def test_ranks_with_other_data_are_named(tmp_path: Path) -> None:
    """As from a disk of their own with another copy."""
    program = (
        "import sys; from mpi4py import MPI; from dls.tasks import data; from dls.train import"
        " main\nload = data.load\ndef other(*args, **settings):\n    dataset = load(*args,"
        " **settings)\n    if MPI.COMM_WORLD.rank == 2:\n       "
        " dataset.train_images.flags.writeable = True\n        dataset.train_images[700, 0, 3, 3]"
        " ^= 1\n    return dataset\ndata.load = other\nsys.exit(main(sys.argv[1:]))"
    )
    done = launch([(3, ["-c", program, *TINY, "--steps", "1", "--out", "run"])], tmp_path)
    assert done.status == 2
    (line,) = lines(done.err)
    assert line.startswith("dls.train: rank 2 differs from rank 0 in data: ")


def test_ranks_that_differ_are_named(tmp_path: Path) -> None:
    common = ["-m", "dls.train", *TINY, "--steps", "1", "--out", "run"]
    done = launch([(1, [*common, "--lr", "0.1"]), (1, [*common, "--lr", "0.2"])], tmp_path)
    assert done.status == 2
    assert lines(done.err) == ["dls.train: rank 1 differs from rank 0 in lr: 0.2 instead of 0.1"]
    assert not (tmp_path / "run").exists()


def test_ranks_with_other_code_are_named(tmp_path: Path) -> None:
    other = tmp_path / "other"
    for package in ("dls", "reference", "gpu"):
        shutil.copytree(ROOT / package, other / package)
    (other / "dls" / "optim.py").write_text((ROOT / "dls" / "optim.py").read_text() + "\n")
    start = (
        "import sys; sys.path.insert(0, {!r}); from dls.train import main;"
        " sys.exit(main(sys.argv[1:]))"
    )
    args = [*TINY, "--steps", "1", "--out", "run"]
    done = launch(
        [(1, ["-c", start.format(str(ROOT)), *args]), (1, ["-c", start.format(str(other)), *args])],
        tmp_path,
    )
    assert done.status == 2
    assert len(lines(done.err)) == 1
    assert "rank 1 differs from rank 0 in code version" in done.err


def test_a_loss_that_explodes_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path, train) -> None:
    assert train(3, *TINY, "--steps", "5", "--out", "run").status == 0
    done = train(3, "--out", "run", "--resume", "--steps", "50", "--lr", "1e30")
    assert done.status == 1
    assert len(lines(done.err)) == 1, done.err
    assert "done" not in done.out
    assert done.err.strip().endswith(ADVICE)
    assert re.match(r"dls.train: rank [012], step [78]: the loss is (nan|inf);", done.err.strip())
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 5
    assert all("weights" in checkpoint.load(found, rank)[0] for rank in range(3))


@pytest.mark.parametrize("method", ["dense", "global-topk", "layerwise-topk", "dls"])
def test_a_gradient_that_is_not_finite_names_rank_step_and_layer(
    method: str, tmp_path: Path
) -> None:
    program = tmp_path / "poison.py"
    program.write_text(
        "import sys\n"
        "import numpy as np\n"
        "from dls import train; from dls.tasks import models\n"
        "from mpi4py import MPI\n"
        "backward = models.Model.backward\n"
        "calls = []\n"
        "def poisoned(self, dlogits, on_gradient):\n"
        "    calls.append(1)\n"
        "    def spoil(layer):\n"
        "        if layer == 0 and len(calls) == 4 and MPI.COMM_WORLD.rank == 1:\n"
        "            self.gradients[3] = np.inf\n"
        "        on_gradient(layer)\n"
        "    backward(self, dlogits, spoil)\n"
        "models.Model.backward = poisoned\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    args = [*TINY, "--method", method, "--steps", "9", "--checkpoint-every", "2", "--out", "run"]
    done = launch([(2, [program, *args])], tmp_path)
    assert done.status == 1
    assert lines(done.err) == [
        "dls.train: rank 1, step 4: NaN or infinity in the gradient of layer linear1" + ADVICE
    ]
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 2


def test_a_failure_of_rank_0_does_not_claim_success(tmp_path: Path, train) -> None:
    done = train(
        2, *TINY, "--steps", "50", "--lr", "3e38", "--checkpoint-every", "1", "--out", "run"
    )
    assert done.status == 1
    assert len(lines(done.err)) == 1, done.err
    assert "done" not in done.out


def test_ranks_that_see_different_checkpoints_are_named(tmp_path: Path, train) -> None:
    for place, steps in (("a", "2"), ("b", "4")):
        (tmp_path / place).mkdir()
        assert train(2, *TINY, "--steps", steps, "--out", "run", cwd=tmp_path / place).status == 0
    (tmp_path / "c").mkdir()
    start = (
        "import os, sys; os.chdir({!r}); from dls.train import main; sys.exit(main(sys.argv[1:]))"
    )
    for other in ("b", "c"):
        programs = [
            (
                1,
                [
                    "-c",
                    start.format(str(tmp_path / place)),
                    "--out",
                    "run",
                    "--resume=auto",
                    *TINY,
                    "--steps",
                    "9",
                ],
            )
            for place in ("a", other)
        ]
        done = launch(programs, tmp_path)
        assert done.status == 2
        assert len(lines(done.err)) == 1
        assert "rank 1 differs from rank 0 in checkpoint" in done.err


def test_ranks_that_write_to_different_disks_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    start = (
        "import os, sys; os.chdir({!r}); from dls.train import main; sys.exit(main(sys.argv[1:]))"
    )
    args = [*TINY, "--steps", "1", "--out", "run"]
    done = launch(
        [(1, ["-c", start.format(str(tmp_path / place)), *args]) for place in ("a", "b")], tmp_path
    )
    assert done.status == 2
    assert len(lines(done.err)) == 1
    assert "rank 1 on " in done.err
    assert "does not see run" in done.err


def test_an_error_at_the_start_ends_every_rank(tmp_path: Path) -> None:
    program = tmp_path / "break.py"
    program.write_text(
        "import sys\n"
        "from dls import train; from dls.program import run\n"
        "from mpi4py import MPI\n"
        "def broken(*args):\n"
        "    if MPI.COMM_WORLD.rank == 1: raise RuntimeError('no such luck')\n"
        "    return build(*args)\n"
        "build, run._build = run._build, broken\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    done = launch([(3, [program, *TINY, "--steps", "9", "--out", "run"])], tmp_path)
    assert done.status == 1
    assert len(lines(done.err)) == 1, done.err
    assert "at the start: RuntimeError: no such luck (break.py, line 5, in broken)" in done.err


def test_runs_without_a_name_get_folders_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dls.train", *TINY, "--steps", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [process.wait() for process in both] == [0, 0, 0]
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_a_resumed_run_may_be_longer_in_epochs_and_without_its_trace(tmp_path: Path, train) -> None:
    assert train(1, *TINY, "--batch-size", "400", "--steps", "2", "--out", "run").status == 0
    (tmp_path / "run" / "trace.h5").unlink()
    assert train(1, "--out", "run", "--resume", "--epochs", "2").status == 0
    assert reader.read(tmp_path / "run" / "trace.h5").steps["step"].tolist() == [3, 4, 5, 6]


def test_an_unexpected_error_ends_every_rank_and_leaves_its_traceback(tmp_path: Path) -> None:
    program = tmp_path / "break.py"
    program.write_text(
        "import sys\n"
        "from dls import optim, train\n"
        "from mpi4py import MPI\n"
        "def broken(self, place, update, lr):\n"
        "    if MPI.COMM_WORLD.rank == 1: raise KeyError('gone')\n"
        "optim.Sgd.apply = broken\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    done = launch([(3, [program, *TINY, "--steps", "9", "--out", "run"])], tmp_path)
    assert done.status == 1
    assert lines(done.err) == ["dls.train: rank 1, step 1: KeyError: 'gone'; see run/failure.txt"]
    assert "Traceback" in (tmp_path / "run" / "failure.txt").read_text()


MODULE = """module() { test "$*" = "load mpi dls" && PATH="$WHERE:$PATH"; }; export -f module"""
SLURM = {
    "on the path": ('export PATH="$WHERE:$PATH"', "3"),
    "in a virtual environment": ('export DLS_VENV="$WHERE/.."', "5"),
    "in modules": (f'{MODULE}; export DLS_MODULES="mpi dls"', "7"),
    "by a launcher": (
        'export PATH="$WHERE:$PATH" DLS_LAUNCHER="mpirun -n 2 -prepend-rank"',
        "9",
    ),
}
"""Ways in which a cluster has the program, and up to which step each continues the run."""


def test_the_slurm_script_starts_and_goes_on(tmp_path: Path) -> None:
    """As on an allocation of two tasks; without Slurm, mpirun starts them here."""
    environment = os.environ | {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_NTASKS": "2",
        "PYTHONPATH": str(ROOT),
        "WHERE": str(Path(sys.executable).parent),
        "PATH": "/usr/bin:/bin",
    }
    script = ROOT / "runs" / "slurm.sbatch"

    def submit(before: str, steps: str) -> subprocess.CompletedProcess[str]:
        arguments = shlex.join([str(script), *TINY, "--steps", steps, "--out", "run"])
        return subprocess.run(
            ["bash", "-c", f"{before}; exec bash {arguments}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    for case, (before, steps) in SLURM.items():
        done = submit(before, steps)
        assert done.returncode == 0, (case, done.stderr)
        assert ("[0] " in done.stdout) is (case == "by a launcher")
    steps_taken = reader.read(tmp_path / "run" / "trace.h5").steps["step"].tolist()
    assert steps_taken == list(range(1, 10))

    nowhere = submit("true", "9")
    assert nowhere.returncode == 2
    assert nowhere.stderr.startswith("slurm.sbatch: no dls program on the path; ")
