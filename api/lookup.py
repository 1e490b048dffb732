"""One VIP, found by what a person or a program types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from minuteman.errors import ModelError
from minuteman.model import VIP_DOMAIN, Address, Frontend, Transport, Vip, VipKey, VipName
from minuteman.reader import Published

HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
MAX_NAME_OCTETS = 253


def find_vip(published: Published, transport: Transport, text: str) -> Vip | None:
    """The VIP that `text`, a `host:port`, means; None when there is none.

    The host is a literal address (IPv6 in brackets; the address of a named VIP finds that one), a
    fully qualified name, or its first part, `web.marathon`. Errors: ModelError.
    """
    host, port = parse_host_port(text)
    if isinstance(host, str):
        candidates = (VipKey(name, port, transport) for name in _names(host))
        return next((published.vips[key] for key in candidates if key in published.vips), None)
    exact = published.vips.get(VipKey(host, port, transport))
    return exact or _behind_address(published, host, port, transport)


def parse_host_port(text: str) -> tuple[Address | str, int]:
    """Host and port of `text`; a name comes back in lower case, without the final dot.

    Errors: ModelError.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ModelError("vip", text, "is host:port; the port is missing")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ModelError("vip", text, "the port is a number from 1 to 65535")
    return _parse_host(host, text), int(port)


def _parse_host(host: str, text: str) -> Address | str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return IPv6Address(host[1:-1])
        except ValueError as exc:
            raise ModelError("vip", text, "what is in brackets is not an IPv6 address") from exc
    if ":" in host:
        raise ModelError("vip", text, "an IPv6 address is written in brackets")
    try:
        return IPv4Address(host)
    except ValueError:
        return _parse_name(host, text)


def _parse_name(host: str, text: str) -> str:
    name = host.lower().removesuffix(".")
    if len(name) > MAX_NAME_OCTETS or not HOST_NAME.fullmatch(name):
        raise ModelError("vip", text, "the host is neither an address nor a DNS name")
    return name


def _names(host: str) -> Iterator[VipName]:
    """Each way to read `host` as label and framework: both may have dots in them."""
    short = host.removesuffix(f".{VIP_DOMAIN}")
    for dot in re.finditer(r"\.", short):
        yield VipName(label=short[: dot.start()], framework=short[dot.end() :])


def _behind_address(
    published: Published, address: Address, port: int, transport: Transport
) -> Vip | None:
    wanted = Frontend(address, port, transport)
    return next((vip for vip in published.vips.values() if wanted in vip.frontends), None)
