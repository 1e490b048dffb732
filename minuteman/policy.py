"""Which addresses a label may claim as a literal VIP.

Labels are untrusted: whoever starts an app writes them, and every host of the cluster obeys. A VIP
for the address of a machine would take that machine's connections over, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minuteman.model import Address
from minuteman.names.home import NEVER_VIPS, AddressRange, Network


@dataclass(frozen=True, slots=True)
class LiteralPolicy:
    """What an operator allows. Addresses of agents that tasks run on are the table's to know."""

    allowed: tuple[Network, ...]
    """The only networks that literal VIPs may be in; mostly private ones."""
    forbidden: Mapping[Address, str] = field(default_factory=dict)
    """Address -> whose it is, such as `this host`: never a VIP, allowed or not."""
    named: tuple[AddressRange, ...] = ()
    """The ranges of named VIPs."""

    @property
    def reserved(self) -> tuple[Network, ...]:
        """The allowed networks that lie inside a range of names: names must keep out of them.

        Home addresses are anywhere in a range, and one day a name gets the one that a literal VIP
        has. So an allowed network that merely reaches over a range, as fc00::/7 does, allows
        nothing there; one that was written for a part of it takes that part from the names.
        """
        return tuple(n for n in self.allowed if any(r.contains_network(n) for r in self.named))

    def refusal(self, address: Address) -> str | None:
        """Why `address` cannot be a literal VIP, as a sentence; None when it can."""
        if network := _containing(NEVER_VIPS, address):
            return f"No VIP can be in {network}."
        if owner := self.forbidden.get(address):
            return f"{address} is an address of {owner}."
        for named in self.named:
            if address in named and not _containing(self.reserved, address):
                return f"{address} is in the range of named VIPs, {named}."
        if not _containing(self.allowed, address):
            return f"{address} is in none of the networks that are allowed for literal VIPs."
        return None


def _containing(networks: tuple[Network, ...], address: Address) -> Network | None:
    return next((network for network in networks if address in network), None)
