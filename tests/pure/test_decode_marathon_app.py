"""App definitions beyond the table of docs/conformance.md."""

import gzip
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from minuteman.decode import marathon_pb2 as pb
from minuteman.decode.marathon import App, Framework, app_unit, read_app, with_options
from minuteman.decode.wire import MAX_UNZIPPED
from minuteman.errors import ModelError
from minuteman.model import Problem, VipClaim, VipKey, VipName

PATH = "/marathon/state/apps/4/web"
MARATHON = Framework("f-1", "marathon")
HealthCheck = pb.HealthCheckDefinition
Network = pb.NetworkDefinition
Docker = pb.ExtendedContainerInfo.DockerInfo


def read(definition: pb.ServiceDefinition) -> App:
    definition.id = b"/web"
    app = read_app(PATH, definition.SerializeToString(), MARATHON)
    assert app is not None
    return app


def labels(**values: str) -> list[pb.Label]:
    return [pb.Label(key=key.encode(), value=text.encode()) for key, text in values.items()]


def port(protocol: bytes = b"tcp", name: bytes = b"", **values: str) -> pb.Port:
    return pb.Port(protocol=protocol, name=name, labels=pb.Labels(labels=labels(**values)))


def on_host(*ports: pb.Port) -> pb.ServiceDefinition:
    return pb.ServiceDefinition(port_definitions=ports)


def in_container(*mappings: pb.PortMapping, mode: Network.Mode = Network.CONTAINER) -> App:
    container = pb.ExtendedContainerInfo(port_mappings=mappings)
    return read(pb.ServiceDefinition(networks=[Network(mode=mode)], container=container))


def claim(label: str, number: int, **options: int) -> VipClaim:
    return VipClaim(VipKey(VipName(label, "marathon"), number, "tcp"), **options)


def claims(app: App) -> list[list[VipClaim]]:
    """What each port asks for."""
    return [[each for x in port.listeners for each in x.claims] for port in app.ports]


# ---- the whole -----------------------------------------------------------------------------------
def test_an_app_with_only_an_id() -> None:
    app = read(pb.ServiceDefinition())
    assert app == App("/web", 0, 0, "host", checked=False, ports=(), problems=())


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"\x00", "ServiceDefinition"),
        (b"\xff" * 100, "ServiceDefinition"),
        (b"\x0a\x04/we", "ServiceDefinition"),
        (b"\x18\x02", "id"),
        (b"\x0a\x04/wob", "id"),
        (b"\x0a\x02\xff\xfe", "id"),
        (b"\x0a\x04/web\x5a\x03now", "version"),
        (b"\x0a\x04/web\x92\x02\x02\x08\x09", "networks"),
        (b"\x0a\x04/web\x92\x02\x02\x08\x00", "networks"),
        (b"\x1f\x8b", "gzip"),
    ],
)
def test_an_app_that_cannot_be_read_names_the_field(data: bytes, field: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_app(PATH, data, MARATHON)
    assert caught.value.field == field


def test_gzip() -> None:
    data = b"\x0a\x04/web\x18\x05"
    app = read_app(PATH, gzip.compress(data), MARATHON)
    assert app == read_app(PATH, data, MARATHON)
    with pytest.raises(ModelError, match="cut off"):
        read_app(PATH, gzip.compress(data)[:-9], MARATHON)
    with pytest.raises(ModelError, match="unzipped"):
        read_app(PATH, b"\x1f\x8b\x09" + bytes(20), MARATHON)


def test_gzip_that_would_fill_the_memory_is_refused() -> None:
    data = gzip.compress(bytes(MAX_UNZIPPED + 1))
    assert len(data) < 20_000
    with pytest.raises(ModelError, match="too large"):
        read_app(PATH, data, MARATHON)


@pytest.mark.parametrize(
    ("protocol", "checked"),
    [
        (HealthCheck.HTTP, False),
        (HealthCheck.TCP, False),
        (HealthCheck.HTTPS, False),
        (HealthCheck.COMMAND, True),
        (HealthCheck.MESOS_HTTP, True),
        (HealthCheck.MESOS_HTTPS, True),
        (HealthCheck.MESOS_TCP, True),
    ],
)
def test_only_checks_that_mesos_runs_count(protocol: HealthCheck.Protocol, checked: bool) -> None:
    http = HealthCheck(protocol=HealthCheck.HTTP)
    definition = pb.ServiceDefinition(health_checks=[http, HealthCheck(protocol=protocol)])
    assert read(definition).checked is checked


# ---- ports ---------------------------------------------------------------------------------------
def test_several_labels_on_one_port() -> None:
    app = read(on_host(port(VIP_1="/b:2", VIP_0="/a:1", OTHER="/c:3", vip_x="10.0.0.9:4")))
    literal = VipClaim(VipKey(IPv4Address("10.0.0.9"), 4, "tcp"))
    assert app_unit(app, 1).declares == (claim("a", 1), claim("b", 2), literal)


@pytest.mark.parametrize(
    ("protocol", "transports"),
    [
        (b"tcp", ["tcp"]),
        (b"udp", ["udp"]),
        (b"udp,tcp", ["udp", "tcp"]),
        (b"tcp, udp", ["tcp", "udp"]),
        (b"tcp,tcp", ["tcp"]),
        (b"", ["tcp"]),
    ],
)
def test_protocols(protocol: bytes, transports: list[str]) -> None:
    (only,) = read(on_host(port(protocol))).ports
    assert [listener.transport for listener in only.listeners] == transports


def test_a_bad_label_costs_only_itself() -> None:
    app = read(on_host(port(b"udp,tcp", VIP_0="/web", VIP_1="/web:70000"), port(VIP_0="/ok:1")))
    assert app_unit(app, 1).declares == (claim("ok", 1),)
    # Once each, though both transports of the port read them.
    assert [(p.where, p.subject, p.field) for p in app.problems] == [
        (PATH, "VIP_0", "portDefinitions[0].labels"),
        (PATH, "VIP_1", "portDefinitions[0].labels"),
    ]


def test_a_label_that_is_no_text_costs_only_itself() -> None:
    bad = pb.Label(key=b"VIP_1", value=b"/web\xff:80")
    app = read(on_host(pb.Port(labels=pb.Labels(labels=[bad, *labels(VIP_0="/ok:1")]))))
    assert app_unit(app, 1).declares == (claim("ok", 1),)
    assert [problem.field for problem in app.problems] == ["portDefinitions[0].labels.VIP_1"]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (port(b"sctp", VIP_0="/web:80"), "portDefinitions[0].protocol"),
        (port(b"udp,sctp", VIP_0="/web:80"), "portDefinitions[0].protocol"),
        (port(b"\xff", VIP_0="/web:80"), "portDefinitions[0].protocol"),
        (port(name=b"\xff", VIP_0="/web:80"), "portDefinitions[0].name"),
    ],
)
def test_a_bad_port_costs_only_itself(bad: pb.Port, field: str) -> None:
    app = read(on_host(bad, port(VIP_0="/ok:1")))
    assert app.ports[0].listeners == ()
    assert app.ports[0].takes_host_port  # or the next one would get its host port
    assert app_unit(app, 1).declares == (claim("ok", 1),)
    assert [problem.field for problem in app.problems] == [field]


def test_container_port_that_is_too_large() -> None:
    app = in_container(pb.PortMapping(container_port=70_000, labels=labels(VIP_0="/web:80")))
    assert [only.listeners for only in app.ports] == [()]
    assert app.problems == (
        Problem(
            PATH, "", "container.portMappings[0].containerPort", "It is more than 65535: 70000."
        ),
    )


def test_container_port_0_without_a_host_port_is_reported_when_it_asks_for_a_vip() -> None:
    asking = in_container(pb.PortMapping(container_port=0, labels=labels(VIP_0="/web:80")))
    assert app_unit(asking, 1).declares == (claim("web", 80),)
    assert [p.field for p in asking.problems] == ["container.portMappings[0].containerPort"]
    # What Marathon itself puts there by default.
    assert in_container(pb.PortMapping(container_port=0, name=b"default")).problems == ()


@pytest.mark.parametrize(
    ("mode", "mapping", "takes"),
    [
        (Network.BRIDGE, pb.PortMapping(container_port=80, host_port=0), True),
        (Network.BRIDGE, pb.PortMapping(container_port=80), True),
        (Network.CONTAINER, pb.PortMapping(container_port=80, host_port=0), True),
        (Network.CONTAINER, pb.PortMapping(container_port=80, host_port=8080), True),
        (Network.CONTAINER, pb.PortMapping(container_port=80), False),
    ],
)
def test_which_ports_take_a_host_port(
    mode: Network.Mode, mapping: pb.PortMapping, takes: bool
) -> None:
    (only,) = in_container(mapping, mode=mode).ports
    assert only.takes_host_port is takes
    assert only.container_port == 80


def test_port_definitions_mean_nothing_off_the_host_network() -> None:
    app = read(pb.ServiceDefinition(networks=[Network(mode=Network.CONTAINER)], ports=[10_000]))
    assert (app.network, app.ports) == ("container", ())


def test_port_mappings_mean_nothing_on_the_host_network() -> None:
    assert in_container(pb.PortMapping(container_port=80), mode=Network.HOST).ports == ()


# ---- options -------------------------------------------------------------------------------------
def test_options_are_of_the_port_that_they_stand_at() -> None:
    app = read(
        on_host(
            port(b"udp,tcp", VIP_0="/web:80", MINUTEMAN_0_WEIGHT="7", MINUTEMAN_0_AFFINITY="5m"),
            port(VIP_0="/api:80"),
        )
    )
    web = claim("web", 80, weight=7, affinity_seconds=300)
    udp = replace(web, key=replace(web.key, transport="udp"))
    assert claims(app) == [[udp, web], [claim("api", 80)]]
    assert app_unit(app, 1).declares == (udp, web, claim("api", 80))
    assert app.problems == ()


def test_a_bad_option_costs_only_itself() -> None:
    app = read(on_host(port(b"udp,tcp", VIP_0="/web:80", MINUTEMAN_0_WEIGHT="heavy")))
    assert app_unit(app, 1).declares[1:] == (claim("web", 80),)
    assert [(p.where, p.subject, p.field) for p in app.problems] == [
        (PATH, "MINUTEMAN_0_WEIGHT", "portDefinitions[0].labels")
    ]


def test_options_of_the_newest_version_count() -> None:
    old = read(on_host(port(VIP_0="/web:80", VIP_1="/old:80", MINUTEMAN_0_WEIGHT="7")))
    new = read(on_host(port(VIP_0="/web:80", MINUTEMAN_0_AFFINITY="9s")))
    adjusted = with_options(old, [new, old])
    assert claims(adjusted) == [[claim("web", 80, affinity_seconds=9), claim("old", 80)]]
    assert replace(adjusted, ports=old.ports) == old
    assert with_options(new, [new, old]) is new
    assert with_options(old, [old, new]) is old


def test_a_version_that_does_not_ask_for_a_vip_says_nothing_of_its_options() -> None:
    old = read(on_host(port(VIP_0="/web:80", MINUTEMAN_0_WEIGHT="1")))
    middle = read(on_host(port(VIP_0="/web:80", MINUTEMAN_0_WEIGHT="2")))
    new = read(on_host(port(VIP_0="/web:443", MINUTEMAN_0_WEIGHT="3")))
    assert claims(with_options(old, [new, middle, old])) == [[claim("web", 80, weight=2)]]
    assert with_options(old, [new]) is old
    assert with_options(old, []) is old


def test_where_two_ports_ask_for_one_vip_each_keeps_its_own_options() -> None:
    def version(*weights: str) -> App:
        return read(on_host(*(port(VIP_0="/web:80", MINUTEMAN_0_WEIGHT=each) for each in weights)))

    old, new = version("1", "2", "3"), version("4", "5")
    expected = [[claim("web", 80, weight=weight)] for weight in (4, 5, 4)]
    assert claims(with_options(old, [new])) == expected


# ---- layouts before 1.5 --------------------------------------------------------------------------
def test_service_ports_without_definitions() -> None:
    app = read(pb.ServiceDefinition(ports=[10_000, 10_001]))
    assert [only.takes_host_port for only in app.ports] == [True, True]
    assert app_unit(app, 1).declares == ()


def test_discovery_ports_before_1_5() -> None:
    discovery = pb.IpAddress.DiscoveryInfo(
        ports=[pb.Port(number=80, name=b"http", labels=pb.Labels(labels=labels(VIP_0="/web:80")))]
    )
    app = read(pb.ServiceDefinition(ip_address_before_1_5=pb.IpAddress(discovery_info=discovery)))
    assert app.network == "container"
    assert [(p.name, p.takes_host_port, p.container_port) for p in app.ports] == [
        ("http", False, 80)
    ]
    assert app_unit(app, 1).declares == (claim("web", 80),)


@pytest.mark.parametrize(
    ("mode", "network"),
    [
        (Docker.HOST, "host"),
        (Docker.BRIDGE, "bridge"),
        (Docker.USER, "container"),
        (Docker.NONE, "container"),
        (None, "host"),
    ],
)
def test_docker_networks_before_1_5(mode: Docker.Network | None, network: str) -> None:
    container = pb.ExtendedContainerInfo(docker=Docker(network_before_1_5=mode))
    assert read(pb.ServiceDefinition(container=container)).network == network


def test_networks_of_1_5_outweigh_what_was_before() -> None:
    container = pb.ExtendedContainerInfo(docker=Docker(network_before_1_5=Docker.BRIDGE))
    networks = [Network(mode=Network.CONTAINER), Network(mode=Network.CONTAINER)]
    assert read(pb.ServiceDefinition(container=container, networks=networks)).network == "container"


# ---- labels of the app ---------------------------------------------------------------------------
def test_task_labels() -> None:
    definition = on_host(port(VIP_0="/web:80"), port(b"udp"))
    definition.labels.extend(
        labels(
            vip_PORT0="tcp://1.2.3.4:80",
            VIP_PORT1="tcp://db:5",
            vip_port1="udp://db:5",
            VIP_0="/no:1",
        )
    )
    app = read(definition)
    assert app.problems == ()
    literal = VipClaim(VipKey(IPv4Address("1.2.3.4"), 80, "tcp"))
    db_udp = VipClaim(VipKey(VipName("db", "marathon"), 5, "udp"))
    assert [[(x.transport, x.claims) for x in each.listeners] for each in app.ports] == [
        [("tcp", (claim("web", 80), literal))],
        [("udp", (db_udp,)), ("tcp", (claim("db", 5),))],
    ]


def test_a_task_label_counts_only_ports_with_a_host_port() -> None:
    container = pb.ExtendedContainerInfo(
        port_mappings=[
            pb.PortMapping(container_port=80),
            pb.PortMapping(container_port=81, host_port=0),
        ]
    )
    definition = pb.ServiceDefinition(
        networks=[Network(mode=Network.CONTAINER)],
        container=container,
        labels=labels(vip_PORT0="tcp://web:80"),
    )
    app = read(definition)
    assert [each.listeners[0].claims for each in app.ports] == [(), (claim("web", 80),)]


def test_a_task_label_that_repeats_a_port_label_adds_nothing() -> None:
    definition = on_host(port(VIP_0="/web:80"))
    definition.labels.extend(labels(vip_PORT0="tcp://web:80"))
    assert [x.claims for x in read(definition).ports[0].listeners] == [(claim("web", 80),)]


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("vip_PORT0", "1.2.3.4:80"),
        ("vip_PORT0", "sctp://1.2.3.4:80"),
        ("vip_PORT0", "tcp://1.2.3.4"),
        ("vip_PORT0", "tcp://1.2.3.4:0"),
        ("vip_PORT1", "tcp://1.2.3.4:80"),
        ("vip_PORT99999", "tcp://1.2.3.4:80"),
    ],
)
def test_bad_task_labels(label: str, value: str) -> None:
    definition = on_host(port(VIP_0="/web:80"))
    definition.labels.extend(labels(**{label: value}))
    app = read(definition)
    assert app_unit(app, 1).declares == (claim("web", 80),)
    assert [problem.subject for problem in app.problems] == [label]
