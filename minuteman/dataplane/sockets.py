"""What netlink knows about this host. The only user of pyroute2."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, TypedDict

from minuteman.errors import DataplaneError
from minuteman.model import Address
from minuteman.names.home import Network

if TYPE_CHECKING:
    from pyroute2 import IPRoute

log = logging.getLogger(__name__)

UNREACHABLE = 7
"""The type of a route that leads nowhere, and says so; linux/rtnetlink.h."""
MAIN_TABLE = 254
ROUTE_PROTOCOL = 109
"""Who made a route: nobody else's number in /etc/iproute2/rt_protos. `ip route show proto 109`."""
LAST_METRIC = 2**32 - 1
"""A route for the same network with any other metric goes before."""
IF_INET6 = Path("/proc/net/if_inet6")
"""Is there where the kernel has IPv6."""

NLM_F_MULTI = 2
"""More follows; linux/netlink.h."""
SOCK_DIAG_BY_FAMILY = 20
"""The type of a message with a socket in it; linux/sock_diag.h."""
HEADER = Struct("=IH10x")
"""struct nlmsghdr: length and type, then what is of no use here."""
COOKIE = Struct("=44xQ")
"""What struct inet_diag_msg begins with, up to the cookie, there in two halves."""
ERROR = Struct("=i")
"""What other messages begin with: minus an errno, or 0 at the end of a dump."""


def local_addresses() -> frozenset[Address]:
    """Every address of this host's interfaces, in this network namespace.

    Source: RTM_GETADDR.   Errors: DataplaneError.
    """
    with _routing("list local addresses") as netlink:
        # Where a link has two ends, IFA_ADDRESS is the other one.
        found = [m.get_attr("IFA_LOCAL") or m.get_attr("IFA_ADDRESS") for m in netlink.get_addr()]
    return frozenset(ip_address(text) for text in found if text)


def unreachable_networks() -> frozenset[Network]:
    """Where a route of ours says that there is no way.

    Source: RTM_GETROUTE; the kernel picks ours out.   Errors: DataplaneError.
    """
    with _routing("list routes") as netlink:
        return _read_unreachable(netlink)


def set_unreachable(networks: Collection[Network]) -> None:
    """Have routes say that there is no way to exactly these networks: EHOSTUNREACH, at once.

    Ours are told apart by their protocol. Those of others are not touched, and theirs for the same
    network counts, whatever its metric. IPv6 is left out where the kernel has none.

    Errors: DataplaneError; what was done until then stays.
    """
    wanted = {network for network in networks if network.version in _families()}
    if left_out := sorted(map(str, set(networks) - wanted)):
        log.debug("no route without IPv6 networks=%s", ",".join(left_out))
    with _routing("set routes") as netlink:
        found = _read_unreachable(netlink)
        for network in found - wanted:
            _change_route(netlink, "del", network, but=errno.ESRCH)
        for network in wanted - found:
            _change_route(netlink, "add", network, but=errno.EEXIST)


def _families() -> Mapping[int, int]:
    """Address family by IP version, of those that the kernel has."""
    inet = {4: int(socket.AF_INET)}
    return inet | {6: int(socket.AF_INET6)} if IF_INET6.exists() else inet


def _read_unreachable(netlink: IPRoute) -> frozenset[Network]:
    return frozenset(
        ip_network(f"{message.get_attr('RTA_DST')}/{message['dst_len']}")
        for family in _families().values()
        for message in netlink.route(
            "dump",
            family=family,
            type=UNREACHABLE,
            proto=ROUTE_PROTOCOL,
            table=MAIN_TABLE,
            dump_filter=None,  # so that the kernel is told all this: a router has a million routes
        )
    )


def _change_route(netlink: IPRoute, command: str, network: Network, *, but: int) -> None:
    """Add or delete the route of ours for `network`; it may fail with the errno `but`."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        netlink.route(
            command,
            family=_families()[network.version],
            dst=str(network),
            priority=LAST_METRIC,
            type=UNREACHABLE,
            proto=ROUTE_PROTOCOL,
            table=MAIN_TABLE,
        )
    except NetlinkError as exc:
        if exc.code != but:
            raise
    else:
        log.info("unreachable route changed command=%s network=%s", command, network)


@contextmanager
def _routing(operation: str) -> Iterator[IPRoute]:
    """A socket for rtnetlink that has the kernel filter what it dumps. Errors: DataplaneError."""
    # It takes longer to import than the agent to start, so a start does not wait for it.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute(strict_check=True) as netlink:
            yield netlink
    except NetlinkError as exc:
        raise DataplaneError(operation, exc.code) from exc
    except OSError as exc:
        raise DataplaneError(operation, exc.errno or 0) from exc


def connected_sockets() -> set[int]:
    """Cookies of this namespace's TCP and UDP sockets that are connected or about to be.

    One in TIME_WAIT is not: nobody has it any more. A dump of many sockets is made in pieces, and a
    live one may slip through between two of them.

    Source: SOCK_DIAG.   Errors: DataplaneError.
    """
    from pyroute2.netlink.diag import SS_CONN, SS_ESTABLISHED, SS_SYN_RECV, DiagSocket

    states = {
        socket.IPPROTO_TCP: SS_CONN | 1 << SS_SYN_RECV,
        socket.IPPROTO_UDP: 1 << SS_ESTABLISHED,
    }
    try:
        with DiagSocket() as netlink:
            netlink.set_marshal(CookieReader())
            return {
                cookie
                for family in (socket.AF_INET, socket.AF_INET6)
                for protocol, mask in states.items()
                for packet in netlink.get_sock_stats(family, mask, protocol)
                for cookie in packet["cookies"]
            }
    except OSError as exc:
        raise DataplaneError("list sockets", exc.errno or 0) from exc


class Packet(TypedDict):
    """What pyroute2 asks of a message, and the cookies in a packet."""

    header: dict[str, object]
    cookies: list[int]


class CookieReader:
    """Reads packets in place of pyroute2's own parser.

    That one hides errors, and takes 80 microseconds and 4 kB for each socket; this one takes two.
    """

    def __init__(self) -> None:
        self.seq_map: dict[int, object] = {}
        """No request has a parser of its own."""

    def parse(self, data: bytes, *_: object) -> Iterator[Packet]:
        """The sockets in a packet, if any, and the end of the dump, if it is in there."""
        cookies: list[int] = []
        at = 0
        while at < len(data):
            length, kind = HEADER.unpack_from(data, at)
            if kind != SOCK_DIAG_BY_FAMILY:
                break
            cookies += COOKIE.unpack_from(data, at + HEADER.size)
            at += -(-length // 4) * 4
        yield {"header": {"flags": NLM_F_MULTI}, "cookies": cookies}
        if at < len(data):
            yield {"header": {"flags": 0, "error": _error(data, at + HEADER.size)}, "cookies": []}

    def is_enough(self, packet: Packet) -> bool:
        """Whether `packet` is the end of a dump."""
        return packet["header"]["flags"] == 0


def _error(data: bytes, at: int) -> OSError | None:
    """What ended a dump before its end."""
    number = abs(ERROR.unpack_from(data, at)[0])
    return OSError(number, os.strerror(number)) if number else None
