"""The sample cluster: one host under test with an agent, and all that surrounds it.

    with Cluster(folder, cgroup) as cluster:      # ZooKeeper, network, sample apps, their tasks
        cluster.agent.start()
        cluster.agent.wait_healthy()

It lives in the namespaces and the cgroup of a sandbox, and ends with the process that made it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from api import schemas
from lab.agent import BPFFS, MINUTEMAN, Agent, environment
from lab.client import Target
from lab.docker import Docker
from lab.lines import Lines
from lab.marathon import Marathon
from lab.network import Network
from lab.scheduler import Scheduler
from lab.wait import LabError
from lab.zookeeper import Server
from minuteman.dataplane import bpf, cgroup, pins, sockets
from minuteman.errors import DataplaneError

EXAMPLES = Path(__file__).parents[1] / "examples"
SETTINGS = EXAMPLES / "minuteman.toml"
PINS = BPFFS / "minuteman"
DETACH_SECONDS = 0.005
"""Between two detachments; the agent looks every two seconds."""


def target_of(vip: schemas.Vip) -> Target:
    """Where its clients go: an address of the family of its backends."""
    is_ipv6 = any(":" in backend.address for backend in vip.backends)
    address = next(address for address in vip.addresses if (":" in address) == is_ipv6)
    return Target(address, vip.port, vip.protocol)


def _event(line: str) -> schemas.Event | None:
    """An event of `minuteman events --json`; None: some were lost."""
    if line.startswith('{"lost"'):
        return None
    return msgspec.json.decode(line, type=schemas.Event)


class Cluster:
    """Made by `__enter__`, gone after `__exit__`.

    `folder` is for its files; `served` is an empty cgroup, version 2, for the programs and clients.
    """

    def __init__(self, folder: Path, served: Path) -> None:
        self.served = served
        self.folder = folder
        self.zookeeper = Server(folder / "zookeeper")
        self.network = Network()
        self.marathon = Marathon(self.zookeeper.address)
        self.scheduler = Scheduler(self.marathon, self.network)
        self.agent = Agent(self.zookeeper.url, served, folder / "agent", SETTINGS)
        self._targets: dict[tuple[str, schemas.Protocol], Target] = {}
        self._ending = ExitStack()
        self._is_ending = threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as ending:
            ending.enter_context(self.zookeeper)
            ending.callback(self.network.close)
            self.network.open()
            ending.enter_context(self.marathon)
            ending.callback(self.scheduler.close)
            for example in sorted(EXAMPLES.glob("*.json")):
                self.scheduler.deploy(json.loads(example.read_text(encoding="utf-8")))
            ending.callback(self._end_agent)
            self._ending = ending.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_ending.set()
        self._ending.close()

    def _end_agent(self) -> None:
        self.agent.kill()
        pins.remove_all(PINS)
        sockets.set_unreachable(())

    def resolve(self, host_port: str, protocol: schemas.Protocol = "tcp") -> Target:
        """Where a VIP is. Asked once: a VIP keeps its address. Errors: LabError."""
        if (host_port, protocol) not in self._targets:
            self._targets[host_port, protocol] = target_of(self.agent.vip(host_port, protocol))
        return self._targets[host_port, protocol]

    def docker(self) -> Docker:
        """A Docker on this host, to be entered."""
        return Docker(self.folder, self.served.parent)

    # ---- what a person could do on this host --------------------------------------------------
    def minuteman(self, *words: str) -> str:
        """What the command `minuteman WORDS` prints. Errors: LabError."""
        command = subprocess.run(
            [MINUTEMAN, *words], env=environment(), capture_output=True, check=False, text=True
        )
        if command.returncode:
            raise LabError(f"`minuteman {' '.join(words)}`: {command.stderr.strip()}")
        return command.stdout

    def events(self, *options: str) -> Lines[schemas.Event]:
        """What `minuteman events OPTIONS` prints, for a `with` block."""
        command = [str(MINUTEMAN), "events", "--json", *options]
        return Lines(
            ["setpriv", "--pdeathsig", "KILL", *command],
            _event,
            environment=environment(),
        )

    def connect_outside(self, address: str, port: int) -> str:
        """Begin to connect from here, from a process that is not served: what it is told at once.

        That is the name of an errno, EINPROGRESS when a SYN was sent.
        """
        with socket.socket() as client:
            client.setblocking(False)
            return errno.errorcode[client.connect_ex((address, port))]

    def detach(self) -> None:
        """Run `minuteman agent --detach-all`. Errors: LabError."""
        done = self.agent.detach()
        if done.returncode:
            raise LabError(f"--detach-all ended with {done.returncode}: {done.stderr.strip()}")

    # ---- what the kernel has ------------------------------------------------------------------
    def leftovers(self) -> list[str]:
        """Pins and routes of the agent's, and programs in effect on the served cgroup."""
        left = [str(PINS)] if PINS.exists() else []
        left += [f"a route for {network}" for network in sockets.unreachable_networks()]
        fd = cgroup.open_cgroup(self.served)
        try:
            for name, hook in pins.PROGRAMS.items():
                if bpf.effective_programs(fd, hook):
                    left.append(f"a {name} program")
        finally:
            os.close(fd)
        return left

    def pinned(self) -> str:
        """Name of the folder of pins that serves. Errors: LabError."""
        if (found := pins.serving(PINS)) is None:
            raise LabError("no programs are attached")
        return found.folder.name

    def keep_detached(self, name: str) -> None:
        """Take one program of the agent's off the cgroup, again and again, behind its back."""
        self._detach_program(name)
        threading.Thread(target=self._detach_again, args=(name,), daemon=True).start()

    def _detach_again(self, name: str) -> None:
        while not self._is_ending.wait(DETACH_SECONDS):
            with suppress(DataplaneError, LabError):  # the agent is at it
                self._detach_program(name)

    def _detach_program(self, name: str) -> None:
        link = bpf.open_pin(PINS / self.pinned() / "links" / name)
        try:
            bpf.detach_link(link)
        finally:
            os.close(link)
