"""How Marathon names its znodes: ids of apps and instances, versions, buckets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from minuteman.errors import ModelError
from minuteman.model import UnitId

_INSTANCE_ID = re.compile(r"(?P<app>.+)\.(?:instance-|marathon-)[^.]+", re.DOTALL)
_VERSION = re.compile(
    r"(?P<second>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(?::[0-9]{2})?)"
    r"(?:\.(?P<fraction>[0-9]{1,9}))?"
    r"(?P<offset>Z|[+-][0-9]{2}:[0-9]{2}(?::[0-9]{2})?)"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


# ---- ids -----------------------------------------------------------------------------------------
def encode_id(app_id: str) -> str:
    """Znode name of an app: `/prod/web` -> `prod_web`."""
    return app_id.removeprefix("/").replace("/", "_")


def decode_id(encoded: str) -> str:
    """App id of a znode name: `prod_web` -> `/prod/web`. No id has a `_` of its own."""
    return "/" + encoded.replace("_", "/")


def app_of_instance(instance_id: str) -> str:
    """Encoded app id in `prod_web.instance-<uuid>` or `prod_web.marathon-<uuid>`.

    Errors: ModelError.
    """
    match = _INSTANCE_ID.fullmatch(instance_id)
    if match is None or match["app"] in (".", ".."):  # these are no names of znodes
        raise ModelError("instanceId", instance_id, "it is not <app>.instance-<uuid>")
    return match["app"]


def app_unit_id(encoded_app_id: str) -> UnitId:
    """`app/prod_web`."""
    return UnitId(f"app/{encoded_app_id}")


def instance_unit_id(instance_id: str) -> UnitId:
    """`instance/prod_web.instance-<uuid>`."""
    return UnitId(f"instance/{instance_id}")


def bucket(encoded: str) -> str:
    """The folder, 0 to f, that Marathon keeps the znode of this name in.

    Source: abs(hashCode) % 16 of a Java String, a sum over UTF-16 units that wraps at 32 bits.
    """
    units = encoded.encode("utf-16-be", "surrogatepass")
    total = 0
    for high, low in zip(units[::2], units[1::2], strict=True):
        total = (31 * total + (high << 8 | low)) % 2**32
    return f"{min(total, 2**32 - total) % 16:x}"


# ---- versions ------------------------------------------------------------------------------------
@lru_cache(maxsize=65_536)
def version_ms(text: str) -> int:
    """The instant of a version in milliseconds since 1970; what is finer is cut off.

    `12Z`, `12.12Z`, `12.120Z` and `12.120456Z` are all written, depending on the place and on the
    Marathon, so versions are never compared as text.  Errors: ModelError.
    """
    if not (match := _VERSION.fullmatch(text)):
        raise ModelError("version", text, "it is not an ISO 8601 date, time and offset")
    try:
        second = datetime.fromisoformat(match["second"] + match["offset"]).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ModelError("version", text, f"there is no such time: {error}") from error
    fraction = (match["fraction"] or "")[:3].ljust(3, "0")
    return (second - _EPOCH) // _MILLISECOND + int(fraction)


def version_text(version: int) -> str:
    """The version as Marathon's API shows it: `2021-07-01T10:11:12.120Z`."""
    instant = _EPOCH + version * _MILLISECOND
    return instant.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def choose_version(names: Iterable[str], wanted: int) -> str | None:
    """Which version znode of an app has what an instance of version `wanted` runs.

    The one of that millisecond; if that was cleaned up the newest, as Marathon itself does. None if
    there is no version at all: the app's own znode has to do. Other names are ignored.
    """
    dated: list[tuple[int, str]] = []
    for name in names:
        with suppress(ModelError):
            dated.append((version_ms(name), name))
    exact = [entry for entry in dated if entry[0] == wanted]
    return max(exact or dated, default=(0, None))[1]
