"""What netlink knows about this host. The only user of pyroute2."""

from __future__ import annotations

from ipaddress import ip_address

from minuteman.errors import DataplaneError
from minuteman.model import Address


def local_addresses() -> frozenset[Address]:
    """Every address of this host's interfaces, in this network namespace.

    Source: RTM_GETADDR.   Errors: DataplaneError.
    """
    # It takes longer to import than the agent to start, so a start does not wait for it.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            found = [message.get_attr("IFA_ADDRESS") for message in netlink.get_addr()]
    except (NetlinkError, OSError) as exc:
        raise DataplaneError("list local addresses", getattr(exc, "code", 0) or 0) from exc
    return frozenset(ip_address(text) for text in found if text)
