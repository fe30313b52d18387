"""Several hosts on one machine: a real hostfile, a real network, bytes as the kernel counts them,
and nothing left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dls.bench import __main__ as bench
from dls.record import reader
from dls.tools import hosts
from dls.tools.hosts import Hosts, HostsError
from tests.launch import ROOT, wait_until
from tests.mpi.test_bits import loaded

SETTINGS = [
    "--mlp-widths=256",
    "--density=0.05",
    "--batch-size=8",
    "--steps=20",
    "--threads=1",
    "--backend=numpy",
]


def reason() -> str:
    try:
        hosts.check()
    except HostsError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(reason()), reason=reason())


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = networks()
    yield
    assert wait_until(lambda: not networks() - before, 10)


def networks() -> set[str]:
    """The kernel's name of every network that a process of this machine is in."""
    found = set()
    for process in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(process))
        except OSError:
            continue
    return found


def run(network: Hosts, ranks: int, *args: str | Path) -> subprocess.CompletedProcess[str]:
    command = network.mpirun(
        ranks, [sys.executable, *args], {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    )
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_three_hosts_give_the_bits_of_one(tmp_path: Path, train) -> None:
    with Hosts(3, "1gbit") as network:
        done = run(network, 3, "-m", "dls.train", *SETTINGS, "--out", tmp_path / "hosts")
        assert done.returncode == 0, done.stderr
    assert train(3, *SETTINGS, "--out", tmp_path / "one").status == 0
    for one, two in zip(loaded(tmp_path / "hosts", 3), loaded(tmp_path / "one", 3), strict=True):
        assert one["weights"].tobytes() == two["weights"].tobytes()
    assert list(reader.read(tmp_path / "hosts" / "trace.h5").header.attributes["hosts"]) == [
        "host0",
        "host1",
        "host2",
    ]


@pytest.mark.parametrize("method", ["dls", "dense"])
def test_bytes_in_the_trace_are_those_that_the_kernel_counts(tmp_path: Path, method: str) -> None:
    """On two hosts each byte crosses once; the kernel adds packets' headers, and MPI its own,
    start-up and the trace's rows.
    """
    sent = []
    for steps in ("10", "210"):
        with Hosts(2) as network:
            out = tmp_path / f"run{steps}"
            few = ["--steps", steps, "--trace-every", "1000", "--eval-every", "1000"]
            done = run(
                network, 2, "-m", "dls.train", *SETTINGS, *few, "--method", method, "--out", out
            )
            assert done.returncode == 0, done.stderr
            sent.append(network.sent_bytes(0))
    with Hosts(2) as network:
        done = run(
            network,
            2,
            "-m",
            "dls.train",
            *SETTINGS,
            "--steps",
            "20",
            "--method",
            method,
            "--out",
            tmp_path / "traced",
        )
        assert done.returncode == 0, done.stderr
    told = reader.read(tmp_path / "traced" / "trace.h5").steps["payload_bytes"]
    a_step = (sent[1] - sent[0]) / 200
    packets = 66 * (told[:, 0].mean() / 1448 + 12) + 800
    assert told[:, 0].mean() <= a_step <= 1.02 * told[:, 0].mean() + packets


def test_a_rate_holds(tmp_path: Path) -> None:
    """8 MB at 100 Mbit/s take 0.64 s or more, less the burst that a link may send at once, 1.6 %,
    on however fast a machine.
    """
    program = (
        "import time, numpy as np; from dls.comm.world import World;"
        "from reference.collectives import Gather; c = World(); p = np.zeros(8_000_000, np.uint8);"
        "c.together(lambda: None); t = time.time(); c.ask(Gather(p, [p.size] * 2), 'test');"
        "c.rank or print(time.time() - t)"
    )
    with Hosts(2, "100mbit") as network:
        done = run(network, 2, "-c", program)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.62


def test_a_host_that_is_cut_off_is_named(tmp_path: Path) -> None:
    with Hosts(2) as network:
        args = [
            "-m",
            "dls.train",
            *SETTINGS,
            "--steps",
            "100000",
            "--timeout",
            "2",
            "--out",
            str(tmp_path / "run"),
        ]
        command = network.mpirun(
            2, [sys.executable, *args], {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        )
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as running:
            assert wait_until((tmp_path / "run" / "trace.h5").exists, 60, running)
            network.set_link(1, up=False)
            _, words = running.communicate(timeout=60)
    assert running.returncode
    assert "no word from rank" in words


def test_hosts_go_with_their_owner() -> None:
    """Even where it is killed; the fixture looks for what is left."""
    program = (
        "import time; from dls.tools.hosts import Hosts; h = Hosts(2).__enter__(); print('up',"
        " flush=True); time.sleep(100)"
    )
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, "-c", program]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"up\n"
            owner.send_signal(number)
            assert owner.wait()


def test_the_benchmark_takes_its_hosts_down_when_it_is_ended(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "dls.bench",
        "network",
        "--networks",
        "mlp",
        "--hosts",
        "2",
        "--steps",
        "1000",
    ]
    for number in (signal.SIGTERM, signal.SIGINT):
        before = networks()
        running = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert wait_until(lambda before=before: len(networks() - before) >= 3, 60, running)
        time.sleep(2)  # the ranks are there too
        running.send_signal(number)
        assert running.wait(timeout=30)


def test_the_benchmark_judges_and_draws_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        "--networks",
        "resnet20",
        "--hosts",
        "2",
        "--rates",
        "1gbit",
        "--batch",
        "2",
        "--steps",
        "1",
    ]
    assert (
        bench.main(
            [
                "network",
                *small,
                "--json",
                str(tmp_path / "rows.json"),
                "--chart",
                str(tmp_path / "chart.png"),
            ]
        )
        == 0
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["method"] for row in rows] == [
        "dense",
        "global-topk",
        "layerwise-topk",
        "dls",
        "dls/at-end",
    ]
    dense = rows[0]
    assert dense["kB"] == pytest.approx(4 * 269.722)
    for row in rows:
        assert row["step, ms"] == pytest.approx(row["compute, ms"] + row["exposed, ms"])
        assert row["kB / dense"] == pytest.approx(row["kB"] / dense["kB"])
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert "missed" in capsys.readouterr().out
