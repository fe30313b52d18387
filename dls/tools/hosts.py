"""Several hosts on one machine: network namespaces joined by a bridge, with links of a chosen rate,
for MPICH's mpirun.

Each host has a network and a name of its own. A namespace lives as long as a process in it: here
one that reads from a pipe of this process. So nothing is left behind, even where this process is
killed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

NETWORK = "198.18.0"
"""A network that RFC 2544 sets aside for benchmarks; it exists in the namespaces alone."""
SWITCH = 254
"""The last part of the address from which mpirun speaks to the hosts."""
TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
"""Programs that this needs, and Debian's packages of them."""
BURST, PACKETS = 0.25e-3, 4000
"""What a link of limited rate may send at once: seconds' worth, and the fewest bytes.

With less it does not reach its rate.
"""
QUEUE = "50ms"
"""How long a packet may wait at a link of limited rate."""
ENVIRONMENT = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}
"""What keeps ranks of different hosts from the memory that these hosts share, as they are one
machine.
"""


class HostsError(RuntimeError):
    """Hosts cannot be had here: one line that says why, and what to do."""


def check() -> None:
    """HostsError where this process may not make hosts, or where a program is missing."""
    if os.geteuid():
        raise HostsError("network namespaces need root: run this as root, or with sudo")
    missing = {TOOLS[tool] for tool in TOOLS if shutil.which(tool) is None}
    if missing:
        raise HostsError(f"programs are missing: apt-get install {' '.join(sorted(missing))}")
    if (
        "HYDRA"
        not in subprocess.run(
            [mpirun(), "--version"], capture_output=True, text=True, check=False
        ).stdout
    ):
        raise HostsError("hosts on one machine need MPICH's mpirun: make MPI=mpich")


class Hosts:
    """So many hosts, until the block ends. `rate`: of every link, in both directions, as tc writes
    it (100mbit); None: no limit.

    Raises HostsError as `check` does, or where the kernel refuses.
    """

    def __init__(self, count: int, rate: str | None = None) -> None:
        self.count, self.rate = count, rate
        self._folder = tempfile.TemporaryDirectory(prefix="dls-hosts-")
        self._keepers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hosts:
        check()
        try:
            self._switch = self._namespace("switch")
            self._hosts = [self._namespace(f"host{i}") for i in range(self.count)]
            self._join()
            self._write_files()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the hosts down."""
        for keeper in self._keepers:
            with keeper:  # waits, and closes the pipes
                keeper.kill()
        self._keepers.clear()
        self._folder.cleanup()

    def mpirun(
        self, ranks: int, args: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> list[str]:
        """The command that runs `args` on so many ranks, dealt to the hosts in turn; any process of
        this machine may start it.
        """
        settings = [
            f"{name}={value}" for name, value in (ENVIRONMENT | dict(environment or {})).items()
        ]
        launch = [
            "-launcher",
            "ssh",
            "-launcher-exec",
            str(self._file("enter")),
            "-localhost",
            _address(SWITCH),
        ]
        command = [
            mpirun(),
            *launch,
            "-f",
            str(self._file("hostfile")),
            "-n",
            str(ranks),
            *map(str, args),
        ]
        return [*self._inside(self._switch), "env", *settings, *command]

    def sent_bytes(self, host: int) -> int:
        """Bytes that the kernel counted as sent by the host's interface, packets' headers
        included.
        """
        shown = self._run(self._hosts[host], "ip", "-s", "-j", "link", "show", "eth0")
        sent: int = json.loads(shown)[0]["stats64"]["tx"]["bytes"]
        return sent

    def set_link(self, host: int, up: bool) -> None:
        """Cut the host off, or join it again."""
        self._run(self._switch, "ip", "link", "set", f"port{host}", "up" if up else "down")

    def _namespace(self, name: str) -> int:
        """The process that keeps a new host of this name alive, with a network of its own."""
        inside = ["sh", "-c", 'hostname "$1" && echo ready && exec cat >/dev/null', "sh", name]
        keeper = subprocess.Popen(
            ["unshare", "--net", "--uts", *inside], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._keepers.append(keeper)
        assert keeper.stdout is not None
        if keeper.stdout.readline() != b"ready\n":
            raise HostsError(
                "the kernel refuses new network namespaces: this needs root outside a container, or"
                " CAP_SYS_ADMIN"
            )
        return keeper.pid

    def _join(self) -> None:
        """Connect every host to the bridge."""
        self._run(self._switch, "ip", "link", "add", "bridge", "type", "bridge")
        self._run(self._switch, "ip", "address", "add", f"{_address(SWITCH)}/24", "dev", "bridge")
        for device in ("bridge", "lo"):
            self._run(self._switch, "ip", "link", "set", device, "up")
        for i, host in enumerate(self._hosts):
            port = f"port{i}"
            self._run(
                self._switch,
                "ip",
                "link",
                "add",
                port,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                str(host),
            )
            self._run(self._switch, "ip", "link", "set", port, "master", "bridge", "up")
            self._run(host, "ip", "address", "add", f"{_address(i + 1)}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                self._run(host, "ip", "link", "set", device, "up")
            if self.rate:
                self._limit(self._switch, port, self.rate)
                self._limit(host, "eth0", self.rate)

    def _limit(self, where: int, device: str, rate: str) -> None:
        burst = max(PACKETS, round(BURST * bits_per_second(rate) / 8))
        limit = ["rate", rate, "burst", str(burst), "latency", QUEUE]
        self._run(where, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)

    def _write_files(self) -> None:
        """The hostfile, and what mpirun calls in place of ssh: options, a host's address, a
        command.
        """
        addresses = [_address(i + 1) for i in range(self.count)]
        self._file("hostfile").write_text("".join(f"{address}\n" for address in addresses))
        cases = "".join(
            f"{address}) pid={host};;\n"
            for address, host in zip(addresses, self._hosts, strict=True)
        )
        enter = self._file("enter")
        enter.write_text(
            '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\n'
            f'case $1 in\n{cases}esac\nshift\nexec nsenter -t "$pid" -n -u sh -c "$*"\n'
        )
        enter.chmod(0o755)

    def _file(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def _inside(self, namespace: int) -> list[str]:
        return ["nsenter", "-t", str(namespace), "-n", "-u"]

    def _run(self, namespace: int, *command: str) -> str:
        """What the command says inside a namespace. HostsError where it fails."""
        done = subprocess.run(
            [*self._inside(namespace), *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise HostsError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
        return done.stdout


def bits_per_second(rate: str) -> int:
    """A rate as tc writes it: 100mbit is 100,000,000. ValueError for anything else."""
    found = re.fullmatch(r"([1-9]\d*)([kmg])bit", rate)
    if found is None:
        raise ValueError(f"{rate}: expected a rate such as 100mbit or 1gbit")
    return int(found[1]) * {"k": 10**3, "m": 10**6, "g": 10**9}[found[2]]


def _address(last: int) -> str:
    return f"{NETWORK}.{last}"


def python() -> list[str]:
    """This Python as the beginning of a command; -P, which leaves the current folder's modules
    alone, goes on.
    """
    return [sys.executable, *(["-P"] if sys.flags.safe_path else [])]


def mpirun() -> str:
    """mpirun of this environment, or that on the path. HostsError where there is none."""
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise HostsError("there is no mpirun: pip install mpich")
    return found
