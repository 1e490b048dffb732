from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.decode.marathon import (
    app_of_instance,
    bucket,
    choose_version,
    decode_id,
    encode_id,
    version_ms,
    version_text,
)
from minuteman.errors import ModelError

UUID = "8b384aa8-2bd4-11eb-9e4f-0242ac110002"
DAY = 24 * 3600 * 1000


def test_ids() -> None:
    assert encode_id("/prod/api/v1") == "prod_api_v1"
    assert decode_id("prod_api_v1") == "/prod/api/v1"


@given(st.from_regex(r"\A(/[a-z0-9]([a-z0-9.-]*[a-z0-9])?){1,5}\Z"))
def test_ids_round_trip(app_id: str) -> None:
    assert decode_id(encode_id(app_id)) == app_id


@pytest.mark.parametrize(
    ("instance_id", "app"),
    [
        (f"prod_api.instance-{UUID}", "prod_api"),
        (f"prod_api.marathon-{UUID}", "prod_api"),
        (f"a.b-c_v1.0.instance-{UUID}", "a.b-c_v1.0"),
    ],
)
def test_app_of_instance(instance_id: str, app: str) -> None:
    assert app_of_instance(instance_id) == app


@pytest.mark.parametrize(
    "instance_id",
    [
        *("", "web", f"web.{UUID}", f"instance-{UUID}", f"web.instance-{UUID}._app.1"),
        *(f"..instance-{UUID}", f"...instance-{UUID}"),
    ],
)
def test_what_is_no_instance(instance_id: str) -> None:
    with pytest.raises(ModelError, match="instanceId"):
        app_of_instance(instance_id)


# From Java's own String.hashCode; the last two are the least int, whose absolute value Java cannot
# tell, and a pair of surrogates.
@pytest.mark.parametrize(
    ("encoded", "folder"),
    [
        ("foo_bar-baz", "8"),
        ("web", "4"),
        ("root", "2"),
        ("id", "b"),
        ("", "0"),
        ("polygenelubricants", "0"),
        ("\N{GRINNING FACE}", "3"),
    ],
)
def test_bucket(encoded: str, folder: str) -> None:
    assert bucket(encoded) == folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00Z", 0),
        ("1970-01-02T00:00:00.000Z", DAY),
        ("1970-01-01T00:00:12Z", 12_000),
        ("1970-01-01T00:00:12.1Z", 12_100),
        ("1970-01-01T00:00:12.12Z", 12_120),
        ("1970-01-01T00:00:12.120Z", 12_120),
        ("1970-01-01T00:00:12.123456Z", 12_123),
        ("1970-01-01T00:00:12.123999999Z", 12_123),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1969-12-31T23:59:30-00:00:30", 0),
        ("2021-07-01T10:11:12.12Z", 1_625_134_272_120),
    ],
)
def test_version_forms(text: str, expected: int) -> None:
    assert version_ms(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2021-07-01",
        "2021-07-01T10:11:12",
        "2021-07-01 10:11:12Z",
        "2021-07-01T10:11:12.Z",
        "2021-07-01T10:11:12,5Z",
        "2021-02-30T10:11:12Z",
        "2021-07-01T24:11:12Z",
        "0000-07-01T10:11:12Z",
        "0001-01-01T00:00:00+01:00",
        "2021-07-01T10:11:12+25:00",
        "٢٠٢١-07-01T10:11:12Z",
        "2021-07-01T10:11:12Z\n",
    ],
)
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ModelError, match="version"):
        version_ms(text)


@given(st.integers(version_ms("0001-01-01T00:00Z"), version_ms("9999-12-31T23:59:59.999Z")))
def test_text_of_a_version(version: int) -> None:
    assert version_ms(version_text(version)) == version


@given(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC)),
    st.integers(-18 * 60, 18 * 60),
)
def test_a_version_is_the_same_in_every_zone(instant: datetime, minutes: int) -> None:
    elsewhere = instant.astimezone(timezone(timedelta(minutes=minutes)))
    assert version_ms(elsewhere.isoformat()) == version_ms(instant.isoformat())


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        # Java drops zeros at the end, some builds wrote more digits, and text would sort wrongly.
        (["2021-07-01T10:11:12.12Z", "2021-07-01T10:11:13Z"], "2021-07-01T10:11:12.12Z"),
        (["2021-07-01T10:11:12.120456Z", "2021-07-01T10:11:12Z"], "2021-07-01T10:11:12.120456Z"),
        (["2021-07-01T12:11:12.12+02:00", "2022-01-01T00:00:00Z"], "2021-07-01T12:11:12.12+02:00"),
        (["2021-07-01T10:11:12Z", "2021-07-01T10:11:12.5Z"], "2021-07-01T10:11:12.5Z"),
        (["2020-07-01T10:11:12Z", "2021-01-01T00:00:00Z", "lost+found"], "2021-01-01T00:00:00Z"),
        (["lost+found"], None),
        ([], None),
    ],
)
def test_choose_version(names: list[str], chosen: str | None) -> None:
    wanted = version_ms("2021-07-01T10:11:12.120Z")
    assert choose_version(names, wanted) == chosen
    assert choose_version(reversed(names), wanted) == chosen
