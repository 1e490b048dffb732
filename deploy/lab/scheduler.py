"""What Marathon and Mesos do with an app: where its tasks run, how they start, how they end.

Tasks are processes (`server.py`) in the namespaces of hosts and containers; Marathon's znodes are
written before and after, in the order in which a real cluster writes them:

    start   Staging, the process listens, Running
    end     Killing, SIGTERM, the process ends by itself, the instance is deleted
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from lab import server
from lab.marathon import App, Marathon, PortDefinition, PortMapping
from lab.network import Namespace, Network
from lab.wait import LabError

FIRST_HOST_PORT = 31_000
FIRST_CONTAINER = 2
END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task and the process that is it."""

    id: str
    app_id: str
    instance_id: str
    namespace: Namespace
    ports: Sequence[str]
    """`31000/tcp`, at the address of the namespace."""
    process: subprocess.Popen[str]


class Scheduler:
    """Starts and ends tasks. What it is asked for is done, and written, when it returns."""

    def __init__(self, marathon: Marathon, network: Network) -> None:
        self._marathon = marathon
        self._network = network
        self._tasks: dict[str, RunningTask] = {}
        self._host_ports = count(FIRST_HOST_PORT)
        self._containers = count(FIRST_CONTAINER)
        self._turns = count()

    def task_ids(self, app_id: str) -> Set[str]:
        """The tasks of an app that ZooKeeper says are running."""
        return {task.id for task in self._of(app_id)}

    def find(self, start: str) -> str:
        """The only task whose id starts so. Errors: LabError."""
        match [task_id for task_id in self._tasks if task_id.startswith(start)]:
            case [task_id]:
                return task_id
            case found:
                raise LabError(f"{len(found)} tasks have an id that starts with {start}")

    def deploy(self, definition: Mapping[str, object]) -> None:
        """Publish an app and start its tasks; those of an older version of it end then."""
        app_id = str(definition["id"])
        old = self._of(app_id)
        self._marathon.publish(definition)
        self._start(app_id, self._marathon.apps[app_id].instances)
        self._end(old)

    def scale(self, app_id: str, instances: int) -> float:
        """Start or end tasks until there are `instances`.

        Returns when ZooKeeper acknowledged the last write that matters to clients, by
        time.monotonic(). Errors: LabError for an app that does not exist.
        """
        if app_id not in self._marathon.apps:
            raise LabError(f"there is no app {app_id}")
        self._marathon.scale(app_id, instances)
        tasks = self._of(app_id)
        if instances < len(tasks):
            self._end(tasks[instances:])
        else:
            self._start(app_id, instances - len(tasks))
        return time.monotonic()

    def kill(self, task_id: str) -> float:
        """End one task and do with one less.

        Returns when ZooKeeper acknowledged that it is being killed, by time.monotonic().
        """
        task = self._tasks[task_id]
        self._marathon.scale(task.app_id, len(self._of(task.app_id)) - 1)
        return self._end([task])

    def drain(self, task_id: str) -> float:
        """Say that a task is being killed, and do with one less; it is not told, and serves on.

        Returns when ZooKeeper acknowledged it, by time.monotonic(). `kill` ends it.
        """
        task = self._tasks[task_id]
        self._marathon.scale(task.app_id, len(self._of(task.app_id)) - 1)
        self._marathon.kill(task.instance_id)
        return time.monotonic()

    def crash(self, task_id: str) -> None:
        """End a task's process. Nobody tells ZooKeeper."""
        task = self._tasks[task_id]
        task.process.kill()
        task.process.wait()

    def replace(self, task_id: str) -> None:
        """End a task and start another in its place."""
        task = self._tasks[task_id]
        self._end([task])
        self._start(task.app_id, 1)

    @contextmanager
    def muted(self, task_id: str) -> Iterator[float]:
        """Have the host of a task drop what begins a connection to it, until the block ends.

        With UDP that is every datagram. Gives when that began, by time.monotonic(). Nobody tells
        ZooKeeper.
        """
        task = self._tasks[task_id]
        rules = [_dropping(*port.split("/")) for port in task.ports]
        for rule in rules:
            subprocess.run(task.namespace.command("iptables", "--append", *rule), check=True)
        try:
            yield time.monotonic()
        finally:
            for rule in rules:
                subprocess.run(task.namespace.command("iptables", "--delete", *rule), check=True)

    def close(self) -> None:
        """End all processes. Nothing is written."""
        for task in self._tasks.values():
            task.process.kill()
        for task in self._tasks.values():
            _wait(task.process)
        self._tasks.clear()

    def _of(self, app_id: str) -> list[RunningTask]:
        """Tasks of an app, the oldest first."""
        return [task for task in self._tasks.values() if task.app_id == app_id]

    # ---- starting ---------------------------------------------------------------------------
    def _start(self, app_id: str, instances: int) -> None:
        """Start that many tasks, side by side."""
        started = [self._launch(self._marathon.apps[app_id]) for _ in range(instances)]
        for task in started:
            _wait_ready(task)
            # This is the first result of its Mesos health check, where the app has one.
            checked = bool(self._marathon.apps[app_id].health_checks)
            self._marathon.update(
                task.instance_id, condition="Running", healthy=True if checked else None
            )
            self._tasks[task.id] = task

    def _launch(self, app: App) -> RunningTask:
        turn = next(self._turns) % len(self._network.hosts)
        host = self._network.hosts[turn]
        namespace, numbers = self._place(app, turn)
        instance_id = self._marathon.launch(
            app.id,
            str(host.address),
            host_ports=numbers if namespace is host else (),
            ips=[str(namespace.address)],
            condition="Staging",
        )
        task_id = self._marathon.instances[instance_id].task_id
        ports = [
            f"{number}/{transport}"
            for number, port in zip(numbers, _ports(app), strict=True)
            for transport in port.protocol.split(",")
        ]
        command = namespace.command(
            *("setpriv", "--pdeathsig", "KILL"),
            *(sys.executable, "-I", "-S", server.__file__, task_id, str(namespace.address), *ports),
        )
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for whoever started it
        )
        return RunningTask(task_id, app.id, instance_id, namespace, ports, process)

    def _place(self, app: App, turn: int) -> tuple[Namespace, list[int]]:
        """Where the next task of an app listens, and at which ports."""
        for network in app.networks:
            if network.mode == "container":
                # Each host has a part of the network.
                offset = (turn + 1) * 256 + next(self._containers)
                mappings = app.container.port_mappings if app.container else ()
                numbers = [mapping.container_port for mapping in mappings]
                return self._network.add_container(network.name, offset), numbers
        return self._network.hosts[turn], [next(self._host_ports) for _ in _ports(app)]

    # ---- ending -----------------------------------------------------------------------------
    def _end(self, tasks: Iterable[RunningTask]) -> float:
        """End tasks in order, side by side: when all were known to be on their way."""
        tasks = list(tasks)
        for task in tasks:
            self._marathon.kill(task.instance_id)
            task.process.terminate()
            del self._tasks[task.id]
        known = time.monotonic()
        for task in tasks:
            _wait(task.process)
            self._marathon.remove(task.instance_id)
            if task.namespace not in self._network.hosts:
                self._network.remove(task.namespace)
        return known


def _ports(app: App) -> Sequence[PortDefinition | PortMapping]:
    """What each task of the app listens to."""
    mappings = app.container.port_mappings if app.container else ()
    return mappings or app.port_definitions


def _wait_ready(task: RunningTask) -> None:
    """Return when it listens."""
    if task.process.stdout is None or task.process.stdout.readline() != server.READY:
        raise LabError(f"task {task.id} did not start")


def _wait(process: subprocess.Popen[str]) -> None:
    with process:
        process.wait(END_SECONDS)


def _dropping(number: str, protocol: str) -> list[str]:
    """The rule of a firewall that drops what begins a connection to a port."""
    begins = ["--syn"] if protocol == "tcp" else []
    return ["INPUT", "--protocol", protocol, *begins, "--dport", number, "-j", "DROP"]
