"""The home address of a named VIP: the same on every host, with nothing written down.

A name hashes to its home, exactly as in dcos-net: `min + phash2(name, max - min)` for IPv4 and
`min + sha1(name) mod (max - min)` for IPv6. When two names have one home, the first keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha1
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
    summarize_address_range,
)

from minuteman.errors import ModelError
from minuteman.model import Address, Claims, VipName

Network = IPv4Network | IPv6Network
Wanted = Mapping[VipName, tuple[int, ...]]
"""The names in use, each with the IP versions that it needs an address of, 4 first."""

NEVER_VIPS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"),
        *("::/128", "::1/128", "::ffff:0:0/96", "fe80::/10", "ff00::/8"),
    )
)
"""Unspecified, loopback, IPv4-mapped, link-local, multicast, broadcast: no VIP can be in there."""


# ---- hashes -------------------------------------------------------------------------------------
_WORD = 0xFFFF_FFFF
_GOLDEN = 0x9E37_79B9
_PHASH2_SEED = 13 * _GOLDEN & _WORD


def phash2(data: bytes) -> int:
    """Erlang's `erlang:phash2` of a binary, over the full range 0 to 2**32 - 1.

    Source: `block_hash` of erts/emulator/beam/utils.c: Bob Jenkins' lookup2, little-endian words.
    """
    if not data:
        return _PHASH2_SEED
    a, b, c = _GOLDEN, _GOLDEN, _PHASH2_SEED
    whole = len(data) - len(data) % 12
    for at in range(0, whole, 12):
        a, b, c = _mix(
            a + _little(data[at : at + 4]),
            b + _little(data[at + 4 : at + 8]),
            c + _little(data[at + 8 : at + 12]),
        )
    tail = data[whole:]
    # The lowest byte of the last word holds the length.
    c += len(data) + (_little(tail[8:]) << 8)
    return _mix(a + _little(tail[:4]), b + _little(tail[4:8]), c)[2]


def _little(word: bytes) -> int:
    return int.from_bytes(word, "little")


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    """One round of lookup2, modulo 2**32."""
    for right, left, last in ((13, 8, 13), (12, 16, 5), (3, 10, 15)):
        c &= _WORD
        a = (a - b - c & _WORD) ^ c >> right
        b = (b - c - a ^ a << left) & _WORD
        c = (c - a - b & _WORD) ^ b >> last
    return a, b, c


# ---- addresses ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class AddressRange:
    """The addresses that names of one family get, both ends included.

    No home is at `last`, which the successor's modulus never reaches.
    """

    first: Address
    last: Address

    def __post_init__(self) -> None:
        if self.first.version != self.last.version:
            raise ModelError("range", str(self), "its ends are of two families")
        if int(self.first) >= int(self.last):
            raise ModelError("range", str(self), "its end does not come after its start")
        for network in NEVER_VIPS:
            if network[0] in self or network[-1] in self or self.first in network:
                raise ModelError("range", str(self), f"no VIP can be in {network}")

    @classmethod
    def parse(cls, text: str) -> AddressRange:
        """The range that `first-last` describes. Errors: ModelError."""
        first, dash, last = text.partition("-")
        if not dash:
            raise ModelError("range", text, "write two addresses with a hyphen between them")
        try:
            return cls(ip_address(first.strip()), ip_address(last.strip()))
        except ModelError:
            raise
        except ValueError as error:
            raise ModelError("range", text, str(error)) from error

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, address: Address) -> bool:
        same_family = address.version == self.first.version
        return same_family and int(self.first) <= int(address) <= int(self.last)

    def prefixes(self) -> tuple[Network, ...]:
        """The fewest networks that hold these addresses and no others."""
        match self.first, self.last:
            case IPv4Address() as first, IPv4Address() as last:
                return tuple(summarize_address_range(first, last))
            case IPv6Address() as first6, IPv6Address() as last6:
                return tuple(summarize_address_range(first6, last6))
            case _:  # that is refused when it is made
                return ()

    def contains_network(self, network: Network) -> bool:
        """Whether the whole `network` lies in the range."""
        return network[0] in self and network[-1] in self

    def home(self, name: VipName) -> Address:
        """Where `name` lives when nobody else does."""
        hashed = str(name).encode()
        if self.first.version == 4:
            position = phash2(hashed)
        else:
            position = int.from_bytes(sha1(hashed, usedforsecurity=False).digest())
        return self.first + position % (int(self.last) - int(self.first))


@dataclass(frozen=True, slots=True)
class Homes:
    """Where names may live."""

    ipv4: AddressRange
    ipv6: AddressRange
    reserved: tuple[Network, ...] = ()
    """Parts of the ranges that are set aside for literal VIPs."""

    def __post_init__(self) -> None:
        for version, named in ((4, self.ipv4), (6, self.ipv6)):
            if named.first.version != version:
                raise ModelError(f"range for IPv{version}", str(named), "it is of the other family")

    def of(self, version: int) -> AddressRange:
        """The range of an IP version."""
        return self.ipv4 if version == 4 else self.ipv6

    def __contains__(self, address: Address) -> bool:
        return address in self.of(address.version) and not self.is_reserved(address)

    def is_reserved(self, address: Address) -> bool:
        """Whether `address` is set aside for literal VIPs."""
        return any(address in network for network in self.reserved)


# ---- who lives where ----------------------------------------------------------------------------
def assign(wanted: Wanted, held: Claims, homes: Homes) -> Claims:
    """An address for each wanted name and family, or the reason why it waits.

    Who holds an address keeps it as long as it is wanted. Of those without one, the smaller name
    comes first, so the outcome does not depend on an order of arrival.
    """
    addresses: dict[VipName, tuple[Address, ...]] = {}
    holders: dict[Address, VipName] = {}
    for name, versions in wanted.items():
        kept = tuple(
            address
            for address in held.addresses.get(name, ())
            if address.version in versions and address in homes and address not in holders
        )
        if kept:
            addresses[name] = kept
            holders.update(dict.fromkeys(kept, name))
    waiting: dict[VipName, str] = {}
    for name in sorted(n for n, v in wanted.items() if len(addresses.get(n, ())) < len(v)):
        mine, reasons = list(addresses.get(name, ())), []
        for version in sorted(set(wanted[name]) - {address.version for address in mine}):
            home = homes.of(version).home(name)
            if reason := _refusal(name, home, holders, homes):
                reasons.append(reason)
            else:
                mine.append(home)
                holders[home] = name
        if mine:
            addresses[name] = tuple(sorted(mine, key=lambda address: address.version))
        if reasons:
            waiting[name] = " ".join(reasons)
    return Claims(addresses, frozenset(addresses), waiting)


def _refusal(
    name: VipName, home: Address, holders: Mapping[Address, VipName], homes: Homes
) -> str | None:
    """Why `name` cannot have its home address now, as a sentence."""
    if homes.is_reserved(home):
        return f"Its home address {home} is set aside for literal VIPs."
    holder = holders.get(home)
    if holder is None:
        return None
    if str(holder) == str(name):
        whose = f"label {holder.label!r} of framework {holder.framework!r}"
        return f"Its DNS name, and so its home address {home}, is that of {whose}."
    return f"Its home address {home} is that of {holder.fqdn}."


class HomeBook:
    """The claims of the names in use on this host."""

    def __init__(self, homes: Homes, held: Claims | None = None) -> None:
        """`held`: claims of an earlier run; the names in it keep their address if still wanted."""
        self._homes = homes
        self._wanted: Wanted | None = None
        self._claims = held or Claims()

    def want(self, names: Wanted) -> None:
        """Replace the names in use; what is not among them gives its address back.

        The same object again costs nothing, so it must not have changed in between.
        """
        if names is self._wanted:
            return
        self._wanted = names
        claims = assign(names, self._claims, self._homes)
        if claims != self._claims:
            self._claims = claims

    def claims(self) -> Claims:
        """Who has which address: the same object until that changes."""
        return self._claims
