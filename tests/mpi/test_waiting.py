"""Ranks that are late, stuck or empty-handed: the others wait, or end with one line that says for
what they waited.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import lines
from tests.launch import launch, train_all
from tests.mpi.test_bits import loaded

SETTINGS = "--mlp-widths 16,8 --batch-size 8 --steps 4 --threads 1 --backend numpy --bucket-size 1"

STUCK = """
import sys, time
from mpi4py import MPI
from dls import train
from dls.exchange.exchanger import Exchanger
original = Exchanger.ready
calls = 0

def held_up(self, layer):
    global calls
    calls += 1
    if calls == {call}:
        self.comm.timeout = {patience}  # from here on: to start may take long
        time.sleep(float(sys.argv[2]) if MPI.COMM_WORLD.rank == int(sys.argv[1]) else 0)
    original(self, layer)

Exchanger.ready = held_up
sys.exit(train.main(sys.argv[3:]))
"""


def held_up(folder: Path, rank: int, seconds: float, call: int, *args: str, patience: float = 300):
    """Train on three ranks; one sleeps before it selects the layer whose gradient is its call-th.

    patience: seconds that the others wait from then on, at most.
    """
    program = folder / "held_up.py"
    program.write_text(STUCK.format(call=call, patience=patience))
    return launch([(3, [program, str(rank), str(seconds), *SETTINGS.split(), *args])], folder)


def test_a_rank_that_is_seconds_late_is_waited_for(tmp_path: Path) -> None:
    late = held_up(tmp_path, 1, 4, 5, "--out", "late")
    assert late.status == 0, late.err
    assert held_up(tmp_path, 1, 0, 5, "--out", "on_time").status == 0
    for one, two in zip(loaded(tmp_path / "late", 3), loaded(tmp_path / "on_time", 3), strict=True):
        assert one["weights"].tobytes() == two["weights"].tobytes()


@pytest.mark.parametrize(
    ("method", "call", "bucket"),
    [
        ("dls", 5, "layer linear2"),  # of step 2: three layers a step, the last one first
        ("global-topk", 3, "layers linear1 to linear3"),
        ("dense", 4, "layer linear3"),
    ],
)
def test_a_stuck_rank_ends_the_run_and_is_named(
    tmp_path: Path, method: str, call: int, bucket: str
) -> None:
    done = held_up(tmp_path, 2, 100, call, "--method", method, "--out", "run", patience=3)
    assert done.status == 1
    (line,) = lines(done.err)
    assert line.startswith("dls.train: rank ")
    words = f"step {(call + 2) // 3}: {bucket}: no word from rank 2"
    assert f"{words} after 3 s of waiting (--timeout)" in line


def test_ranks_with_nothing_to_send(tmp_path: Path) -> None:
    """One value of 1,250 is sent: all layers but one have k = 0 on every rank, and the layer
    differs between ranks.
    """
    command = f"--method dls --dls-steps optimal --density 0.0008 {SETTINGS} --out run"
    train_all(3, [command], tmp_path)
    assert [state["k"].sum() for state in loaded(tmp_path / "run", 3)] == [1, 1, 1]


PAYLOADS = """
import sys
import numpy as np
from dls.comm.world import World
from reference.collectives import Gather
comm = World()
comm.open_lanes(1)
for words in sys.argv[1:]:
    sizes = [int(size) for size in words.split()]
    marks = slice(None, None, 1 + max(sizes) // 10**4)
    payload = np.zeros(sizes[comm.rank], dtype=np.uint8)
    payload[marks] = payload[-1:] = comm.rank + 1
    pending = comm.post(0, Gather(payload, sizes), "test")
    del payload
    few = min(sizes[comm.rank], 10**7)
    rubbish = np.full(few, 255, dtype=np.uint8)  # lies where the payload lay, if nobody kept it
    comm.wait_until(pending.done, "test")
    for rank, message in enumerate(pending.answer):
        assert message.size == sizes[rank], (sizes, rank)
        assert (message[marks] == rank + 1).all(), (sizes, rank)
        assert (message[-1:] == rank + 1).all(), (sizes, rank)
"""
"""Exchange messages of these sizes, one a rank, each argument an exchange."""


def test_messages_of_any_size_outlive_their_sender_s_interest(tmp_path: Path) -> None:
    sizes = ["0 0 0", "0 5 0", "7 0 1", "900000 3000000 2000000"]
    done = launch([(3, ["-c", PAYLOADS, *sizes])], tmp_path)
    assert done.status == 0, done.err
    assert not lines(done.err)


def free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(free_memory() < 12 << 30, reason="needs 12 GiB of free memory")
def test_more_bytes_than_an_int_counts(tmp_path: Path) -> None:
    done = launch([(2, ["-c", PAYLOADS, "1100000000 1100000000"])], tmp_path)
    assert done.status == 0, done.err


def test_a_message_that_is_damaged_on_its_way_ends_the_run(tmp_path: Path) -> None:
    program = tmp_path / "damage.py"
    program.write_text(
        "import sys\n"
        "from mpi4py import MPI\n"
        "from dls import train\n"
        "from dls.comm.lanes import Flight\n"
        "original = Flight.resume\n"
        "def damaged(self):\n"
        "    if MPI.COMM_WORLD.rank == 2 and 'layer linear2' in self.what:\n"
        "        first, *others = self.pending.answer\n"
        "        self.pending.answer = [first.copy(), *others]\n"
        "        self.pending.answer[0][9] ^= 4\n"
        "    original(self)\n"
        "Flight.resume = damaged\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    done = launch([(3, [program, *SETTINGS.split(), "--density", "0.1", "--out", "run"])], tmp_path)
    assert done.status == 1
    (line,) = lines(done.err)
    assert line.startswith(
        "dls.train: rank 2, step 1: layer linear2, from rank 0: a damaged message"
    )


LANES = """
import sys, time
import numpy as np
from dls.comm.errors import ExchangeError
from dls.comm.world import World
comm = World(3)
word = comm.allgather(np.array(comm.rank), "test")  # what is asked of the library keeps its turn
if comm.rank == 2 and sys.argv[1] == "late": time.sleep(100)
try:
    comm.open_lanes(3)
except ExchangeError as error:
    print(error, file=sys.stderr, flush=True)
    comm.abort(1)
assert word.wait().tolist() == [0, 1, 2]
"""


def test_nobody_waits_without_a_limit_for_lanes(tmp_path: Path) -> None:
    done = launch([(3, ["-c", LANES, "in time"])], tmp_path)
    assert (done.status, done.err) == (0, "")
    done = launch([(3, ["-c", LANES, "late"])], tmp_path)
    assert done.status == 1
    words = "the other ranks to get ready: no word from rank 2 after 3 s of waiting (--timeout)"
    assert set(lines(done.err)) == {words}
