"""A real ZooKeeper on loopback: one server, or an ensemble of three.

    with Server(folder) as server:          # folder/data survives, also a SIGKILL
        client = KazooClient(server.address)

A server ends with the thread that started it, however that ends, so start it from one that lasts.
Only 127.0.0.1 listens, for clients and for the other servers alike.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.wait import LabError

START_SECONDS = 30.0
TICK_MS = 500
"""Session timeouts are clamped to 2-20 ticks by default; here to 1-60 s."""

DEBIAN_JARS = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar"


def classpath() -> str:
    """Jars of ZooKeeper: an unpacked release at ZOOKEEPER_PATH, else Debian's package."""
    if release := os.environ.get("ZOOKEEPER_PATH"):
        return f"{release}/*:{release}/lib/*"
    return DEBIAN_JARS


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, below those that the kernel gives to clients.

    A port among those could be taken while its server is down, even by a client that tries to
    reach it: connecting a port to itself succeeds.
    """
    first_ephemeral = int(
        Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0]
    )
    found: list[int] = []
    for port in random.sample(range(10_000, max(first_ephemeral, 20_000)), k=1_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise LabError(f"no {count} free ports on 127.0.0.1")


def ask(port: int, word: str) -> str:
    """Answer to a four-letter word such as `ruok`; empty when nobody answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(word.encode("ascii"))
            return b"".join(iter(lambda: connection.recv(4096), b"")).decode("utf-8", "replace")
    except OSError:
        return ""


class Server:
    """One ZooKeeper process, with its data in `folder`.

    Args:
        folder: Made when missing; holds zoo.cfg, zookeeper.log and data/.
        port: For clients; by default a free one, the same for the life of this object.
        quorum: Further lines of zoo.cfg, for a member of an ensemble, and its `number` there.
        options: Further options of the JVM.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        quorum: str = "",
        number: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self._options = options
        self._number = number
        self.port = free_ports(1)[0] if port is None else port
        self._quorum = quorum
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """`zk://127.0.0.1:port`."""
        return f"zk://{self.address}"

    @property
    def pid(self) -> int | None:
        """Of the running process; None: it is not started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process and return when it serves. Errors: LabError with the end of its log."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the process and return at once."""
        if self._process is not None:
            raise RuntimeError(f"{self.address} is started")
        self._write_config()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._java()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for whoever started it
            )

    def wait(self) -> None:
        """Return when it serves. Errors: LabError with the end of its log."""
        deadline = time.monotonic() + START_SECONDS
        # Whoever has the port may answer, so it has to name our data.
        while f"dataDir={self._data.resolve()}/" not in ask(self.port, "conf"):
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                tail = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise LabError(f"ZooKeeper did not start on {self.address}:\n{tail}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order."""
        self.resume()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it without closing a connection: it falls silent."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Forget all data. It must not run."""
        if self._process is not None:
            raise RuntimeError(f"{self.address} runs")
        shutil.rmtree(self._data, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _log(self) -> Path:
        return self.folder / "zookeeper.log"

    @property
    def _config(self) -> Path:
        return self.folder / "zoo.cfg"

    def _write_config(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        if self._quorum:
            (self._data / "myid").write_text(f"{self._number}\n", encoding="ascii")
        self._config.write_text(
            f"""\
tickTime={TICK_MS}
dataDir={self._data.resolve()}
clientPort={self.port}
clientPortAddress=127.0.0.1
admin.enableServer=false
4lw.commands.whitelist=*
maxClientCnxns=0
minSessionTimeout=1000
maxSessionTimeout=60000
{self._quorum}""",
            encoding="ascii",
        )

    def _java(self) -> list[str]:
        main = "quorum.QuorumPeerMain" if self._quorum else "ZooKeeperServerMain"
        return [
            "java",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",  # a file in /tmp that outlives a SIGKILL
            "-Dzookeeper.forceSync=no",  # a crash of the machine may cost data
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
            *self._options,
            "-cp",
            classpath(),
            f"org.apache.zookeeper.server.{main}",
            str(self._config),
        ]

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


class Ensemble:
    """Servers that elect a leader, three by default, with their data in `folder`/1, /2, ...

    A member that is cut off from the others serves whoever is content with reading what it has.
    """

    def __init__(self, folder: Path, *, size: int = 3) -> None:
        ports = free_ports(3 * size)
        members = "".join(
            f"server.{i + 1}=127.0.0.1:{ports[3 * i + 1]}:{ports[3 * i + 2]}\n" for i in range(size)
        )
        quorum = f"initLimit=20\nsyncLimit=10\n{members}"
        self.servers = tuple(
            Server(
                folder / str(i + 1),
                port=ports[3 * i],
                quorum=quorum,
                number=i + 1,
                options=["-Dreadonlymode.enabled=true"],
            )
            for i in range(size)
        )

    @property
    def address(self) -> str:
        """`127.0.0.1:port` of each, separated by commas."""
        return ",".join(server.address for server in self.servers)

    @property
    def url(self) -> str:
        """`zk://` and these addresses."""
        return f"zk://{self.address}"

    def leader(self) -> Server:
        """The one that leads now. Errors: LabError."""
        for server in self.servers:
            if "Mode: leader" in ask(server.port, "srvr"):
                return server
        raise LabError("no server of the ensemble leads")

    def start(self) -> None:
        """Start those that do not run, and return when all of them serve. Errors: LabError."""
        for server in self.servers:
            if server.pid is None:
                server.launch()
        for server in self.servers:
            server.wait()

    def kill(self) -> None:
        """End all of them with SIGKILL."""
        for server in self.servers:
            server.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except LabError:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
