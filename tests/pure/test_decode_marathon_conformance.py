"""Every layout from Marathon 1.4 to 1.11, on literal bytes: the table of docs/conformance.md.

`tests/data/marathon` has them: `apps/<layout>/<case>.hex` the app definitions,
`statuses/<layout>/<case>.hex` the TaskStatus that an instance has in base64, and
`<version>/<case>.json` the instances. A .hex file is hexadecimal octets, "quoted" ASCII text, and
comments after a `#`.
"""

import re
import subprocess
import sys
from base64 import b64decode
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from minuteman.decode.marathon import (
    App,
    Framework,
    Instance,
    app_unit,
    choose_version,
    instance_unit,
    read_app,
    read_instance,
)
from minuteman.errors import ModelError
from minuteman.model import Task, TaskPort, Unit, VipClaim, VipKey, VipName

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "marathon"
TOKEN = re.compile(r'"(?P<text>[^"]*)"|(?P<octet>[0-9a-f]{2})|(?P<end>#.*)')

MARATHON = Framework("c620b0f5-0000", "marathon")
WEB = VipClaim(VipKey(VipName("web", "marathon"), 80, "tcp"))
LITERAL = VipClaim(VipKey(IPv4Address("1.2.3.4"), 5000, "tcp"))
DNS_UDP = VipClaim(VipKey(VipName("dns", "marathon"), 53, "udp"))
DNS_TCP = VipClaim(VipKey(VipName("dns", "marathon"), 53, "tcp"))
AGENT = IPv4Address("10.0.0.1")


@dataclass(frozen=True)
class Layout:
    """What a release line writes, and the folder of its app definitions."""

    apps: str
    statuses: str
    old_condition: bool


VERSIONS = {
    "1.4": Layout("before-1.5", "before-1.8", old_condition=True),
    "1.5": Layout("since-1.5", "before-1.8", old_condition=True),
    "1.6": Layout("since-1.5", "before-1.8", old_condition=False),
    "1.7": Layout("since-1.5", "before-1.8", old_condition=False),
    "1.8": Layout("since-1.5", "since-1.8", old_condition=False),
    "1.9": Layout("since-1.9", "since-1.8", old_condition=False),
    "1.10": Layout("since-1.9", "since-1.8", old_condition=False),
    "1.11": Layout("since-1.9", "since-1.8", old_condition=False),
}


@dataclass(frozen=True)
class Expected:
    """What a case means, in each version the same."""

    ip: str
    healthy: bool | None
    ports: tuple[TaskPort, ...]
    declares: tuple[VipClaim, ...]


CASES = {
    # A Mesos check with a result.
    "host": Expected(
        "10.0.0.1",
        True,
        (TaskPort("tcp", 31000, "host", "http", None, (WEB, LITERAL)),),
        (WEB, LITERAL),
    ),
    # No check.
    "bridge": Expected(
        "172.18.0.2", None, (TaskPort("tcp", 31001, "host", "http", 8080, (WEB,)),), (WEB,)
    ),
    # A check that Marathon runs, which Mesos knows nothing about.
    "mapped": Expected(
        "9.0.1.5", None, (TaskPort("tcp", 31002, "host", "http", 8080, (WEB,)),), (WEB,)
    ),
    # A Mesos check without a result.
    "overlay": Expected(
        "9.0.1.6", False, (TaskPort("tcp", 8080, "container", "http", None, (WEB,)),), (WEB,)
    ),
    "udp-tcp": Expected(
        "10.0.0.1",
        None,
        (
            TaskPort("udp", 31053, "host", "dns", None, (DNS_UDP,)),
            TaskPort("tcp", 31053, "host", "dns", None, (DNS_TCP,)),
        ),
        (DNS_UDP, DNS_TCP),
    ),
}


def hex_file(path: Path) -> bytes:
    octets = bytearray()
    for line in path.read_text().splitlines():
        for token in TOKEN.finditer(line):
            if token["end"]:
                break
            octets += bytes.fromhex(token["octet"]) if token["octet"] else token["text"].encode()
    return bytes(octets)


def app_of(version: str, case: str) -> App:
    path = f"/marathon/state/apps/0/shop_{case}/2021-07-01T10:11:12.12Z"
    app = read_app(path, hex_file(DATA / "apps" / VERSIONS[version].apps / f"{case}.hex"), MARATHON)
    assert app is not None
    return app


def instance_bytes(version: str, case: str) -> bytes:
    return (DATA / version / f"{case}.json").read_bytes()


def instance_path(data: bytes) -> str:
    found = re.search(rb'"idString":"([^"]+)"', data)
    assert found
    return f"/marathon/state/instance/0/{found[1].decode()}"


def unit_of(version: str, case: str, data: bytes) -> Unit:
    path = instance_path(data)
    instance = read_instance(path, data)
    return instance_unit(path, instance, app_of(version, case), MARATHON, 7, {})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_task(version: str, case: str) -> None:
    data = instance_bytes(version, case)
    expected = CASES[case]
    (task_id,) = re.findall(rb'"taskId":"([^"]+)"', data)
    unit = unit_of(version, case, data)
    assert unit == Unit(
        id=unit.id,
        revision=7,
        tasks=(
            Task(
                framework_id="c620b0f5-0000",
                id=task_id.decode(),
                framework="marathon",
                name=f"{case}.shop",
                agent_id="S1",
                agent_ip=AGENT,
                ips=(IPv4Address(expected.ip),),
                state="running",
                healthy=expected.healthy,
                ports=expected.ports,
            ),
        ),
    )
    assert unit.id == "instance/" + instance_path(data).rpartition("/")[2]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_declared(version: str, case: str) -> None:
    app = app_of(version, case)
    assert app_unit(app, 3) == Unit(
        id=app_unit(app, 3).id, revision=3, declares=CASES[case].declares
    )
    assert app_unit(app, 3).id == f"app/shop_{case}"
    assert app.instances == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_version_of_an_instance(version: str) -> None:
    data = instance_bytes(version, "host")
    instance: Instance = read_instance(instance_path(data), data)
    assert instance.app_id == "shop_host"
    assert instance.version == app_of(version, "host").version
    # The znode's name has no zero at the end; a newer version is there too.
    names = ["2021-07-01T10:11:12.12Z", "2021-07-01T10:11:13Z"]
    assert choose_version(names, instance.version) == "2021-07-01T10:11:12.12Z"


FORMS = {
    "object": (b'"condition":"Running"', b'"condition":{"str":"running"}'),
    "text": (b'"condition":{"str":"running"}', b'"condition":"Running"'),
}
"""The form that it may not have, the one it is to have; migrations leave instances as they were."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", VERSIONS)
def test_condition(version: str, form: str) -> None:
    data = instance_bytes(version, "host").replace(*FORMS[form])
    assert data.count(FORMS[form][1]) == 2
    assert [task.state for task in unit_of(version, "host", data).tasks] == ["running"]


@pytest.mark.parametrize("version", VERSIONS)
def test_condition_is_in_the_form_of_its_version(version: str) -> None:
    form = "object" if VERSIONS[version].old_condition else "text"
    assert FORMS[form][1] in instance_bytes(version, "host")


@pytest.mark.parametrize("version", VERSIONS)
def test_killing(version: str) -> None:
    data = instance_bytes(version, "host")
    if VERSIONS[version].old_condition:
        data = data.replace(b'"condition":{"str":"running"}', b'"condition":{"str":"killing"}')
    else:
        data = data.replace(b'"condition":"Running"', b'"condition":"Killing"')
        # The goal changes first; the task is there until its condition says otherwise.
        data = data.replace(b'"goal":"Running"', b'"goal":"Decommissioned"')
    (task,) = unit_of(version, "host", data).tasks
    assert task.state == "killing"
    assert task.ports == CASES["host"].ports


@pytest.mark.parametrize("version", VERSIONS)
def test_empty(version: str) -> None:
    """Marathon deletes an app by writing no bytes; an instance never has none."""
    path = "/marathon/state/apps/0/shop_host"
    data = hex_file(DATA / "apps" / VERSIONS[version].apps / "host.hex")
    assert read_app(path, data, MARATHON) is not None
    assert read_app(path, b"", MARATHON) is None
    with pytest.raises(ModelError, match="instance"):
        read_instance(instance_path(instance_bytes(version, "host")), b"")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_status_in_base64_is_the_one_typed(version: str, case: str) -> None:
    (encoded,) = re.findall(rb'"mesosStatus":"([^"]+)"', instance_bytes(version, case))
    typed = hex_file(DATA / "statuses" / VERSIONS[version].statuses / f"{case}.hex")
    assert b64decode(encoded) == typed


def test_the_table_names_tests_that_exist() -> None:
    document = (ROOT / "docs" / "conformance.md").read_text()
    named = set(re.findall(r"`(test_[^`]+)`", document))
    defined: set[str] = set()
    for file in set(re.findall(r"`(tests/[^`]+\.py)`", document)):
        defined.update(re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    cells = set(re.findall(r"::(\S+\])", collected.stdout))
    assert len(named & cells) == len(VERSIONS) * 9
    assert named <= defined | cells
    assert {test for test in defined if test.startswith("test_case_")} <= named
