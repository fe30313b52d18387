"""Several hosts on one machine, for MPICH's mpirun: network namespaces that a bridge connects, with
links of a chosen rate.

Each host has a network and a name of its own. A namespace lives as long as a process in it; here
that process reads from a pipe of this one, and so ends with it. Nothing is left behind, even where
this process is killed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dls.cli import UsageError
from dls.tools.programs import mpirun

NETWORK = "198.18.0"
"""The network of the hosts, one that RFC 2544 reserves for benchmarks; it exists only in the
namespaces.
"""
SWITCH = 254
"""The last part of the address of mpirun."""
TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
"""The programs that this needs, and the packages of Debian that hold them."""
BURST_SECONDS = 0.25e-3
"""How much a link of limited rate may send at once, in seconds at its rate; with less it does not
reach its rate.
"""
LEAST_BURST = 4000
"""The same in bytes: the least that is allowed, for low rates."""
QUEUE = "50ms"
"""The longest time that a packet may wait at a link of limited rate."""
ENVIRONMENT = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}
"""Makes ranks of different hosts speak over the network: without it they would use the memory that
the hosts share, being one machine.
"""
UNLIMITED = "unlimited"
"""The rate of links without a limit."""


class HostsError(UsageError):
    """Hosts cannot be made here: one line that says why, and what to do."""


def check() -> None:
    """HostsError where this process may not make hosts, or a program is missing.

    UsageError where there is no mpirun.
    """
    if os.geteuid():
        raise HostsError("network namespaces need root: run this as root, or with sudo")
    missing = {TOOLS[tool] for tool in TOOLS if shutil.which(tool) is None}
    if missing:
        raise HostsError(f"programs are missing: apt-get install {' '.join(sorted(missing))}")
    version = [mpirun(), "--version"]
    if "HYDRA" not in subprocess.run(version, capture_output=True, text=True, check=False).stdout:
        raise HostsError("hosts on one machine need MPICH's mpirun: make MPI=mpich")


class Hosts:
    """A number of hosts, until the with block ends.

    rate: of every link, in both directions, as tc writes it (100mbit); None: no limit. HostsError
    as `check` raises it, or where the kernel refuses.
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
        """The command that runs `args` on the ranks, which are dealt to the hosts in turn.

        Any process of this machine may start it.
        """
        variables = ENVIRONMENT | dict(environment or {})
        settings = [f"{name}={value}" for name, value in variables.items()]
        launcher = ["-launcher", "ssh", "-launcher-exec", str(self._file("enter"))]
        launcher += ["-localhost", _address(SWITCH)]
        hosts = ["-f", str(self._file("hostfile")), "-n", str(ranks)]
        command = [mpirun(), *launcher, *hosts, *map(str, args)]
        return [*self._inside(self._switch), "env", *settings, *command]

    def sent_bytes(self, host: int) -> int:
        """The bytes that the host's interface has sent, as the kernel counts them: with headers."""
        shown = self._run(self._hosts[host], "ip", "-s", "-j", "link", "show", "eth0")
        sent: int = json.loads(shown)[0]["stats64"]["tx"]["bytes"]
        return sent

    def set_link(self, host: int, up: bool) -> None:
        """Cut the host off, or join it again."""
        self._run(self._switch, "ip", "link", "set", f"port{host}", "up" if up else "down")

    def _namespace(self, name: str) -> int:
        """Start the process that keeps a new host alive, with a network of its own; its id."""
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
        self._bring_up(self._switch, "bridge")
        for number, host in enumerate(self._hosts):
            self._plug_in(host, _address(number + 1), f"port{number}")

    def _plug_in(self, host: int, address: str, port: str) -> None:
        """Connect a host to a new port of the bridge."""
        pair = f"{port} type veth peer name eth0 netns {host}".split()
        self._run(self._switch, "ip", "link", "add", *pair)
        self._run(self._switch, "ip", "link", "set", port, "master", "bridge", "up")
        self._run(host, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        self._bring_up(host, "eth0")
        if self.rate:
            self._limit(self._switch, port, self.rate)
            self._limit(host, "eth0", self.rate)

    def _bring_up(self, namespace: int, device: str) -> None:
        """Turn on a device, and the loopback device beside it."""
        for name in (device, "lo"):
            self._run(namespace, "ip", "link", "set", name, "up")

    def _limit(self, namespace: int, device: str, rate: str) -> None:
        burst = max(LEAST_BURST, round(BURST_SECONDS * bits_per_second(rate) / 8))
        limit = ["rate", rate, "burst", str(burst), "latency", QUEUE]
        self._run(namespace, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)

    def _write_files(self) -> None:
        """Write the hostfile, and the program that mpirun calls in place of ssh.

        That is called with options, the address of a host, and a command.
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
        """Run a command inside a namespace; return its output. HostsError where it fails."""
        done = subprocess.run(
            [*self._inside(namespace), *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise HostsError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
        return done.stdout


def bits_per_second(rate: str) -> int:
    """The rate that tc writes so: 100mbit is 100,000,000. ValueError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)([kmg])bit", rate)
    if match is None:
        raise ValueError(f"{rate}: expected a rate such as 100mbit or 1gbit")
    return int(match[1]) * {"k": 10**3, "m": 10**6, "g": 10**9}[match[2]]


def _address(last: int) -> str:
    return f"{NETWORK}.{last}"
