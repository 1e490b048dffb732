"""App definitions: `apps/<bucket>/<id>` and `apps/<bucket>/<id>/<version>`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from minuteman.decode import marathon_pb2 as pb
from minuteman.decode import wire
from minuteman.decode.marathon.names import app_unit_id, encode_id, version_ms
from minuteman.decode.notes import Notes
from minuteman.errors import ModelError
from minuteman.labels import parse_vip, read_labels
from minuteman.model import Problem, Transport, Unit, VipClaim, VipKey

Network = Literal["host", "bridge", "container"]

_RUN_BY_MESOS = frozenset(
    {
        pb.HealthCheckDefinition.COMMAND,
        pb.HealthCheckDefinition.MESOS_HTTP,
        pb.HealthCheckDefinition.MESOS_HTTPS,
        pb.HealthCheckDefinition.MESOS_TCP,
    }
)
_TASK_LABEL = re.compile(r"vip_port(?P<index>[0-9]{1,5})", re.IGNORECASE)
_TASK_VIP = re.compile(r"(?P<transport>tcp|udp)://(?P<vip>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Framework:
    """The Marathon that wrote the znodes."""

    id: str
    """What Mesos gave it: `read_framework_id`."""
    name: str
    """As it registered. Marathon does not store it, so it is a setting."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One transport of a port, and the VIPs that it asks to be behind."""

    transport: Transport
    claims: tuple[VipClaim, ...]


@dataclass(frozen=True, slots=True)
class AppPort:
    """One port of an app definition."""

    name: str
    takes_host_port: bool
    """A task of it is reached at a host port: the next of those that the task was given."""
    container_port: int | None
    """0: the same as the host port. None on the host network."""
    listeners: tuple[Listener, ...]
    """Two for `udp,tcp`; none if the port cannot be used, though it still takes its host port."""


@dataclass(frozen=True, slots=True)
class App:
    """One version of an app. What (id, version) names never changes in ZooKeeper."""

    id: str
    """As users write it, `/prod/web`."""
    version: int
    """Milliseconds since 1970."""
    instances: int
    network: Network
    checked: bool
    """Mesos runs a health check, so sooner or later each task has a result."""
    ports: tuple[AppPort, ...]
    problems: tuple[Problem, ...]
    """Labels and ports that were skipped."""


def read_app(path: str, data: bytes, framework: Framework) -> App | None:
    """The app definition in an app's own znode or in one of its versions; None: it was deleted.

    The encoded id has to be one of the parts of `path`.  Errors: ModelError.
    """
    if not data:
        return None
    definition = wire.message(pb.ServiceDefinition, data)
    app_id = wire.text("id", definition.id)
    if not app_id or encode_id(app_id) not in path.split("/"):
        raise ModelError("id", app_id, f"it is not the app of {path}")
    network = _network(definition)
    notes = Notes(path)
    ports = [_app_port(port, framework, notes) for port in _declared(definition, network)]
    labels = _labels("labels", definition.labels, notes)
    _apply_task_labels(ports, labels, framework, notes)
    return App(
        id=app_id,
        version=version_ms(wire.text("version", definition.version)) if definition.version else 0,
        instances=definition.instances,
        network=network,
        checked=any(check.protocol in _RUN_BY_MESOS for check in definition.health_checks),
        ports=tuple(ports),
        problems=tuple(notes),
    )


def app_unit(app: App, revision: int) -> Unit:
    """Unit of the app's own znode: VIPs that exist even without a task, and what was skipped."""
    claims = (claim for port in app.ports for each in port.listeners for claim in each.claims)
    return Unit(
        id=app_unit_id(encode_id(app.id)),
        revision=revision,
        declares=tuple(dict.fromkeys(claims)),
        problems=app.problems,
    )


# ---- options of other versions -------------------------------------------------------------------
def with_options(app: App, newest: Sequence[App]) -> App:
    """`app` with the options that count for all tasks of it; itself if they are its own.

    The options of a VIP are those of the first of `newest` that asks for it: at the same port, or
    else at the first port that does.
    """
    ports = tuple(_port_with_options(port, at, newest) for at, port in enumerate(app.ports))
    return app if ports == app.ports else replace(app, ports=ports)


def _port_with_options(port: AppPort, at: int, newest: Sequence[App]) -> AppPort:
    listeners = (
        Listener(each.transport, tuple(_newest_claim(claim, at, newest) for claim in each.claims))
        for each in port.listeners
    )
    return replace(port, listeners=tuple(listeners))


def _newest_claim(claim: VipClaim, at: int, newest: Sequence[App]) -> VipClaim:
    """What counts instead of a claim of the port at this index."""
    for app in newest:
        if asking := _claims_of(app, claim.key):
            return asking.get(at) or next(iter(asking.values()))
    return claim


def _claims_of(app: App, key: VipKey) -> dict[int, VipClaim]:
    """What an app says of a VIP, by the index of the port."""
    return {
        at: claim
        for at, port in enumerate(app.ports)
        for listener in port.listeners
        for claim in listener.claims
        if claim.key == key
    }


# ---- networks ------------------------------------------------------------------------------------
def _network(definition: pb.ServiceDefinition) -> Network:
    modes = {each.mode for each in definition.networks} or {_mode_before_1_5(definition)}
    if pb.NetworkDefinition.UNKNOWN in modes:
        raise ModelError("networks", sorted(modes), "one of them has an unknown mode")
    if pb.NetworkDefinition.BRIDGE in modes:
        return "bridge"
    return "container" if pb.NetworkDefinition.CONTAINER in modes else "host"


def _mode_before_1_5(definition: pb.ServiceDefinition) -> pb.NetworkDefinition.Mode:
    docker = definition.container.docker
    if docker.network_before_1_5 == docker.BRIDGE:
        return pb.NetworkDefinition.BRIDGE
    own_address = definition.HasField("ip_address_before_1_5")
    if docker.network_before_1_5 == docker.HOST and not own_address:
        return pb.NetworkDefinition.HOST
    return pb.NetworkDefinition.CONTAINER


# ---- ports ---------------------------------------------------------------------------------------
class _Declared(NamedTuple):
    """A port as its user wrote it, whichever message it stands in."""

    field: str
    name: bytes = b""
    protocol: bytes = b""
    labels: Iterable[pb.Label] = ()
    takes_host_port: bool = True
    container_port: int | None = None


def _declared(definition: pb.ServiceDefinition, network: Network) -> Iterator[_Declared]:
    """The app's ports, in the order in which its tasks were given host ports."""
    if network == "host":
        return _declared_on_host(definition)
    return _declared_in_container(definition, network)


def _declared_on_host(definition: pb.ServiceDefinition) -> Iterator[_Declared]:
    for index, port in enumerate(definition.port_definitions):
        field = f"portDefinitions[{index}]"
        yield _Declared(field, port.name, port.protocol, port.labels.labels)
    if not definition.port_definitions:
        yield from (_Declared(f"ports[{index}]") for index in range(len(definition.ports)))


def _declared_in_container(
    definition: pb.ServiceDefinition, network: Network
) -> Iterator[_Declared]:
    container = definition.container
    mappings = container.port_mappings or container.docker.port_mappings_before_1_5
    for index, mapping in enumerate(mappings):
        yield _Declared(
            f"container.portMappings[{index}]",
            mapping.name,
            mapping.protocol,
            mapping.labels,
            # Nothing but its own agent reaches a bridge: a port on it always gets a host port.
            takes_host_port=network == "bridge" or mapping.HasField("host_port"),
            container_port=mapping.container_port,
        )
    if not mappings:
        for index, port in enumerate(definition.ip_address_before_1_5.discovery_info.ports):
            yield _Declared(
                f"ipAddress.discovery.ports[{index}]",
                port.name,
                port.protocol,
                port.labels.labels,
                takes_host_port=False,
                container_port=port.number,
            )


def _app_port(declared: _Declared, framework: Framework, notes: Notes) -> AppPort:
    field, container_port = declared.field, declared.container_port
    listeners: tuple[Listener, ...] = ()
    name = ""
    try:
        name = wire.text(f"{field}.name", declared.name)
        transports = _transports(f"{field}.protocol", declared.protocol)
        _check_container_port(f"{field}.containerPort", container_port)
        labels = _labels(f"{field}.labels", declared.labels, notes)
        listeners = tuple(
            Listener(each, _claims(f"{field}.labels", labels, each, framework, notes))
            for each in transports
        )
    except ModelError as error:
        notes.refuse(error)
    if container_port == 0 and not declared.takes_host_port and any(x.claims for x in listeners):
        notes.add(f"{field}.containerPort", "Port 0 without a host port cannot be reached.")
    return AppPort(name, declared.takes_host_port, container_port, listeners)


def _check_container_port(field: str, number: int | None) -> None:
    if number is not None and number > 65_535:
        raise ModelError(field, number, "it is more than 65535")


def _transports(field: str, protocol: bytes) -> tuple[Transport, ...]:
    """`udp,tcp` is two, in this order; nothing is tcp. Errors: ModelError."""
    text = wire.text(field, protocol) or "tcp"
    found: dict[Transport, None] = {}
    for part in text.split(","):
        match part.strip():
            case "tcp" | "udp" as transport:
                found[transport] = None
            case _:
                raise ModelError(field, text, "it is neither tcp nor udp nor both")
    return tuple(found)


# ---- labels --------------------------------------------------------------------------------------
def _labels(field: str, labels: Iterable[pb.Label], notes: Notes) -> dict[str, str]:
    read: dict[str, str] = {}
    for label in labels:
        try:
            key = wire.text(field, label.key)
            read[key] = wire.text(f"{field}.{key}", label.value)
        except ModelError as error:
            notes.refuse(error)
    return read


def _claims(
    field: str, labels: dict[str, str], transport: Transport, framework: Framework, notes: Notes
) -> tuple[VipClaim, ...]:
    read = read_labels(labels, transport, framework.name)
    for problem in read.problems:
        notes.add(field, problem.reason, subject=problem.label)
    return read.claims


def _apply_task_labels(
    ports: list[AppPort], labels: dict[str, str], framework: Framework, notes: Notes
) -> None:
    """Add what labels of the app itself ask for, the way before port labels.

    `vip_PORT0 = tcp://1.2.3.4:80` is of the first port among those that take a host port.
    """
    hosted = [index for index, port in enumerate(ports) if port.takes_host_port]
    for label in sorted(labels):
        if not (match := _TASK_LABEL.fullmatch(label)):
            continue
        position = int(match["index"])
        if position >= len(hosted):
            notes.add("labels", "The app has no such host port.", subject=label)
            continue
        index = hosted[position]
        try:
            ports[index] = _with_listener(ports[index], _task_label(labels[label], framework))
        except ModelError as error:
            notes.refuse(error, subject=label)


def _task_label(value: str, framework: Framework) -> Listener:
    if not (match := _TASK_VIP.fullmatch(value)):
        raise ModelError("labels", value, "it is neither tcp:// nor udp:// and a VIP")
    transport: Transport = "tcp" if match["transport"] == "tcp" else "udp"
    return Listener(transport, (VipClaim(parse_vip(match["vip"], transport, framework.name)),))


def _with_listener(port: AppPort, added: Listener) -> AppPort:
    """The port with the claims of `added` too, each VIP once."""
    by_transport = {each.transport: each.claims for each in port.listeners}
    present = by_transport.get(added.transport, ())
    keys = {claim.key for claim in present}
    fresh = tuple(claim for claim in added.claims if claim.key not in keys)
    by_transport[added.transport] = present + fresh
    return replace(port, listeners=tuple(Listener(*each) for each in by_transport.items()))
