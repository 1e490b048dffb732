"""The writer of Marathon's znodes, against what real ones are called and what is in them."""

from __future__ import annotations

import pytest

from lab.marathon import (
    App,
    PortDefinition,
    bucket,
    encode_id,
    field,
    service_definition,
    version_znode,
)


@pytest.mark.parametrize(
    ("name", "folder"), [("web", "4"), ("root", "2"), ("id", "b"), ("foo_bar-baz", "8")]
)
def test_buckets(name: str, folder: str) -> None:
    assert bucket(name) == folder


@pytest.mark.parametrize(
    ("version", "znode"),
    [
        ("2021-07-01T10:11:12.120Z", "2021-07-01T10:11:12.12Z"),
        ("2021-07-01T10:11:12.000Z", "2021-07-01T10:11:12Z"),
        ("2021-07-01T10:11:10.000Z", "2021-07-01T10:11:10Z"),
        ("2021-07-01T10:11:12.123Z", "2021-07-01T10:11:12.123Z"),
    ],
)
def test_names_of_versions(version: str, znode: str) -> None:
    assert version_znode(version) == znode


def test_ids() -> None:
    assert encode_id("/prod/api/v1") == "prod_api_v1"


def test_numbers_and_texts_on_the_wire() -> None:
    assert field(1, 0) == b"\x08\x00"
    assert field(3, 300) == b"\x18\xac\x02"
    assert field(20, "a") == b"\xa2\x01\x01a"


def test_the_bytes_of_a_small_app() -> None:
    app = App(
        "/web",
        cmd="x",
        instances=2,
        port_definitions=[PortDefinition(name="http", labels={"VIP_0": "/web:80"})],
    )
    data = service_definition(app, "1970-01-01T00:00:01.500Z")
    label = b"\x0a\x05VIP_0\x12\x07/web:80"
    port = b"\x08\x90\x4e\x12\x04http\x1a\x03tcp\x2a\x12\x0a\x10" + label
    assert data.startswith(b"\x0a\x04/web\x12\x05\x1a\x01x\x30\x01\x18\x02")
    assert b"\x5a\x181970-01-01T00:00:01.500Z" in data
    assert b"\xb8\x01\xdc\x0b\xc0\x01\xdc\x0b" in data  # last scaled and changed after 1500 ms
    assert b"\xda\x01" + bytes([len(port)]) + port in data
    assert data.endswith(b"\x92\x02\x02\x08\x01")  # networks: host
