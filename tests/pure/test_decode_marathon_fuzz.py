"""Whatever is in a znode, decoding returns or raises ModelError; it never raises anything else."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.decode.marathon import (
    App,
    Framework,
    app_unit,
    check_storage_version,
    instance_unit,
    read_app,
    read_framework_id,
    read_instance,
)
from minuteman.errors import ModelError

DATA = Path(__file__).parents[1] / "data" / "marathon"
MARATHON = Framework("f-1", "marathon")
INSTANCES = [path.read_bytes() for path in sorted(DATA.glob("*/host.json"))]
APP = (
    b"\x0a\x0a/shop/host\x12\x07\x1a\x05sleep\x18\x02\x5a\x182021-07-01T10:11:12.120Z"
    b"\xda\x01\x25\x08\x90\x4e\x12\x03dns\x1a\x07udp,tcp"
    b"\x2a\x12\x0a\x10\x0a\x05VIP_0\x12\x07/dns:53"
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def decode_app(data: bytes) -> App | None:
    with suppress(ModelError):
        if app := read_app("/marathon/state/apps/0/shop_host", data, MARATHON):
            app_unit(app, 1)
            return app
    return None


def decode_instance(data: bytes, app: App | None) -> None:
    found = re.search(rb'"idString":\s*"([^"\\]+)"', data)
    path = f"/marathon/state/instance/0/{found[1].decode(errors='replace') if found else ''}"
    with suppress(ModelError):
        instance_unit(path, read_instance(path, data), app, MARATHON, 1, {})


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    decode_app(data)
    decode_instance(data, None)
    for read in (check_storage_version, read_framework_id):
        with suppress(ModelError):
            read(data)


@given(st.data())
def test_damaged_apps(data: st.DataObject) -> None:
    app = damaged(APP, data)
    decode_instance(INSTANCES[0], decode_app(app))


@given(st.sampled_from(INSTANCES), st.data())
def test_damaged_instances(instance: bytes, data: st.DataObject) -> None:
    decode_instance(damaged(instance, data), decode_app(APP))


@pytest.mark.parametrize("place", ["", "instanceId", "agentInfo", "tasksMap", "runSpecVersion"])
@given(value=json_values)
def test_any_json(place: str, value: object) -> None:
    document = {**json.loads(INSTANCES[-1]), place: value} if place else value
    decode_instance(json.dumps(document).encode(), decode_app(APP))


@pytest.mark.parametrize("place", ["", "condition", "mesosStatus", "networkInfo"])
@given(value=json_values)
def test_any_json_as_a_status(place: str, value: object) -> None:
    document = json.loads(INSTANCES[-1])
    for task in document["tasksMap"].values():
        task["status"] = {**task["status"], place: value} if place else value
    decode_instance(json.dumps(document).encode(), decode_app(APP))


def test_the_undamaged_bytes_can_be_read() -> None:
    """Or the damaged ones would prove little."""
    app = decode_app(APP)
    assert app is not None
    assert len(app.ports[0].listeners) == 2
    assert len(INSTANCES) == 8
    for instance in INSTANCES:
        decode_instance(instance, app)


def damaged(octets: bytes, data: st.DataObject) -> bytes:
    """A few octets replaced, and perhaps the end cut off."""
    changed = bytearray(octets)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(0, len(changed)) | st.just(len(changed)))])
