"""`zk://` URLs, as Mesos and Marathon have them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.errors import ConfigError
from minuteman.zookeeper.session import Location, parse_url


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("zk://10.0.0.1:2181", Location("10.0.0.1:2181")),
        ("zk://10.0.0.1:2181/", Location("10.0.0.1:2181")),
        ("zk://zk-1.zk", Location("zk-1.zk:2181")),
        ("zk://a:1,b:2,c:3/dcos", Location("a:1,b:2,c:3", "/dcos")),
        ("zk://a:1/dcos/prod/", Location("a:1", "/dcos/prod")),
        ("zk://[fd00::1]:2181,[::1]/x", Location("[fd00::1]:2181,[::1]:2181", "/x")),
        ("zk://me:secret@a:1,b:2/x", Location("a:1,b:2", "/x", "me:secret")),
        ("zk://me:se@c:r/et@a:1", Location("a:1", "", "me:se@c:r/et")),
    ],
)
def test_what_is_well_formed(url: str, location: Location) -> None:
    assert parse_url(url) == location


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.1:2181",
        "http://10.0.0.1:2181",
        "zk:/10.0.0.1:2181",
        "zk://",
        "zk:///marathon",
        "zk://a:0",
        "zk://a:65536",
        "zk://a:b",
        "zk://a:1:2",
        "zk://a:1,",
        "zk://a:1,,b:1",
        "zk://a b:1",
        "zk://::1:2181",
        "zk://a:1//x",
        "zk://a:1/x/../y",
        "zk://a:1/x/./y",
        "zk://@a:1",
        "zk://me@a:1",
        "zk://me:@a:1",
        "zk://:secret@a:1",
    ],
)
def test_what_makes_no_sense(url: str) -> None:
    with pytest.raises(ConfigError, match="zookeeper") as caught:
        parse_url(url)
    assert caught.value.exit_code == os.EX_CONFIG


@given(st.text(), st.text(st.characters(exclude_characters="@")))
def test_credentials_are_never_shown(secret: str, rest: str) -> None:
    credentials = f"me:pass{secret}word"
    try:
        location = parse_url(f"zk://{credentials}@{rest}")
    except ConfigError as error:
        shown = str(error)
    else:
        shown = f"{location} {location!r}"
        assert location.credentials == credentials
    assert credentials not in shown


@given(st.text())
def test_any_text_is_a_location_or_a_config_error(text: str) -> None:
    for url in (text, f"zk://{text}"):
        try:
            location = parse_url(url)
        except ConfigError:
            continue
        assert parse_url(str(location)) == Location(location.hosts, location.chroot)
