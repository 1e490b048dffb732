"""Writes to ZooKeeper what a Marathon of 1.8 or newer writes, as far as anybody here reads it.

    with Marathon("127.0.0.1:2181") as marathon:
        marathon.publish({"id": "/web", "portDefinitions": [{"labels": {"VIP_0": "/web:80"}}]})
        web = marathon.launch("/web", "10.0.0.1", host_ports=[31000])
        marathon.update(web, healthy=True)
        marathon.kill(web)
        marathon.remove(web)

It schedules nothing: who launches says where. The bytes are made from the numbers of Marathon's and
Mesos' protobuf messages, on purpose without the .proto file of the decoder that reads them.
"""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Literal, Self

import msgspec
from kazoo.client import KazooClient
from kazoo.exceptions import NodeExistsError, NoNodeError
from kazoo.interfaces import IAsyncResult
from kazoo.protocol.states import KazooState

FRAMEWORK_ID = "6b1f4ae7-4c5b-4d7e-9a0a-2f1c3d5e7a90-0000"
STORAGE_VERSION = (19, 300, 0)
"""Of Marathon 1.10."""
FIRST_SERVICE_PORT = 10_000
PATIENCE = {"max_tries": -1, "delay": 0.1, "backoff": 2, "max_delay": 0.5}
"""Of kazoo with a ZooKeeper that is away for a moment."""
MILLISECOND = timedelta(milliseconds=1)

Condition = Literal[
    "Scheduled",
    "Provisioned",
    "Staging",
    "Starting",
    "Running",
    "Killing",
    "Unreachable",
    "UnreachableInactive",
    "Finished",
    "Failed",
    "Killed",
    "Gone",
]

TASK_STATES: Mapping[Condition, int] = {
    "Starting": 0,
    "Running": 1,
    "Finished": 2,
    "Failed": 3,
    "Killed": 4,
    "Staging": 6,
    "Killing": 8,
    "Unreachable": 10,
    "UnreachableInactive": 10,
    "Gone": 11,
}
"""mesos.TaskState. Mesos knows nothing yet of the other conditions."""

HEALTH_CHECKS = {
    "HTTP": 0,
    "TCP": 1,
    "COMMAND": 2,
    "HTTPS": 3,
    "MESOS_HTTP": 4,
    "MESOS_HTTPS": 5,
    "MESOS_TCP": 6,
}
NETWORK_MODES = {"host": 1, "container": 2, "container/bridge": 3}
CONTAINER_TYPES = {"DOCKER": 1, "MESOS": 2}


# ---- an app, as users post it to Marathon -------------------------------------------------------
class PortDefinition(msgspec.Struct, rename="camel", frozen=True):
    """A port on the host's network."""

    protocol: str = "tcp"
    name: str = ""
    labels: Mapping[str, str] = {}


class PortMapping(msgspec.Struct, rename="camel", frozen=True):
    """A port of a container with a network of its own."""

    container_port: int = 0
    host_port: int | None = None
    protocol: str = "tcp"
    name: str = ""
    labels: Mapping[str, str] = {}


class Docker(msgspec.Struct, frozen=True):
    """The image of a container."""

    image: str


class Container(msgspec.Struct, rename="camel", frozen=True):
    """What a task runs in."""

    type: str = "MESOS"
    docker: Docker | None = None
    port_mappings: Sequence[PortMapping] = ()


class Network(msgspec.Struct, frozen=True):
    """What a task is attached to."""

    mode: str = "container"
    name: str = ""


class HealthCheck(msgspec.Struct, rename="camel", frozen=True):
    """A check, run by Mesos or, which ZooKeeper does not see, by Marathon."""

    protocol: str = "HTTP"
    path: str = "/"
    port_index: int = 0


class App(msgspec.Struct, rename="camel", frozen=True):
    """An app definition; fields that are not named here are left out of ZooKeeper too."""

    id: str
    cmd: str = ""
    cpus: float = 1.0
    mem: float = 128.0
    instances: int = 1
    labels: Mapping[str, str] = {}
    networks: Sequence[Network] = (Network("host"),)
    container: Container | None = None
    port_definitions: Sequence[PortDefinition] = (PortDefinition(name="default"),)
    health_checks: Sequence[HealthCheck] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """What Marathon knows of one instance."""

    id: str
    app_version: str
    host: str
    host_ports: tuple[int, ...]
    ips: tuple[str, ...]
    condition: Condition
    healthy: bool | None
    staged_at: str

    @property
    def task_id(self) -> str:
        """Of its only task, which was launched once."""
        return f"{self.id}._app.1"


class Marathon:
    """A Marathon that leads, for as long as it is entered.

    Args:
        hosts: Of the ZooKeeper: `host:port` and more of them, separated by commas.
        root: The path in Marathon's `--zk`.
        framework_id: What it got from Mesos.
    """

    def __init__(
        self, hosts: str, *, root: str = "/marathon", framework_id: str = FRAMEWORK_ID
    ) -> None:
        self.root = root
        self.framework_id = framework_id
        self.client = KazooClient(
            hosts, connection_retry=PATIENCE, command_retry={**PATIENCE, "max_tries": 100}
        )
        self.apps: dict[str, App] = {}
        """By id, `/web`."""
        self.instances: dict[str, Instance] = {}
        """By id, `web.instance-<uuid>`."""
        self._versions: dict[str, str] = {}
        self._last_version = datetime.fromtimestamp(0, UTC)
        self._latch = ""
        """Path of what makes it the leader; empty: it does not want to be."""
        self._expired = False

    # ---- itself -----------------------------------------------------------------------------
    def __enter__(self) -> Self:
        """Register, migrate, lead."""
        self.client.add_listener(self._on_state)
        self.client.start()
        self._put(f"{self._state}/framework-id/b/id", field(1, self.framework_id))
        self._put(f"{self._state}/internal:storage:version", storage_version(STORAGE_VERSION))
        self.lead()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.stop()
        self.client.close()

    def lead(self) -> None:
        """Become the leader. A session that expires takes that away, and the next one brings it."""
        self.client.ensure_path(self._election)
        self._latch = self._run_for_leader().get()

    def resign(self) -> None:
        """Lead no more: nobody does."""
        latch, self._latch = self._latch, ""
        self._delete(latch)

    @property
    def _election(self) -> str:
        return f"{self.root}/leader-curator"

    def _run_for_leader(self) -> IAsyncResult[str]:
        path = f"{self._election}/_c_{uuid.uuid4()}-latch-"
        return self.client.create_async(path, b"127.0.0.1:8080", ephemeral=True, sequence=True)

    def _on_state(self, state: str) -> None:
        """In kazoo's thread, which must not wait."""
        if state == KazooState.LOST:
            self._expired = True
        elif state == KazooState.CONNECTED and self._expired and self._latch:
            self._expired = False
            self._run_for_leader().rawlink(self._elected)

    def _elected(self, latch: IAsyncResult[str]) -> None:
        self._latch = latch.get()

    def begin_migration(self) -> None:
        """Say that znodes are being rewritten."""
        self._put(f"{self._state}/migration-in-progress", b"")

    def end_migration(self) -> None:
        """Say that they are all as they should be."""
        self._delete(f"{self._state}/migration-in-progress")

    # ---- apps -------------------------------------------------------------------------------
    def publish(self, definition: Mapping[str, object]) -> str:
        """Store a new version of an app, in the form that users post; return the version.

        Errors: msgspec.ValidationError.
        """
        return self._store(msgspec.convert(definition, App))

    def scale(self, app_id: str, instances: int) -> str:
        """Store a version that differs in the number of instances only; return it."""
        return self._store(msgspec.structs.replace(self.apps[app_id], instances=instances))

    def delete(self, app_id: str) -> None:
        """Delete an app: its znode is emptied, and its versions stay for a while."""
        self._put(self.app_path(app_id), b"")
        del self.apps[app_id], self._versions[app_id]

    def app_path(self, app_id: str) -> str:
        """Znode of an app."""
        encoded = encode_id(app_id)
        return f"{self._state}/apps/{bucket(encoded)}/{encoded}"

    def _store(self, app: App) -> str:
        # A version is an instant, and no two of an app are the same one.
        now = datetime.now(UTC)
        self._last_version = max(now, self._last_version + MILLISECOND)
        version = version_text(self._last_version)
        data = service_definition(app, version)
        path = self.app_path(app.id)
        self._put(path, data)
        self._put(f"{path}/{version_znode(version)}", data)
        self.apps[app.id] = app
        self._versions[app.id] = version
        return version

    # ---- instances --------------------------------------------------------------------------
    def launch(
        self,
        app_id: str,
        host: str,
        *,
        host_ports: Iterable[int] = (),
        ips: Iterable[str] = (),
        condition: Condition = "Running",
        healthy: bool | None = None,
    ) -> str:
        """Store an instance of the newest version of an app; return its id.

        Args:
            app_id: The app.
            host: `--hostname` of the agent.
            host_ports: Those that it was given, in the order of the app's ports that take one.
            ips: Of its container. On the host's network, Mesos gives that of the agent.
            condition: Where it is on its way.
            healthy: The result of the app's Mesos health check; None: there is none yet.
        """
        instance = Instance(
            id=f"{encode_id(app_id)}.instance-{uuid.uuid4()}",
            app_version=self._versions[app_id],
            host=host,
            host_ports=tuple(host_ports),
            ips=tuple(ips),
            condition=condition,
            healthy=healthy,
            staged_at=version_text(datetime.now(UTC)),
        )
        self._write(instance)
        return instance.id

    def update(
        self,
        instance_id: str,
        *,
        condition: Condition | None = None,
        healthy: bool | None = None,
    ) -> None:
        """Store what changed of an instance; None: that did not."""
        old = self.instances[instance_id]
        self._write(
            replace(
                old,
                condition=old.condition if condition is None else condition,
                healthy=old.healthy if healthy is None else healthy,
            )
        )

    def kill(self, instance_id: str) -> None:
        """Begin to kill an instance: it drains until `remove`."""
        self.update(instance_id, condition="Killing")

    def remove(self, instance_id: str) -> None:
        """Forget an instance that has ended."""
        self._delete(self.instance_path(instance_id))
        del self.instances[instance_id]

    def instance_path(self, instance_id: str) -> str:
        """Znode of an instance."""
        return f"{self._state}/instance/{bucket(instance_id)}/{instance_id}"

    def _write(self, instance: Instance) -> None:
        data = instance_json(instance, agent_id=f"{self.framework_id}-S-{instance.host}")
        self._put(self.instance_path(instance.id), data)
        self.instances[instance.id] = instance

    @property
    def _state(self) -> str:
        return f"{self.root}/state"

    def _put(self, path: str, data: bytes) -> None:
        """Store as Marathon does: most znodes exist."""
        try:
            self.client.retry(self.client.set, path, data)
        except NoNodeError:
            with suppress(NodeExistsError):  # a retry that came too late
                self.client.retry(self.client.create, path, data, makepath=True)

    def _delete(self, path: str) -> None:
        with suppress(NoNodeError):  # a retry that came too late
            self.client.retry(self.client.delete, path)


# ---- names ---------------------------------------------------------------------------------------
def encode_id(app_id: str) -> str:
    """`/prod/web` -> `prod_web`."""
    return app_id.strip("/").replace("/", "_")


def bucket(name: str) -> str:
    """Folder of a znode: `abs(hashCode) % 16` of a Java String. Names here are ASCII."""
    code = 0
    for unit in name.encode("ascii"):
        code = (31 * code + unit) & 0xFFFFFFFF
    signed = code - (1 << 32) if code >> 31 else code
    return f"{abs(signed) % 16:x}"


def version_text(instant: datetime) -> str:
    """`2021-07-01T10:11:12.120Z`, as the contents of znodes have it."""
    return instant.strftime("%Y-%m-%dT%H:%M:%S.") + f"{instant.microsecond // 1000:03}Z"


def version_znode(version: str) -> str:
    """`2021-07-01T10:11:12.12Z`, as names of znodes have it: without zeros at the end."""
    return version.removesuffix("Z").rstrip("0").removesuffix(".") + "Z"


# ---- contents ------------------------------------------------------------------------------------
def service_definition(app: App, version: str) -> bytes:
    """The marathon.ServiceDefinition of an app."""
    changed_ms = round(datetime.fromisoformat(version).timestamp() * 1000)
    on_host = all(network.mode == "host" for network in app.networks)
    parts = [
        field(1, app.id),
        field(2, field(3, app.cmd) + field(6, 1)),
        field(3, app.instances),
        field(4, _resource("cpus", app.cpus)),
        field(4, _resource("mem", app.mem)),
        field(8, ""),
        field(11, version),
        *(field(12, _health_check(check)) for check in app.health_checks),
        field(18, 0),
        field(19, _container(app.container, app.networks)) if app.container else b"",
        *(field(20, label) for label in _labels(app.labels)),
        field(23, changed_ms),
        field(24, changed_ms),
        *(field(27, _port(i, port)) for i, port in enumerate(app.port_definitions) if on_host),
        *(field(34, _network(network)) for network in app.networks),
    ]
    return b"".join(parts)


def _resource(name: str, value: float) -> bytes:
    return field(1, name) + field(2, 0) + field(3, double(1, value)) + field(6, "*")


def _health_check(check: HealthCheck) -> bytes:
    return (
        field(1, HEALTH_CHECKS[check.protocol]) + field(2, check.port_index) + field(6, check.path)
    )


def _network(network: Network) -> bytes:
    name = field(2, network.name) if network.name else b""
    return field(1, NETWORK_MODES[network.mode]) + name


def _port(index: int, port: PortDefinition) -> bytes:
    """A mesos.Port. Its number is a service port: of no use to anybody but marathon-lb."""
    parts = [field(1, FIRST_SERVICE_PORT + index)]
    parts += [field(2, port.name)] if port.name else []
    parts += [field(3, port.protocol)]
    labels = b"".join(field(1, label) for label in _labels(port.labels))
    parts += [field(5, labels)] if labels else []
    return b"".join(parts)


def _container(container: Container, networks: Sequence[Network]) -> bytes:
    bridge = any(network.mode == "container/bridge" for network in networks)
    image = field(1, container.docker.image) if container.docker else b""
    parts = [field(1, CONTAINER_TYPES[container.type])]
    if image:
        parts.append(field(3 if container.type == "DOCKER" else 4, image))
    for index, mapping in enumerate(container.port_mappings):
        host_port = 0 if bridge and mapping.host_port is None else mapping.host_port
        parts.append(field(6, _port_mapping(index, mapping, host_port)))
    return b"".join(parts)


def _port_mapping(index: int, mapping: PortMapping, host_port: int | None) -> bytes:
    parts = [] if host_port is None else [field(1, host_port)]
    parts += [field(2, mapping.container_port), field(3, mapping.protocol)]
    parts += [field(4, mapping.name)] if mapping.name else []
    parts += [field(5, label) for label in _labels(mapping.labels)]
    parts += [field(6, FIRST_SERVICE_PORT + index)]
    return b"".join(parts)


def _labels(labels: Mapping[str, str]) -> list[bytes]:
    return [field(1, key) + field(2, value) for key, value in labels.items()]


def instance_json(instance: Instance, *, agent_id: str) -> bytes:
    """The JSON of an instance with one task."""
    placed = instance.condition != "Scheduled"
    health = {} if instance.healthy is None else {"healthy": instance.healthy}
    goal = "Decommissioned" if instance.condition == "Killing" else "Running"
    value = {
        "instanceId": {"idString": instance.id},
        "tasksMap": {instance.task_id: _task(instance, agent_id)} if placed else {},
        "runSpecVersion": instance.app_version,
        "state": {
            "condition": instance.condition,
            "since": instance.staged_at,
            "activeSince": instance.staged_at,
            **health,
            "goal": goal,
        },
    }
    if placed:
        value["agentInfo"] = {"host": instance.host, "agentId": agent_id, "attributes": []}
    return json.dumps(value, separators=(",", ":")).encode()


def _task(instance: Instance, agent_id: str) -> dict[str, object]:
    addresses = [
        {"ipAddress": ip, "protocol": "IPv6" if ":" in ip else "IPv4"} for ip in instance.ips
    ]
    status: dict[str, object] = {
        "stagedAt": instance.staged_at,
        "condition": instance.condition,
        "networkInfo": {
            "hostName": instance.host,
            "hostPorts": list(instance.host_ports),
            "ipAddresses": addresses,
        },
    }
    if instance.condition in TASK_STATES:
        status["startedAt"] = instance.staged_at
        status["mesosStatus"] = base64.b64encode(task_status(instance, agent_id)).decode()
    return {
        "taskId": instance.task_id,
        "runSpecVersion": instance.app_version,
        "status": status,
    }


def task_status(instance: Instance, agent_id: str) -> bytes:
    """The mesos.TaskStatus that Marathon accepted last."""
    addresses = b"".join(
        field(5, field(1, 2 if ":" in ip else 1) + field(2, ip)) for ip in instance.ips
    )
    parts = [
        field(1, field(1, instance.task_id)),
        field(2, TASK_STATES[instance.condition]),
        field(5, field(1, agent_id)),
        double(6, time.time()),
        b"" if instance.healthy is None else field(8, int(instance.healthy)),
        field(11, uuid.uuid4().bytes),
        field(13, field(1, addresses)) if addresses else b"",
    ]
    return b"".join(parts)


def storage_version(version: tuple[int, int, int]) -> bytes:
    """The ZKStoreEntry of a StorageVersion."""
    value = b"".join(field(number, part) for number, part in enumerate(version, start=1))
    entry = [
        field(1, "internal:storage:version"),
        field(2, uuid.uuid4().bytes),
        field(3, value + field(4, 1)),
        field(4, 0),
    ]
    return b"".join(entry)


# ---- protobuf ------------------------------------------------------------------------------------
def field(number: int, value: int | str | bytes) -> bytes:
    """One field on the wire: an unsigned number, a text, or bytes that may be a message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    octets = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(octets)) + octets


def double(number: int, value: float) -> bytes:
    """One field on the wire that is a double."""
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
