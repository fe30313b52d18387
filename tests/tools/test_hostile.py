"""Files from anywhere: cut, flipped or made to harm, they give one line, in little time and memory,
and run nothing.

The readers of data files and of messages have their own such tests, in test_data.py and
test_wire_laws.py.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls.cli import UsageError
from dls.comm.world import World
from dls.program import config
from dls.record import checkpoint, files
from dls.record.checkpoint import Position
from tests.launch import ROOT
from tests.strategies import QUICK

# --- configurations -------------------------------------------------------------------------------

TOML = {
    "deep lists": "mlp_widths = " + "[" * 8_000 + "]" * 8_000,
    "a deep table": "a" + ".a" * 8_000 + " = 1",
    "many digits": "seed = " + "9" * 5000,
    "many hexadecimal digits": "seed = 0x" + "f" * 5000,
    "many digits in a list": "mlp_widths = [0x" + "f" * 5000 + "]",
    "a real beyond all": "lr = 1e999999",
    "a key of several lines": '"a\\nb\\u001b[31m" = 1',
    "a value of several lines": 'method = "a\\nb\\u001b[31m"',
    "a name with NUL": 'out = "a\\u0000b"',
    "a long key": "k" * 10_000 + " = 1",
    "too long": "#" * (config.TOML_BYTES + 1),
    "not UTF-8": b"method = '\xff'",
    "NUL": b"\0" * 100,
}


@pytest.mark.parametrize("case", TOML)
def test_a_hostile_configuration_is_one_line(case: str, tmp_path: Path) -> None:
    text = TOML[case]
    (tmp_path / "a.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        config.build(config.read_toml(tmp_path / "a.toml"))
    line = files.one_line(str(caught.value))
    assert "a.toml" in line
    assert line.isprintable()
    assert len(line) < 1100


@QUICK
@given(
    st.text(max_size=60)
    | st.builds("{}={}".format, st.sampled_from(sorted(config.FIELDS)), st.text())
)
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        config.build(config.from_toml(text, "a.toml"))


@QUICK
@given(st.text(max_size=3000))
def test_one_line_is_one_line(text: str) -> None:
    line = files.one_line(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a small checkpoint of one rank."""
    about = checkpoint.Checkpoint(
        checkpoint.place(tmp_path, 3), 1, Position(3, 0, 24), 'method = "dls"', (("linear1", 7),)
    )
    checkpoint.save(
        about, {"weights": np.arange(7, dtype=np.float32)}, {"k": np.arange(3)}, 0, World()
    )
    return about.folder


def sealed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, the seal too: this is no accident."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(
        json.dumps(manifest | {"seal": checkpoint._seal(manifest)})
    )


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another folder's file": lambda m: m["sha256"].update({"../../../etc/passwd": "0"}),
    "a file for a folder": lambda m: m.update(sha256={"shared.h5": "0", "/dev/zero": "0"}),
    "a billion ranks": lambda m: m.update(world_size=10**9),
    "no rank": lambda m: m.update(world_size=0, sha256={"shared.h5": "0"}),
    "a truth for a number": lambda m: m.update(world_size=True),
    "half a rank": lambda m: m.update(world_size=1.0),
    "a number beyond all": lambda m: m["position"].update(epoch=10**400),
    "infinity": lambda m: m["position"].update(seen=float("inf")),
    "a step of another folder": lambda m: m["position"].update(step=4),
    "layers of no size": lambda m: m.update(layers=[["a", 0]]),
    "layers that are none": lambda m: m.update(layers=7),
    "a list of lists": lambda m: m.update(sha256=[[]]),
    "no position": lambda m: m.pop("position"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_made_to_harm_is_refused(case: str, saved: Path) -> None:
    sealed(saved, MANIFESTS[case])
    with pytest.raises(
        checkpoint.CheckpointError, match=r"step-00000003 is damaged: its manifest\.json [^\n]*$"
    ):
        checkpoint.describe(saved)


NO_MANIFESTS = [
    "",
    "[" * 10**6,
    '{"a":' * 10**5,
    "7",
    "null",
    '{"format": ' + "9" * 5000,
    '{"world_size": 1e999}',
]


@pytest.mark.parametrize("text", NO_MANIFESTS)
def test_a_manifest_that_is_none_too(text: str, saved: Path) -> None:
    (saved / "manifest.json").write_text(text)
    with pytest.raises(checkpoint.CheckpointError, match=r"is damaged: its manifest\.json"):
        checkpoint.describe(saved)


def test_every_flipped_byte_of_a_checkpoint_is_noticed(saved: Path) -> None:
    rng = random.Random(0)
    for path in sorted(saved.iterdir()):
        content = path.read_bytes()
        for place in rng.sample(range(len(content)), min(len(content), 150)):
            path.write_bytes(
                content[:place]
                + bytes([content[place] ^ 1 << rng.randrange(8)])
                + content[place + 1 :]
            )
            with pytest.raises(checkpoint.CheckpointError, match="none of the 1 checkpoints"):
                checkpoint.find(saved.parent.parent, World())
        path.write_bytes(content)
    assert checkpoint.find(saved.parent.parent, World())[0] is not None


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((7,), np.float32)
    layout[...] = h5py.VirtualSource("other.h5", "x", (7,))
    file.create_virtual_dataset("weights", layout)


ARRAYS: dict[str, Callable[[h5py.File], object]] = {
    "an external link": lambda f: f.__setitem__("weights", h5py.ExternalLink("/etc/passwd", "x")),
    "a soft link": lambda f: f.__setitem__("weights", h5py.SoftLink("/weights")),
    "a group": lambda f: f.create_group("weights"),
    "a virtual dataset": _virtual,
    "external storage": lambda f: f.create_dataset(
        "weights", (7,), "f4", external=[("/etc/passwd", 0, 28)]
    ),
    "a terabyte": lambda f: f.create_dataset("weights", (2**40,), "f4", chunks=(1024,)),
    "a filter": lambda f: f.create_dataset("weights", data=np.zeros(7, "f4"), compression="gzip"),
    "texts": lambda f: f.create_dataset("weights", data=["cos\nsystem\n(S'exit 1'\ntR."]),
    "objects": lambda f: f.create_dataset("weights", (7,), h5py.vlen_dtype(np.float32)),
    "pairs": lambda f: f.create_dataset("weights", (7,), [("a", "f4")]),
    "nothing": lambda f: f.create_dataset("weights", data=h5py.Empty("f4")),
    "the same again and again": lambda f: [
        f.create_dataset(str(i), (2**10,), "f4", chunks=(1024,)) for i in range(100)
    ],
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_made_to_harm_are_refused(case: str, saved: Path) -> None:
    with h5py.File(saved / "shared.h5", "w") as file:
        ARRAYS[case](file)
    with pytest.raises(checkpoint.CheckpointError, match=r"shared\.h5 cannot be read: [^\n]*$"):
        checkpoint.load_shared(checkpoint.describe(saved))


# --- traces, and HDF5 itself ----------------------------------------------------------------------

FLIPS = """
import json, pathlib, sys
from dls.record import reader
from dls.record.schema import TraceError
path = pathlib.Path(sys.argv[1])
content = path.read_bytes()
for changes in json.load(sys.stdin):
    print(changes, flush=True)
    spoiled = bytearray(content)
    for place, value in changes:
        spoiled[place] = value
    path.write_bytes(spoiled)
    try:
        reader.read(path)
    except TraceError as error:
        assert len(str(error).splitlines()) == 1
"""


def text_sizes(content: bytes) -> list[list[list[int]]]:
    """Changes of sizes in the collection of texts (HDF5 File Format, III.E): over some HDF5 walked
    on the spot, for ever.
    """
    at, places = content.index(b"GCOL") + 16, []
    while int.from_bytes(content[at : at + 2], "little"):
        places.append(at + 8)
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    return [[[place, value]] for place in places[::8] + places[-1:] for value in (0, 255)]


def flips(size: int, count: int) -> list[list[list[int]]]:
    """Changes of one to three bytes, most of them where the structure is."""
    rng = random.Random(1)
    return [
        [[int(size * rng.random() ** 3), rng.randrange(256)] for _ in range(rng.randint(1, 3))]
        for _ in range(count)
    ]


def test_a_trace_with_flipped_bytes_is_read_or_refused(tmp_path: Path) -> None:
    """In a process of its own, as HDF5 might crash or not come back; the last line says over
    what.
    """
    command = (
        "import pathlib, sys; from tests.tools.test_trace import _whole;"
        " _whole(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", command, tmp_path / "t.h5"], cwd=ROOT, check=True)
    content = (tmp_path / "t.h5").read_bytes()
    changes = json.dumps(text_sizes(content) + flips(len(content), 150))
    command = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n" + FLIPS
    )
    done = subprocess.run(
        [sys.executable, "-c", command, tmp_path / "t.h5"],
        input=changes, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()[-3:]
