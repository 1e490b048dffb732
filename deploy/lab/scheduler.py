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
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import count

from lab import server
from lab.marathon import App, Marathon
from lab.network import CONTAINER_NETWORK, Namespace, Network
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

    def crash(self, task_id: str) -> None:
        """End a task's process. Nobody tells ZooKeeper."""
        task = self._tasks[task_id]
        task.process.kill()
        task.process.wait()

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
        host_ports, own_ports = self._ports(app)
        namespace = self._container(turn) if own_ports else host
        instance_id = self._marathon.launch(
            app.id,
            str(host.address),
            host_ports=host_ports,
            ips=[str(namespace.address)],
            condition="Staging",
        )
        task_id = self._marathon.instances[instance_id].task_id
        words = [str(port) for port in host_ports or own_ports]
        command = namespace.command(
            *("setpriv", "--pdeathsig", "KILL"),
            *(sys.executable, "-I", "-S", server.__file__, task_id, str(namespace.address), *words),
        )
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for whoever started it
        )
        return RunningTask(task_id, app.id, instance_id, namespace, process)

    def _ports(self, app: App) -> tuple[list[int], list[int]]:
        """Ports of a new task: those of the host that it is given, those of its own address."""
        if app.container is None or not app.container.port_mappings:
            return [next(self._host_ports) for _ in app.port_definitions], []
        mappings = app.container.port_mappings
        if any(network.mode == "container/bridge" for network in app.networks):
            return [next(self._host_ports) for _ in mappings], []
        return [], [mapping.container_port for mapping in mappings]

    def _container(self, turn: int) -> Namespace:
        """A namespace with an address from the host's part of the container network."""
        offset = (turn + 1) * 256 + next(self._containers)
        return self._network.add_container(CONTAINER_NETWORK[offset])

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


def _wait_ready(task: RunningTask) -> None:
    """Return when it listens."""
    if task.process.stdout is None or task.process.stdout.readline() != server.READY:
        raise LabError(f"task {task.id} did not start")


def _wait(process: subprocess.Popen[str]) -> None:
    with process:
        process.wait(END_SECONDS)
