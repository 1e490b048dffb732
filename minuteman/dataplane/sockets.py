"""This host's addresses and routes. The only user of pyroute2."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

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
