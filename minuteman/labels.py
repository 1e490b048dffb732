"""The grammar of VIP labels: what the labels of a port ask for.

    VIP_0 = /web:80                named, in the framework's domain; the slash means nothing
    VIP_1 = 10.9.8.7:80            literal IPv4
    VIP_2 = [fd00::7]:80           literal IPv6; fd00::7:80 too: the last colon is the port's
    MINUTEMAN_0_WEIGHT = 10        of VIP_0: its tasks' share of the connections, 0 to 100; 0 drains
    MINUTEMAN_0_AFFINITY = 300s    of VIP_0: a client keeps its backend so long after a connection

The key of a VIP is anything that starts with `VIP` or `vip`. What follows, less one underscore, is
what its options call it: `MINUTEMAN_0_WEIGHT` is of `VIP_0`, of `VIP0` and of `vip_0`,
`MINUTEMAN_web_WEIGHT` of `vip_web`, `MINUTEMAN_WEIGHT` of a bare `VIP`. Where several labels of a
port ask for one VIP, the first in the order of the keys counts, with its options.

An affinity is a whole number with the unit s, m, h or d, at most `7d`; `0s` is none.

A bad label costs only itself: a VIP whose option is bad has the default. Where the reading of VIPs
differs from dcos-net:

- The port is one to five ASCII digits, 1-65535. No sign: `+80` is refused.
- A name that normalises to nothing, or is longer than 253 octets with its domain, is refused.
- So is what is meant to be an address and is none: `[web]:80`, `1.2.3.400:80`, `fe80::1%eth0:80`.
- So is `tcp://1.2.3.4:80`, the form of old task labels: the transport is the port's.
- `::ffff:1.2.3.4` is the IPv4 VIP 1.2.3.4: to the kernel they are one destination.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from minuteman.errors import ModelError
from minuteman.model import Address, Transport, VipClaim, VipKey, VipName
from minuteman.names.text import NAME_OCTETS, domain_frag

KEY_PREFIXES = ("VIP", "vip")
OPTION_PREFIX = "MINUTEMAN_"
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
MAX_WEIGHT = 100
MAX_AFFINITY_SECONDS = 7 * 86_400
QUOTED_CHARACTERS = 100
"""A reason quotes no more of a label than this."""


class LabelProblem(NamedTuple):
    """A label that was skipped."""

    label: str
    """Its key, `VIP_0`."""
    reason: str
    """A sentence."""


class PortLabels(NamedTuple):
    """What the labels of one port ask for."""

    claims: tuple[VipClaim, ...]
    """One for each VIP, in the order of the keys."""
    problems: tuple[LabelProblem, ...]


def read_labels(labels: Mapping[str, str], transport: Transport, framework: str) -> PortLabels:
    """What the `labels` of a port ask for. `framework` is the raw name. Never raises."""
    claims: dict[VipKey, VipClaim] = {}
    problems: list[LabelProblem] = []
    options = _read_options(labels, problems)
    for label, suffix in _vip_labels(labels):
        value = labels[label]
        try:
            key = parse_vip(value, transport, framework)
        except ModelError as error:
            problems.append(LabelProblem(label, f"{_quoted(value)} is no VIP: {error.reason}."))
        else:
            claims.setdefault(key, VipClaim(key, **options[suffix]))
    return PortLabels(tuple(claims.values()), tuple(sorted(problems)))


def _vip_labels(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Keys of VIPs in their order, each with what its options call it."""
    for label in sorted(labels):
        if label.startswith(KEY_PREFIXES):
            yield label, label[len(KEY_PREFIXES[0]) :].removeprefix("_")


# ---- options -------------------------------------------------------------------------------------
def _read_options(
    labels: Mapping[str, str], problems: list[LabelProblem]
) -> dict[str, dict[str, int]]:
    """Fields of claims by what the options call the VIP. What is skipped goes to `problems`."""
    options: dict[str, dict[str, int]] = {suffix: {} for _, suffix in _vip_labels(labels)}
    for label in sorted(labels):
        if not label.startswith(OPTION_PREFIX):
            continue
        suffix, _, option = label.removeprefix(OPTION_PREFIX).rpartition("_")
        try:
            field, number = _option(option, labels[label])
        except ModelError as error:
            problems.append(LabelProblem(label, f"{_quoted(str(error.value))} is {error.reason}."))
            continue
        if suffix in options:
            options[suffix][field] = number
        else:
            vip = _quoted(f"VIP_{suffix}")
            problems.append(LabelProblem(label, f"The port has no label {vip}."))
    return options


def _option(option: str, value: str) -> tuple[str, int]:
    """Field of the claim that an option sets, and to what. Errors: ModelError."""
    match option:
        case "WEIGHT":
            return "weight", _weight(value)
        case "AFFINITY":
            return "affinity_seconds", _affinity_seconds(value)
    raise ModelError("option", option, "no option: there are WEIGHT and AFFINITY")


def _weight(text: str) -> int:
    if re.fullmatch("[0-9]{1,3}", text) and (weight := int(text)) <= MAX_WEIGHT:
        return weight
    raise ModelError("weight", text, f"no weight: that is a whole number from 0 to {MAX_WEIGHT}")


def _affinity_seconds(text: str) -> int:
    if found := re.fullmatch("(?P<number>[0-9]{1,6})(?P<unit>[smhd])", text):
        seconds = int(found["number"]) * UNIT_SECONDS[found["unit"]]
        if seconds <= MAX_AFFINITY_SECONDS:
            return seconds
    reason = "no affinity: that is a whole number of s, m, h or d, as in 300s, and at most 7d"
    raise ModelError("affinity", text, reason)


# ---- VIPs ----------------------------------------------------------------------------------------
def parse_vip(value: str, transport: Transport, framework: str) -> VipKey:
    """The VIP that the value of a label names.

    Errors: ModelError; its `reason` says what is wrong, without the full stop.
    """
    host, colon, port = value.rpartition(":")
    if not colon:
        raise ModelError("label", value, "it has no port, write name:port or address:port")
    if "://" in host:
        raise ModelError("label", value, "it has a scheme, write name:port or address:port")
    number = _port(port)
    address = _address(host)
    return VipKey(_name(host, framework) if address is None else address, number, transport)


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= (port := int(text)) <= 65_535:
        return port
    raise ModelError("port", text, f"its port {_quoted(text)} is not a number from 1 to 65535")


def _address(host: str) -> Address | None:
    """The literal address that `host` is; None when it is a name.

    Errors: ModelError when it is neither.
    """
    if host.startswith("["):
        if host.endswith("]") and (address := _ipv6(host[1:-1])):
            return address
        raise ModelError("host", host, f"{_quoted(host)} is not an IPv6 address in brackets")
    if ":" in host:
        return _ipv6(host)  # none: `web::80` is the name `web:`, as dcos-net reads it
    if host.count(".") == 3 and host.replace(".", "").isdigit():
        return _ipv4(host)
    return None


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise ModelError("host", text, f"{_quoted(text)} is not an IPv4 address") from error


def _ipv6(text: str) -> Address | None:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return None
    if address.scope_id is not None:
        raise ModelError("host", text, "an address with a zone means another host on every host")
    return address.ipv4_mapped or address


def _name(host: str, framework: str) -> VipName:
    name = VipName(domain_frag(host), domain_frag(framework))
    if not name.label:
        raise ModelError("name", host, "no letter or digit is left of its name")
    if not name.framework:
        raise ModelError("framework", framework, "its framework's name has no letter or digit")
    if len(name.fqdn) > NAME_OCTETS:
        raise ModelError("name", host, f"its DNS name is longer than {NAME_OCTETS} octets")
    return name


def _quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED_CHARACTERS else f"{text[:QUOTED_CHARACTERS]}...")
