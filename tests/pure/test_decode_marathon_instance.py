"""Instances beyond the table of docs/conformance.md."""

import json
from base64 import b64encode
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from minuteman.decode import marathon_pb2 as pb
from minuteman.decode.marathon import (
    App,
    AppPort,
    Framework,
    Listener,
    instance_unit,
    read_instance,
    version_ms,
)
from minuteman.errors import ModelError
from minuteman.model import Address, Task, TaskPort, Unit, VipClaim, VipKey, VipName

ID = "prod_web.instance-7a5a8aa6-0d0c-11eb-b7a2-0242ac110002"
PATH = f"/marathon/state/instance/c/{ID}"
TASK = f"{ID}._app.1"
VERSION = "2021-07-01T10:11:12.120Z"
MARATHON = Framework("f-1", "marathon")
WEB = VipClaim(VipKey(VipName("web", "marathon"), 80, "tcp"))

ON_HOST = AppPort("http", True, None, (Listener("tcp", (WEB,)),))
MAPPED = AppPort("http", True, 8080, (Listener("tcp", (WEB,)),))
OVERLAY = AppPort("http", False, 8080, (Listener("tcp", (WEB,)),))
APP = App("/prod/web", version_ms(VERSION), 1, "host", False, (ON_HOST,), ())

Json = dict[str, Any]


def a_status(condition: object = "Running", **fields: object) -> Json:
    network = {
        "hostName": "10.0.0.1",
        "hostPorts": [31000],
        "ipAddresses": [{"ipAddress": "10.0.0.1", "protocol": "IPv4"}],
    }
    return {"condition": condition, "networkInfo": network} | fields


def a_network(
    *host_ports: int, host: str = "10.0.0.1", ips: tuple[str, ...] = ("10.0.0.1",)
) -> Json:
    addresses = [{"ipAddress": ip} for ip in ips]
    return {"hostName": host, "hostPorts": list(host_ports), "ipAddresses": addresses}


def an_instance(*statuses: Json, **fields: object) -> bytes:
    tasks = {
        f"{ID}._app.{number}": {"taskId": f"{ID}._app.{number}", "status": status}
        for number, status in enumerate(statuses, start=1)
    }
    instance = {
        "instanceId": {"idString": ID},
        "agentInfo": {"host": "10.0.0.1", "agentId": "S1", "attributes": []},
        "tasksMap": tasks,
        "runSpecVersion": VERSION,
        "state": {"condition": "Running", "since": VERSION, "goal": "Running"},
    }
    return json.dumps(instance | fields).encode()


def unit_of(
    data: bytes,
    app: App | None = APP,
    resolve: dict[str, Address] | None = None,
    previous: Unit | None = None,
) -> Unit:
    instance = read_instance(PATH, data)
    return instance_unit(PATH, instance, app, MARATHON, 5, resolve or {}, previous)


def only_task(data: bytes, app: App | None = APP, **keywords: Any) -> Task:
    (task,) = unit_of(data, app, **keywords).tasks
    return task


def encoded(status: pb.TaskStatus) -> str:
    return b64encode(status.SerializeToString()).decode()


def in_network(*ports: AppPort) -> App:
    return replace(APP, network="container", ports=ports)


# ---- conditions and health -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("condition", "state"),
    [
        ("Scheduled", "starting"),
        ("Created", "starting"),
        ("Provisioned", "starting"),
        ("Staging", "starting"),
        ("Starting", "starting"),
        ("Running", "running"),
        ("Killing", "killing"),
        ("Unreachable", "unreachable"),
        ("UnreachableInactive", "unreachable"),
        ("Reserved", None),
        ("Finished", None),
        ("Failed", None),
        ("Killed", None),
        ("Error", None),
        ("Gone", None),
        ("Dropped", None),
        ("Unknown", None),
    ],
)
def test_conditions(condition: str, state: str | None) -> None:
    expected = [] if state is None else [state]
    for written in (condition, condition.lower(), {"str": condition.lower()}):
        unit = unit_of(an_instance(a_status(written)))
        assert [task.state for task in unit.tasks] == expected
        assert unit.problems == ()


@pytest.mark.parametrize("goal", ["Running", "Stopped", "Decommissioned"])
def test_the_goal_is_not_the_state(goal: str) -> None:
    state = {"condition": "Running", "since": VERSION, "goal": goal}
    assert only_task(an_instance(a_status(), state=state)).state == "running"


@pytest.mark.parametrize(
    ("checked", "result", "healthy"),
    [
        (True, True, True),
        (True, False, False),
        (True, None, False),
        (False, None, None),
        (False, True, True),
        (False, False, False),
    ],
)
def test_health(checked: bool, result: bool | None, healthy: bool | None) -> None:
    status = a_status(mesosStatus=encoded(pb.TaskStatus(healthy=result)))
    assert only_task(an_instance(status), replace(APP, checked=checked)).healthy is healthy


@pytest.mark.parametrize("checked", [True, False])
def test_health_without_any_status(checked: bool) -> None:
    task = only_task(an_instance(a_status()), replace(APP, checked=checked))
    assert task.healthy is (False if checked else None)


@pytest.mark.parametrize(
    ("mesos_status", "field"),
    [("!", "mesosStatus"), ("\u00e9", "mesosStatus"), ("AA==", "TaskStatus")],
)
def test_a_status_that_cannot_be_read_is_no_result(mesos_status: str, field: str) -> None:
    data = an_instance(a_status(mesosStatus=mesos_status))
    unit = unit_of(data, replace(APP, checked=True))
    assert [(task.state, task.healthy) for task in unit.tasks] == [("running", False)]
    assert [(p.where, p.subject, p.field) for p in unit.problems] == [(PATH, TASK, field)]


# ---- addresses -----------------------------------------------------------------------------------
NAMED = {"host": "a1.example", "agentId": "S1", "attributes": []}
KNOWN: dict[str, Address] = {"a1.example": IPv4Address("10.0.0.7")}


@pytest.mark.parametrize(
    ("host", "network", "expected"),
    [
        ("10.0.0.2", "host", "10.0.0.2"),
        ("fd00::2", "host", "fd00::2"),
        ("a1.example", "host", "10.0.0.1"),  # its task is on the agent's own network
        ("a1.example", "bridge", "10.0.0.7"),
        ("a1.example", "container", "10.0.0.7"),
        ("a2.example", "container", None),
    ],
)
def test_agent_ip(host: str, network: Any, expected: str | None) -> None:
    data = an_instance(a_status(), agentInfo={"host": host, "attributes": []})
    task = only_task(data, replace(APP, network=network), resolve=KNOWN)
    assert task.agent_ip == (None if expected is None else ip_address(expected))
    assert task.agent_id == ""


def test_agent_of_a_host_task_without_addresses_is_resolved() -> None:
    data = an_instance(a_status(networkInfo=a_network(31000, ips=())), agentInfo=NAMED)
    assert only_task(data, resolve=KNOWN).agent_ip == IPv4Address("10.0.0.7")
    assert only_task(data).agent_ip is None


def test_host_name_of_the_task_stands_in_for_an_agent_that_is_missing() -> None:
    data = json.loads(an_instance(a_status(networkInfo=a_network(31000, host="10.0.0.9"))))
    del data["agentInfo"]
    task = only_task(json.dumps(data).encode())
    assert (task.agent_ip, task.agent_id) == (IPv4Address("10.0.0.9"), "")


def test_an_instance_that_waits_for_a_place() -> None:
    data = json.loads(an_instance())
    del data["agentInfo"]
    unit = unit_of(json.dumps(data).encode())
    assert (unit.tasks, unit.problems) == ((), ())


def test_addresses_of_both_families_keep_their_order() -> None:
    ips = ("172.19.0.2", "fd01:b::2:8000:0:2", "172.19.0.2", "::ffff:172.19.0.2")
    network = a_network(ips=ips)
    task = only_task(an_instance(a_status(networkInfo=network)), in_network(OVERLAY))
    assert task.ips == (IPv4Address("172.19.0.2"), IPv6Address("fd01:b::2:8000:0:2"))


def test_addresses_of_the_status_when_marathon_has_none() -> None:
    status = pb.TaskStatus(
        container_status=pb.ContainerStatus(
            network_infos=[
                pb.NetworkInfo(ip_addresses=[pb.NetworkInfo.IPAddress(ip_address=b"9.0.1.6")]),
                pb.NetworkInfo(ip_addresses=[pb.NetworkInfo.IPAddress()]),
            ]
        )
    )
    data = an_instance(a_status(mesosStatus=encoded(status), networkInfo=a_network(ips=())))
    assert only_task(data, in_network(OVERLAY)).ips == (IPv4Address("9.0.1.6"),)


@pytest.mark.parametrize("bad", ["9.0.1", "dcos", "fe80::1%eth0", "010.0.0.1"])
def test_a_bad_address_costs_only_itself(bad: str) -> None:
    data = an_instance(a_status(networkInfo=a_network(31000, ips=(bad, "10.0.0.1", ""))))
    unit = unit_of(data)
    assert [task.ips for task in unit.tasks] == [(IPv4Address("10.0.0.1"),)]
    assert [(p.subject, p.field) for p in unit.problems] == [(TASK, "ipAddresses")]


def test_a_task_keeps_its_addresses_when_a_later_status_has_none() -> None:
    overlay = in_network(OVERLAY)
    before = unit_of(an_instance(a_status(networkInfo=a_network(ips=("9.0.1.6",)))), overlay)
    lost = an_instance(a_status("Unreachable", networkInfo=a_network(ips=())))
    after = only_task(lost, overlay, previous=before)
    assert (after.state, after.ips) == ("unreachable", (IPv4Address("9.0.1.6"),))
    moved = an_instance(a_status(networkInfo=a_network(ips=("9.0.1.7",))))
    assert only_task(moved, overlay, previous=before).ips == (IPv4Address("9.0.1.7"),)
    assert only_task(lost, overlay).ips == ()


# ---- ports ---------------------------------------------------------------------------------------
def test_host_ports_go_to_the_ports_that_take_one() -> None:
    unused = AppPort("", True, 0, ())
    data = an_instance(a_status(networkInfo=a_network(31000, 31001, 31002)))
    task = only_task(data, in_network(MAPPED, OVERLAY, unused, MAPPED))
    assert task.ports == (
        TaskPort("tcp", 31000, "host", "http", 8080, (WEB,)),
        TaskPort("tcp", 8080, "container", "http", None, (WEB,)),
        TaskPort("tcp", 31002, "host", "http", 8080, (WEB,)),
    )


def test_a_bad_port_keeps_the_others_in_step() -> None:
    data = an_instance(a_status(networkInfo=a_network(0, 31001, 70_000)))
    unit = unit_of(data, in_network(MAPPED, MAPPED, MAPPED, MAPPED))
    assert [port.number for task in unit.tasks for port in task.ports] == [31001]
    assert [(p.subject, p.reason) for p in unit.problems] == [
        (TASK, "Port 0 of the app was given no usable host port."),
        (TASK, "Port 2 of the app was given no usable host port."),
        (TASK, "Port 3 of the app was given no usable host port."),
    ]


def test_container_port_0() -> None:
    mapped, overlay = replace(MAPPED, container_port=0), replace(OVERLAY, container_port=0)
    task = only_task(an_instance(a_status()), in_network(mapped, overlay))
    assert task.ports == (TaskPort("tcp", 31000, "host", "http", 31000, (WEB,)),)


def test_without_a_definition_a_task_has_no_ports() -> None:
    unit = unit_of(an_instance(a_status()), None)
    assert [(task.name, task.ports, task.healthy) for task in unit.tasks] == [
        ("web.prod", (), None)
    ]
    assert [problem.field for problem in unit.problems] == ["runSpecVersion"]
    assert unit_of(an_instance(), None).problems == ()


def test_another_version_of_the_app_is_reported() -> None:
    unit = unit_of(an_instance(a_status()), replace(APP, version=0))
    assert [port.number for task in unit.tasks for port in task.ports] == [31000]
    assert [problem.reason for problem in unit.problems] == [
        "Version 2021-07-01T10:11:12.120Z of its app is gone: its ports are those of"
        " 1970-01-01T00:00:00.000Z."
    ]


# ---- what cannot be read -------------------------------------------------------------------------
BAD_STATUSES = [
    ({}, "status"),
    ({"condition": None}, "status.condition"),
    ({"condition": {}}, "status.condition"),
    ({"condition": "Sleeping"}, "status.condition"),
    ({"condition": ["Running"]}, "status.condition"),
    ({"condition": "Running", "networkInfo": []}, "status.networkInfo"),
    (a_status(networkInfo={"hostPorts": ["31000"]}), "status.networkInfo.hostPorts[0]"),
    (a_status(networkInfo={"ipAddresses": ["10.0.0.1"]}), "status.networkInfo.ipAddresses[0]"),
    (a_status(mesosStatus=7), "status.mesosStatus"),
]


@pytest.mark.parametrize(("status", "field"), BAD_STATUSES)
def test_a_bad_task_costs_only_itself(status: Json, field: str) -> None:
    unit = unit_of(an_instance(status, a_status()))
    assert [task.id for task in unit.tasks] == [f"{ID}._app.2"]
    (problem,) = unit.problems
    assert (problem.where, problem.subject) == (PATH, TASK)
    # msgspec numbers what is in a list, or puts three dots.
    assert problem.field.replace("[...]", "[0]") == f"tasksMap[{TASK}].{field}"


@pytest.mark.parametrize(("status", "field"), BAD_STATUSES)
def test_a_unit_without_a_task_that_can_be_read(status: Json, field: str) -> None:
    """It is an error, or a source would take an unreadable task for one that ended."""
    for statuses in ([status], [status, status]):
        with pytest.raises(ModelError) as caught:
            unit_of(an_instance(*statuses))
        assert caught.value.field.replace("[...]", "[0]") == f"tasksMap[{TASK}].{field}"


def test_a_task_without_a_status() -> None:
    data = an_instance(tasksMap={TASK: {"taskId": TASK}})
    with pytest.raises(ModelError) as caught:
        unit_of(data)
    assert caught.value.field == f"tasksMap[{TASK}]"
    assert "status" in caught.value.reason


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "instance"),
        (b"\x00\x01\x02", "instance"),
        (b"null", "instance"),
        (b"[]", "instance"),
        (an_instance(a_status())[:-1], "instance"),
        (an_instance(a_status()) + b"}", "instance"),
        (b'{"x":' + b"[" * 100_000, "instance"),
        (b'{"tasksMap":"\xff"}', "instance.tasksMap"),
        (an_instance(tasksMap=[]), "instance.tasksMap"),
        (an_instance(tasksMap=None), "instance.tasksMap"),
        (an_instance(instanceId={"idString": 7}), "instance.instanceId.idString"),
        (an_instance(instanceId={"idString": "other.instance-1"}), "instanceId"),
        (an_instance(runSpecVersion="now"), "version"),
        (an_instance(runSpecVersion=None), "instance.runSpecVersion"),
        (an_instance(agentInfo={"host": None}), "instance.agentInfo.host"),
    ],
)
def test_an_instance_that_cannot_be_read_names_the_field(data: bytes, field: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_instance(PATH, data)
    assert caught.value.field == field


def test_an_instance_whose_name_has_no_app() -> None:
    path = "/marathon/state/instance/0/web"
    with pytest.raises(ModelError, match="instanceId"):
        read_instance(path, an_instance(instanceId={"idString": "web"}))
