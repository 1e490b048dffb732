"""Bytes that others wrote, read with care: whatever they hold, the only error is ModelError."""

from __future__ import annotations

import zlib
from typing import TypeVar

import msgspec
from google.protobuf.message import DecodeError, Message

from minuteman.errors import ModelError

M = TypeVar("M", bound=Message)
T = TypeVar("T")

GZIP_MAGIC = b"\x1f\x8b"
MAX_UNZIPPED = 16 * 2**20
"""Octets. A znode holds 1 MiB, and gzip makes a thousand times that out of it if one lets it."""
_EXCERPT = 40
"""Octets of the input that an error shows."""


def plain(data: bytes) -> bytes:
    """`data`, unzipped if it is gzip. Errors: ModelError."""
    if not data.startswith(GZIP_MAGIC):
        return data
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unzipped = unzip.decompress(data, MAX_UNZIPPED)
    except zlib.error as error:
        raise ModelError("gzip", data[:_EXCERPT], f"it cannot be unzipped: {error}") from error
    if not unzip.eof:
        raise ModelError("gzip", data[:_EXCERPT], "it is cut off, or too large")
    return unzipped


def message(kind: type[M], data: bytes) -> M:
    """The protobuf message of this kind in `data`. Errors: ModelError."""
    try:
        return kind.FromString(plain(data))
    except DecodeError as error:
        name = kind.DESCRIPTOR.name
        raise ModelError(name, data[:_EXCERPT], "it is not such a message") from error


def text(field: str, raw: bytes) -> str:
    """The text in a field of a message. Errors: ModelError."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ModelError(field, raw[:_EXCERPT], "it is not text in UTF-8") from error


def json(decoder: msgspec.json.Decoder[T], field: str, data: bytes) -> T:
    """The value of the decoder's type in `data`, which stands at `field`.

    Errors: ModelError, whose field goes down to the place where the shape is wrong.
    """
    try:
        return decoder.decode(plain(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason, _, place = str(error).partition(" - at `$")
        raise ModelError(f"{field}{place.rstrip('`')}", data[:_EXCERPT], reason) from error
