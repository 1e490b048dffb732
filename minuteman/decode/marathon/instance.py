"""Instances: `instance/<bucket>/<id>`. A task of one meets the ports of its app here."""

from __future__ import annotations

import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, ip_address

import msgspec

from minuteman.decode import marathon_pb2 as pb
from minuteman.decode import wire
from minuteman.decode.marathon.app import App, AppPort, Framework
from minuteman.decode.marathon.names import (
    app_of_instance,
    instance_unit_id,
    version_ms,
    version_text,
)
from minuteman.decode.notes import Notes
from minuteman.errors import ModelError
from minuteman.model import Address, Task, TaskPort, TaskState, Unit, UnitId

_STATES: Mapping[str, TaskState | None] = {
    "scheduled": "starting",
    "created": "starting",
    "provisioned": "starting",
    "staging": "starting",
    "starting": "starting",
    "running": "running",
    "killing": "killing",
    "unreachable": "unreachable",
    "unreachableinactive": "unreachable",
    # There is no task any more, or, where only a reservation is left, not now.
    "reserved": None,
    "finished": None,
    "failed": None,
    "killed": None,
    "error": None,
    "gone": None,
    "dropped": None,
    "unknown": None,
}
"""By the `condition` of a task, in lower case."""


# ---- the JSON; fields that are not named here are skipped ----------------------------------------
class _InstanceId(msgspec.Struct, rename="camel"):
    id_string: str


class _AgentInfo(msgspec.Struct, rename="camel"):
    host: str
    agent_id: str = ""


class _Instance(msgspec.Struct, rename="camel"):
    instance_id: _InstanceId
    run_spec_version: str
    tasks_map: dict[str, msgspec.Raw]
    agent_info: _AgentInfo | None = None
    """None: it waits for a place."""


class _ConditionBefore16(msgspec.Struct):
    """`{"str":"running"}`; since 1.6 it is `"Running"`."""

    text: str = msgspec.field(name="str")


class _IpAddress(msgspec.Struct, rename="camel"):
    ip_address: str = ""


class _NetworkInfo(msgspec.Struct, rename="camel"):
    host_name: str = ""
    host_ports: list[int] = []
    """Only those that were given, in the order of the app's ports."""
    ip_addresses: list[_IpAddress] = []


class _Status(msgspec.Struct, rename="camel"):
    condition: str | _ConditionBefore16
    mesos_status: str = ""
    """Base64 of the last TaskStatus that Marathon accepted."""
    network_info: _NetworkInfo = msgspec.field(default_factory=_NetworkInfo)


class _Task(msgspec.Struct):
    status: _Status


_INSTANCE = msgspec.json.Decoder(_Instance)
_TASK = msgspec.json.Decoder(_Task)


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance znode before it meets its app."""

    unit_id: UnitId
    app_id: str
    """Encoded, as the znode of the app is called: `prod_web`."""
    version: int
    """The version of the app that it runs, milliseconds since 1970."""
    host: str
    """What its agent calls itself, an address or a DNS name; empty before it has a place."""
    agent_id: str
    tasks: Mapping[str, msgspec.Raw]
    """Task id -> JSON that is not read yet."""


def read_instance(path: str, data: bytes) -> Instance:
    """The instance in a znode, whose name is its id. Errors: ModelError."""
    read = wire.json(_INSTANCE, "instance", data)
    instance_id = read.instance_id.id_string
    if instance_id != path.rpartition("/")[2]:
        raise ModelError("instanceId", instance_id, f"it is not the instance of {path}")
    agent = read.agent_info or _AgentInfo("")
    return Instance(
        unit_id=instance_unit_id(instance_id),
        app_id=app_of_instance(instance_id),
        version=version_ms(read.run_spec_version),
        host=agent.host,
        agent_id=sys.intern(agent.agent_id),
        tasks=read.tasks_map,
    )


def instance_unit(
    path: str,
    instance: Instance,
    app: App | None,
    framework: Framework,
    revision: int,
    resolve: Mapping[str, Address],
    previous: Unit | None = None,
) -> Unit:
    """Unit of an instance that runs `app`: its tasks that have not ended.

    `app` is None when no definition of it is left, which leaves its tasks without ports; one that
    is there and cannot be read is no reason to call this. `resolve` has the addresses of those
    agents' host names that are known. `previous` is what this returned for the znode before: a task
    keeps its addresses when a later status has none.

    Errors: ModelError when it has tasks and none can be read.
    """
    notes = Notes(path)
    if instance.tasks:
        _check_version(instance, app, notes)
    known_ips = {task.id: task.ips for task in previous.tasks} if previous else {}
    reader = _TaskReader(instance, app, framework, resolve, known_ips)
    tasks: list[Task] = []
    unreadable: list[ModelError] = []
    for task_id, raw in instance.tasks.items():
        try:
            task = reader.task(task_id, raw, notes.about(task_id))
        except ModelError as error:
            unreadable.append(error)
            notes.refuse(error, subject=task_id)
        else:
            if task is not None:
                tasks.append(task)
    if unreadable and len(unreadable) == len(instance.tasks):
        raise unreadable[0]
    return Unit(instance.unit_id, revision, tuple(tasks), problems=tuple(notes))


@dataclass(frozen=True, slots=True)
class _TaskReader:
    """What the tasks of one instance are read with."""

    instance: Instance
    app: App | None
    framework: Framework
    resolve: Mapping[str, Address]
    known_ips: Mapping[str, tuple[Address, ...]]
    """By task id."""

    def task(self, task_id: str, raw: msgspec.Raw, notes: Notes) -> Task | None:
        """The task; None: it ended. Errors: ModelError."""
        field = f"tasksMap[{task_id}]"
        status = wire.json(_TASK, field, bytes(raw)).status
        if (state := _state(f"{field}.status.condition", status.condition)) is None:
            return None
        network = status.network_info
        mesos = _mesos_status(status.mesos_status, notes)
        ips = _ips(network, mesos, notes) or self.known_ips.get(task_id, ())
        host = self.instance.host or network.host_name
        return Task(
            framework_id=self.framework.id,
            id=task_id,
            framework=self.framework.name,
            name=_task_name(self.instance.app_id),
            agent_id=self.instance.agent_id,
            agent_ip=_agent_ip(host, ips, self.app, self.resolve),
            ips=ips,
            state=state,
            healthy=_healthy(mesos, self.app),
            ports=_task_ports(self.app, network.host_ports, notes),
        )


def _check_version(instance: Instance, app: App | None, notes: Notes) -> None:
    if app is None:
        notes.add("runSpecVersion", "Its app has no definition, so its ports are not known.")
    elif app.version != instance.version:
        notes.add(
            "runSpecVersion",
            f"Version {version_text(instance.version)} of its app is gone: its ports are those of"
            f" {version_text(app.version)}.",
        )


def _state(field: str, condition: str | _ConditionBefore16) -> TaskState | None:
    text = condition if isinstance(condition, str) else condition.text
    try:
        return _STATES[text.lower()]
    except KeyError as error:
        raise ModelError(field, text, "it is not known") from error


@lru_cache(maxsize=65_536)
def _task_name(app_id: str) -> str:
    """Name of the app's tasks in Mesos: `prod_web` -> `web.prod`. One object for all of them."""
    return ".".join(reversed(app_id.split("_")))


def _mesos_status(encoded: str, notes: Notes) -> pb.TaskStatus:
    """The last status from Mesos; an empty one if there is none, or none that can be read."""
    try:
        return wire.message(pb.TaskStatus, b64decode(encoded, validate=True))
    except ModelError as error:
        notes.refuse(error)
    except ValueError:
        notes.add("mesosStatus", "It is not base64.")
    return pb.TaskStatus()


def _healthy(mesos: pb.TaskStatus, app: App | None) -> bool | None:
    if mesos.HasField("healthy"):
        return mesos.healthy
    # A check without a result so far: not healthy, as the successor has it.
    return False if app is not None and app.checked else None


# ---- addresses -----------------------------------------------------------------------------------
def _ips(network: _NetworkInfo, mesos: pb.TaskStatus, notes: Notes) -> tuple[Address, ...]:
    texts = [each.ip_address for each in network.ip_addresses] or list(_status_ips(mesos))
    ips: dict[Address, None] = {}
    for text in filter(None, texts):
        if (ip := _address(text)) is None:
            notes.add("ipAddresses", f"{text!r} is not an address.")
        else:
            ips[ip] = None
    return tuple(ips)


def _status_ips(mesos: pb.TaskStatus) -> Iterator[str]:
    for network in mesos.container_status.network_infos:
        for each in network.ip_addresses:
            yield each.ip_address.decode(errors="replace")


def _agent_ip(
    host: str, ips: Sequence[Address], app: App | None, resolve: Mapping[str, Address]
) -> Address | None:
    """Address of the agent; None while its name has none."""
    if (literal := _address(host)) is not None:
        return literal
    if app is not None and app.network == "host" and ips:
        return ips[0]  # Mesos tells what it is on the host network
    return resolve.get(host)


@lru_cache(maxsize=65_536)
def _address(text: str) -> Address | None:
    """The address that `text` is. One object for all tasks that have it.

    `::ffff:1.2.3.4` is 1.2.3.4: to the kernel they are one destination.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    return None if address.scope_id else address.ipv4_mapped or address


# ---- ports ---------------------------------------------------------------------------------------
def _task_ports(app: App | None, given: Sequence[int], notes: Notes) -> tuple[TaskPort, ...]:
    """The app's ports where this task has them. `given` are its host ports.

    Source: portAssignments in Marathon's NetworkInfo.scala.
    """
    ports: list[TaskPort] = []
    host_ports = iter(given)
    for index, port in enumerate(app.ports if app is not None else ()):
        if not port.takes_host_port:
            ports += _at_container_port(port)
        elif 1 <= (number := next(host_ports, 0)) <= 65_535:
            ports += _at_host_port(port, number)
        elif port.listeners:
            notes.add("hostPorts", f"Port {index} of the app was given no usable host port.")
    return tuple(ports)


def _at_host_port(port: AppPort, number: int) -> Iterator[TaskPort]:
    container_port = number if port.container_port == 0 else port.container_port
    for each in port.listeners:
        yield TaskPort(each.transport, number, "host", port.name, container_port, each.claims)


def _at_container_port(port: AppPort) -> Iterator[TaskPort]:
    if port.container_port:  # 0 is what Marathon writes when no port was asked for
        for each in port.listeners:
            yield TaskPort(
                each.transport, port.container_port, "container", port.name, claims=each.claims
            )
