"""How fast a change in ZooKeeper reaches connect(), and what the agent costs meanwhile.

A real ZooKeeper, the real agent, and Marathon's own znodes: APPS apps with a named VIP and
INSTANCES instances each, and one app with a literal VIP and one instance, which moves between two
servers: each write of its znode replaces all that is behind its VIP.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lab.agent import BPFFS, Agent
from lab.marathon import Marathon, instance_json
from lab.wait import until
from lab.zookeeper import Server
from minuteman.dataplane.maps import Maps
from minuteman.dataplane.pins import Pins
from minuteman.errors import DataplaneError
from minuteman.reconcile.kernelstate import Limits
from tests.bench import stage
from tests.bench.report import Section, Table, Target, percentile
from tests.bench.stage import Seat
from tests.bench.traffic import Traffic, Watcher

APPS = 1_000
INSTANCES = 10
WRITERS = 16
"""Threads that write the instances: a round trip each."""
HOST = "127.0.1.1"
PORTS = (31_000, 31_001)
"""Where the instance that moves is found by turns: at HOST."""
VIP = "10.64.0.1:80"

STARTS = 3
START_SECONDS = 60.0
IDLE_SECONDS = 10.0
CHANGES = 2_000
PAUSE_SECONDS = (0.005, 0.05)
"""Between two changes, least and most: no rhythm of the agent's may hide."""
GAP_US = 200
"""Between two connections of the client that waits for a change. It does not use up a core."""


@dataclass(frozen=True, slots=True)
class Change:
    """Moments of one change, in ns of `time.monotonic_ns`."""

    sent_ns: int
    """The write leaves the client."""
    acknowledged_ns: int
    """Its answer is here."""
    reached_ns: int
    """Start of the first connect() that led to the new server."""


def _runs(pid: str, module: str) -> bool:
    """Whether a process, which may have ended, is one of that module."""
    try:
        return module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Running:
    """An agent that began from nothing."""

    pid: int
    start_seconds: float
    """From exec() until the kernel had every slot."""

    @property
    def front_pid(self) -> int:
        """The process that listens. Other children come and go."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        children = " ".join(task.read_text(encoding="ascii") for task in tasks).split()
        (child,) = (child for child in children if _runs(child, "minuteman.front"))
        return int(child)


class Stand:
    """Apps in a ZooKeeper, for agents that serve the cgroup `served`."""

    def __init__(self, zookeeper: str, marathon: Marathon, served: Path, folder: Path) -> None:
        self._zookeeper = zookeeper
        self._marathon = marathon
        self.served = served
        self._folder = folder
        self._slots = 0
        self._moving = ""

    def publish(self, apps: int, instances: int) -> None:
        """Write `apps` apps with `instances` each, and the one whose instance moves."""
        ids = [f"/bench/app-{number}" for number in range(apps)]
        for app_id in ids:
            self._publish(app_id, f"{app_id}:80")
        self._publish("/moving", VIP)
        with ThreadPoolExecutor(WRITERS) as pool:
            places = range(apps * instances)
            list(pool.map(lambda place: self._launch(ids[place % apps], place), places))
        self._moving = self._marathon.launch("/moving", HOST, host_ports=[PORTS[0]])
        self._slots = apps * instances + 1

    def _publish(self, app_id: str, vip: str) -> None:
        self._marathon.publish({"id": app_id, "portDefinitions": [{"labels": {"VIP_0": vip}}]})

    def _launch(self, app_id: str, place: int) -> None:
        host, port = divmod(place, 1_000)
        self._marathon.launch(app_id, f"10.20.0.{host + 1}", host_ports=[31_000 + port])

    @contextmanager
    def running(self, name: str) -> Iterator[Running]:
        """An agent that knows nothing of another one, while the block runs."""
        config = self._folder / "minuteman.toml"
        config.touch()
        agent = Agent(self._zookeeper, self.served, self._folder / name, config)
        started = time.monotonic()
        agent.start()
        try:
            until("full kernel", lambda: slots_in_kernel() >= self._slots, START_SECONDS)
            seconds = time.monotonic() - started
            agent.wait_healthy()
            assert agent.pid is not None
            yield Running(agent.pid, seconds)
        finally:
            agent.kill()
            agent.detach().check_returncode()

    def move(self, server: int, watcher: Watcher) -> Change:
        """Let the instance be at PORTS[server], and wait until a connection gets there."""
        instance = replace(self._marathon.instances[self._moving], host_ports=(PORTS[server],))
        data = instance_json(instance, agent_id="bench-S-0")
        path = self._marathon.instance_path(self._moving)
        watcher.watch_for(server)
        sent_ns = time.monotonic_ns()
        self._marathon.client.set(path, data)
        acknowledged_ns = time.monotonic_ns()
        reached_ns, _ = watcher.found()
        return Change(sent_ns, acknowledged_ns, reached_ns)


@contextmanager
def stand(folder: Path, apps: int, instances: int) -> Iterator[Stand]:
    """A ZooKeeper with that many apps, while the block runs."""
    with (
        stage.cgroup("agent") as served,
        Server(folder / "zookeeper") as zookeeper,
        Marathon(zookeeper.address) as marathon,
    ):
        made = Stand(zookeeper.url, marathon, served, folder)
        made.publish(apps, instances)
        yield made


def slots_in_kernel() -> int:
    """How many slots the VIPs have that the agent wrote so far."""
    limits = Limits()
    folder = Pins.ours(BPFFS / "minuteman", limits).maps
    try:
        maps = Maps.open(folder, limits)
    except DataplaneError:  # not loaded yet
        return 0
    try:
        return sum(vip.size for vip in maps.read_vips())
    finally:
        maps.close()


def changes(here: Stand, traffic: Traffic, count: int) -> list[Change]:
    """Move the instance to and fro."""
    servers = [f"{HOST}:{port}" for port in PORTS]
    anywhere = frozenset(os.sched_getaffinity(0))
    pause = random.Random(1)  # noqa: S311 - the same pauses in every run
    made = []
    with (
        traffic.serving(servers, [Seat(anywhere)]),
        traffic.watching(VIP, GAP_US, Seat(anywhere, here.served)) as watcher,
    ):
        for number in range(1, count + 1):
            made.append(here.move(number % 2, watcher))
            time.sleep(pause.uniform(*PAUSE_SECONDS))
    return made


# ---- what a process costs -----------------------------------------------------------------------
def resident_mb(pid: int) -> float:
    """Resident memory in 10^6 bytes. Source: /proc/pid/status."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"process {pid} has ended")


def cpu_seconds(pid: int) -> float:
    """User and system time so far. Source: /proc/pid/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_share(pids: Sequence[int], seconds: float) -> float:
    """How much of a core the processes use while nothing changes, in percent."""
    before = sum(map(cpu_seconds, pids))
    time.sleep(seconds)
    return 100 * (sum(map(cpu_seconds, pids)) - before) / seconds


@dataclass(frozen=True, slots=True)
class Cost:
    """What the agent's processes took."""

    start_seconds: Sequence[float]
    """From exec() until the kernel had every slot; for each start."""
    idle_percent: float
    """Of a core."""
    control_mb: tuple[float, float]
    """Before the changes, and after them."""
    front_mb: tuple[float, float]


def _before_after(mb: tuple[float, float]) -> str:
    before, after = mb
    return f"{before:.0f}, {after:.0f}"


# ---- the bench ----------------------------------------------------------------------------------
def measure(folder: Path) -> Section:
    """Run it and say what was found."""
    traffic = Traffic(folder)
    with stand(folder, APPS, INSTANCES) as here:
        starts = []
        for number in range(1, STARTS):
            with here.running(f"agent-{number}") as agent:
                starts.append(agent.start_seconds)
        with here.running("agent") as agent:
            starts.append(agent.start_seconds)
            pids = (agent.pid, agent.front_pid)
            idle = idle_share(pids, IDLE_SECONDS)
            before = [resident_mb(pid) for pid in pids]
            made = changes(here, traffic, CHANGES)
            after = [resident_mb(pid) for pid in pids]
    return report(made, Cost(starts, idle, *zip(before, after, strict=True)))


def report(made: Sequence[Change], cost: Cost) -> Section:
    """Tables of what was found."""
    waits = {
        "after the acknowledgement": [c.reached_ns - c.acknowledged_ns for c in made],
        "after the write was sent": [c.reached_ns - c.sent_ns for c in made],
    }
    rows = []
    for name, values in waits.items():
        ordered = [value / 1e6 for value in sorted(values)]
        found = [percentile(ordered, share) for share in (0.5, 0.9, 0.99)]
        rows.append((name, *(f"{value:.1f}" for value in (*found, ordered[-1]))))
    p99 = percentile(sorted(waits["after the acknowledgement"]), 0.99) / 1e6
    tasks = f"{APPS * INSTANCES:,} tasks"
    start = statistics.median(cost.start_seconds)
    starts = f"{start:.2f} ({min(cost.start_seconds):.2f}-{max(cost.start_seconds):.2f})"
    return Section(
        "Agent",
        (
            f"{APPS:,} VIPs of {INSTANCES} tasks each in a real ZooKeeper on this machine. "
            f"{len(made):,} changes of one more VIP: its only task moves by one write of its "
            f"znode. A client connects to it every {GAP_US} us; a change has arrived when it "
            "reaches the new server. ZooKeeper, which does not wait for its disk here, the "
            "writer, the client and the agent share the cores.",
            Table(("ms, first connection on the new set", "p50", "p90", "p99", "greatest"), rows),
            "What the agent costs. It starts with nothing in the kernel or on disk; memory is that "
            "before and after the changes.",
            Table(
                (tasks, ""),
                (
                    ("exec to all in the kernel, s", starts),
                    ("resident, control process, MB", _before_after(cost.control_mb)),
                    ("resident, front process, MB", _before_after(cost.front_mb)),
                    ("idle, both processes, % of a core", f"{cost.idle_percent:.2f}"),
                ),
            ),
        ),
        (
            Target("a change, p99", 50, p99, " ms"),
            Target(f"exec to all in the kernel, {tasks}", 3, start, " s"),
            Target(f"control process, {tasks}", 60, cost.control_mb[0], " MB"),
            Target(f"front process, {tasks}", 75, cost.front_mb[0], " MB"),
            Target("idle, both processes", 0.5, cost.idle_percent, " %"),
        ),
    )
