"""The bytes in the maps: one `Struct` for each C struct of `ebpf/maps.h`, and what packs them.

`bytes` are network order, `int` is host order. The loader compares every size with what the
compiler made of the C side, and with what is pinned, before anything is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from struct import Struct

from minuteman.model import BackendCounters, Endpoint, Frontend, Tier, Transport
from minuteman.reconcile.kernelstate import Limits, Owner, Prefix, PutBackend

SCHEMA = 2
"""Goes up with every change of a struct or map; each schema has its own folder of pins."""

VIP4_KEY = Struct("=4s2sBx")
VIP6_KEY = Struct("=16s2sBx")
PLACE = Struct("=I")
RUN = Struct("=4I")
VIP = Struct("=II4I4I16s2sBxI")
SLOT = Struct("=I")
BACKEND = Struct("=16s2sBBHHII")
BACKEND_STATS = Struct("=4I4Q20Q")
INNER = Struct("=16s2s2xI")
PREFIX = Struct("=I16s")
OWNER = Struct("=I")
COOKIE = Struct("=Q")
CONN = Struct("=16s16s2s2sIIBBBBIIQ")
SPILLED = Struct("=I")
FLOW_KEY = Struct("=Q16s2sBxI")
FLOW = Struct("=16s2s2xII")
CLIENT = Struct("=QQII")
AFFINITY = Struct("=IIQ")
SKIP = Struct("=I")
OPTIONS = Struct("=QII")
REASON = Struct("=Q")
META = Struct("=IIQ16s")

FLOWS, AFFINITIES, SKIPS = 131_072, 65_536, 1_024
"""Capacity of maps for which there is no setting."""
CGROUP_LEVELS = 16
"""How deep the programs look for a skipped cgroup, the root included; ebpf/find.h."""
SPILL_PLACES = 64
"""Neighbours in `conns` that share an entry of `spills`."""
HAS_INNER = 1
"""Flag of a backend."""

PROTOCOL: Mapping[Transport, int] = {"tcp": 6, "udp": 17}
TRANSPORT: Mapping[int, Transport] = {number: name for name, number in PROTOCOL.items()}
_TIERS = frozenset(Tier)
_OWNERS: Mapping[int, Owner] = {owner.value: owner for owner in Owner}
MAPPED_PREFIX = bytes(10) + b"\xff\xff"

REASONS = (
    "translated",
    "refused_empty",
    "refused_unknown",
    "refused_torn",
    "retried",
    "untracked",
    "ejected",
    "last_resort",
    "settled",
)
"""Names of `enum reason`, in its order."""

# enum bpf_map_type and flags, linux/bpf.h
HASH, ARRAY, PROG_ARRAY, PERCPU_ARRAY, LRU_HASH, LPM_TRIE = 1, 2, 3, 6, 9, 11
NO_PREALLOC, MMAPABLE = 1, 1 << 10


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a pinned map must be to be ours."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


def conn_places(limits: Limits) -> int:
    """Entries of `conns`: a power of two."""
    return max(SPILL_PLACES, 1 << (limits.conns - 1).bit_length())


def map_shapes(limits: Limits) -> dict[str, MapShape]:
    """The shape of each map by its name. Source: ebpf/maps.h."""
    index, places = SLOT.size, conn_places(limits)
    return {
        "vips4": MapShape(HASH, VIP4_KEY.size, PLACE.size, limits.vips, NO_PREALLOC),
        "vips6": MapShape(HASH, VIP6_KEY.size, PLACE.size, limits.vips, NO_PREALLOC),
        "vips": MapShape(ARRAY, index, VIP.size, limits.vips, MMAPABLE),
        "slots": MapShape(ARRAY, index, SLOT.size, limits.slots),
        "backends": MapShape(ARRAY, index, BACKEND.size, limits.backends),
        "backend_stats": MapShape(ARRAY, index, BACKEND_STATS.size, limits.backends),
        "inners": MapShape(HASH, index, INNER.size, limits.backends, NO_PREALLOC),
        "prefixes": MapShape(LPM_TRIE, PREFIX.size, OWNER.size, limits.prefixes, NO_PREALLOC),
        "conns": MapShape(ARRAY, index, CONN.size, places),
        "more_conns": MapShape(HASH, COOKIE.size, CONN.size, places, NO_PREALLOC),
        "spills": MapShape(ARRAY, index, SPILLED.size, places // SPILL_PLACES),
        "flows": MapShape(LRU_HASH, FLOW_KEY.size, FLOW.size, FLOWS),
        "affinities": MapShape(LRU_HASH, CLIENT.size, AFFINITY.size, AFFINITIES),
        "skips": MapShape(HASH, COOKIE.size, SKIP.size, SKIPS, NO_PREALLOC),
        "options": MapShape(ARRAY, index, OPTIONS.size, 1),
        "again_connect4": MapShape(PROG_ARRAY, index, SLOT.size, 1),
        "again_connect6": MapShape(PROG_ARRAY, index, SLOT.size, 1),
        "again_sendmsg4": MapShape(PROG_ARRAY, index, SLOT.size, 1),
        "again_sendmsg6": MapShape(PROG_ARRAY, index, SLOT.size, 1),
        "reasons": MapShape(PERCPU_ARRAY, index, REASON.size, len(REASONS)),
        "meta": MapShape(ARRAY, index, META.size, 1),
    }


def pack_frontend(frontend: Frontend) -> bytes:
    """Key of `frontend` in `vips4` or `vips6`, by its family.

    Shape: address(4 or 16) port(2) protocol(1) zero(1).   Order: address and port network order.
    Source: struct vip4_key, vip6_key.   Errors: none.
    """
    key = VIP4_KEY if frontend.address.version == 4 else VIP6_KEY
    return key.pack(
        frontend.address.packed, frontend.port.to_bytes(2, "big"), PROTOCOL[frontend.transport]
    )


def unpack_frontend(raw: bytes) -> Frontend | None:
    """The frontend of a key of either map, told apart by its length; None: it is none of ours."""
    key = VIP4_KEY if len(raw) == VIP4_KEY.size else VIP6_KEY
    packed, port, protocol = key.unpack(raw)
    if protocol not in TRANSPORT:
        return None
    return Frontend(
        Endpoint(packed, 0, "tcp").address, int.from_bytes(port, "big"), TRANSPORT[protocol]
    )


def pack_identity(frontend: Frontend) -> bytes:
    """Whose an entry of `vips` is: the part of `struct vip` that is compared.

    Shape: address(16, IPv4-mapped) port(2) protocol(1) zero(1).   Source: struct vip.
    """
    return VIP6_KEY.pack(
        mapped(frontend.address.packed),
        frontend.port.to_bytes(2, "big"),
        PROTOCOL[frontend.transport],
    )


def mapped(packed: bytes) -> bytes:
    """A packed address as 16 bytes, IPv4 as IPv4-mapped IPv6."""
    return packed if len(packed) == 16 else MAPPED_PREFIX + packed


def unmapped(packed: bytes) -> bytes:
    """What `mapped` was made of."""
    return packed[12:] if packed.startswith(MAPPED_PREFIX) else packed


def pack_backend(backend: PutBackend, epoch: int) -> bytes:
    """Value of `backend` in `backends`.

    Shape: address(16) port(2) protocol(1) tier(1) weight(2) flags(2) vip id(4) epoch(4).
    Source: struct backend.
    """
    endpoint = backend.endpoint
    return BACKEND.pack(
        mapped(endpoint.address_packed),
        endpoint.port.to_bytes(2, "big"),
        PROTOCOL[endpoint.transport],
        backend.tier,
        backend.weight,
        HAS_INNER if backend.inner else 0,
        backend.vip_id,
        epoch,
    )


def pack_free_backend(raw: bytes, epoch: int | None = None) -> bytes:
    """The entry `raw` of `backends` as that of a free id: a member of no VIP, of no weight.

    Address and port stay, so that a program that is using them reads nothing half; so does the
    epoch, unless another one is given.
    """
    *address, _weight, _flags, _vip_id, old_epoch = BACKEND.unpack(raw)
    return BACKEND.pack(*address, 0, 0, 0, old_epoch if epoch is None else epoch)


def unpack_backend(
    backend_id: int, raw: bytes, inner: bytes | None = None
) -> tuple[PutBackend | None, int]:
    """The backend under an id, None when the id is free, and the epoch of the id.

    `inner` is what `inners` has under the id.
    """
    address, port, protocol, tier, weight, flags, vip_id, epoch = BACKEND.unpack(raw)
    if not weight or protocol not in TRANSPORT or tier not in _TIERS:
        return None, epoch
    transport = TRANSPORT[protocol]
    endpoint = Endpoint(unmapped(address), int.from_bytes(port, "big"), transport)
    inside = unpack_inner(inner, transport) if inner and flags & HAS_INNER else None
    return PutBackend(backend_id, vip_id, endpoint, weight, Tier(tier), inside), epoch


def pack_inner(inner: Endpoint, backend_id: int) -> bytes:
    """Value of `inner` in `inners`.

    Shape: address(16) port(2) zero(2) backend id(4).   Source: struct inner.
    """
    return INNER.pack(mapped(inner.address_packed), inner.port.to_bytes(2, "big"), backend_id)


def unpack_inner(raw: bytes, transport: Transport) -> Endpoint:
    """The endpoint in a value of `inners`."""
    address, port, _backend_id = INNER.unpack(raw)
    return Endpoint(unmapped(address), int.from_bytes(port, "big"), transport)


def pack_prefix(prefix: Prefix) -> bytes:
    """Key of `prefix` in `prefixes`.

    Shape: bits(4, of 128) address(16).   An IPv4 prefix is that of the mapped addresses.
    Source: struct prefix.
    """
    bits = prefix.prefixlen + (0 if prefix.version == 6 else 8 * len(MAPPED_PREFIX))
    return PREFIX.pack(bits, mapped(prefix.network_address.packed))


def unpack_prefix(raw: bytes) -> Prefix:
    """The prefix of a key of `prefixes`."""
    bits, address = PREFIX.unpack(raw)
    if address.startswith(MAPPED_PREFIX) and bits >= 8 * len(MAPPED_PREFIX):
        return IPv4Network((address[12:], bits - 8 * len(MAPPED_PREFIX)), strict=False)
    return IPv6Network((address, bits), strict=False)


def unpack_owner(raw: bytes) -> Owner | None:
    """The owner in a value of `prefixes`; None: that is none of ours."""
    return _OWNERS.get(OWNER.unpack(raw)[0])


def unpack_stats(raw: bytes, now_ns: int) -> BackendCounters:
    """The counters of one backend. `now_ns` is on the clock of bpf_ktime_get_ns(), monotonic."""
    connecting, active, consecutive, _, ejected_until_ns, successes, failures, _last, *buckets = (
        BACKEND_STATS.unpack(raw)
    )
    return BackendCounters(
        connecting=_not_negative(connecting),
        active=_not_negative(active),
        successes=successes,
        failures=failures,
        consecutive_failures=consecutive,
        ejected=now_ns < ejected_until_ns,
        connect_log2_us=tuple(buckets),
    )


def _not_negative(count: int) -> int:
    """A program that is stopped while its backend's id changes hands counts down once too often."""
    return 0 if count >= 1 << 31 else count
