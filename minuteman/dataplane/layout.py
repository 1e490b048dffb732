"""The bytes in the maps: one `Struct` for each C struct of `ebpf/maps.h`, and what packs them.

`bytes` are network order, `int` is host order. The loader compares every size with what the
compiler made of the C side, and with what is pinned, before anything is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from struct import Struct

from minuteman.model import BackendCounters, Endpoint, Frontend, Tier, Transport
from minuteman.reconcile.kernelstate import Limits, PutBackend

SCHEMA = 1
"""Goes up with every change of a struct or map; each schema has its own folder of pins."""

VIP4_KEY = Struct("=4s2sBx")
VIP6_KEY = Struct("=16s2sBx")
PLACE = Struct("=I")
RUN = Struct("=4I")
VIP = Struct("=II4I4I16s2sBxI")
SLOT = Struct("=I")
BACKEND = Struct("=16s2sBBIII")
BACKEND_STATS = Struct("=4I3Q20Q")
REASON = Struct("=Q")
META = Struct("=IIQ16s")
CONN = Struct("=16s16s2s2sIIIQ")

PROTOCOL: Mapping[Transport, int] = {"tcp": 6, "udp": 17}
TRANSPORT: Mapping[int, Transport] = {number: name for name, number in PROTOCOL.items()}
MAPPED_PREFIX = bytes(10) + b"\xff\xff"

REASONS = ("translated", "refused_empty", "refused_torn", "retried", "untracked")
"""Names of `enum reason`, in its order."""

# enum bpf_map_type and flags, linux/bpf.h
HASH, ARRAY, PERCPU_ARRAY, SK_STORAGE = 1, 2, 6, 24
NO_PREALLOC, MMAPABLE = 1, 1 << 10


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a pinned map must be to be ours."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


def map_shapes(limits: Limits) -> dict[str, MapShape]:
    """The shape of each map by its name. Source: ebpf/maps.h."""
    index = SLOT.size
    return {
        "vips4": MapShape(HASH, VIP4_KEY.size, PLACE.size, limits.vips, NO_PREALLOC),
        "vips6": MapShape(HASH, VIP6_KEY.size, PLACE.size, limits.vips, NO_PREALLOC),
        "vips": MapShape(ARRAY, index, VIP.size, limits.vips, MMAPABLE),
        "slots": MapShape(ARRAY, index, SLOT.size, limits.slots),
        "backends": MapShape(ARRAY, index, BACKEND.size, limits.backends),
        "backend_stats": MapShape(ARRAY, index, BACKEND_STATS.size, limits.backends),
        "reasons": MapShape(PERCPU_ARRAY, index, REASON.size, len(REASONS)),
        "meta": MapShape(ARRAY, index, META.size, 1),
        "conns": MapShape(SK_STORAGE, index, CONN.size, 0, NO_PREALLOC),
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


def unpack_frontend(raw: bytes) -> Frontend:
    """The frontend of a key of either map, told apart by its length."""
    key = VIP4_KEY if len(raw) == VIP4_KEY.size else VIP6_KEY
    packed, port, protocol = key.unpack(raw)
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


def pack_backend(backend: PutBackend, epoch: int) -> bytes:
    """Value of `backend` in `backends`.

    Shape: address(16) port(2) protocol(1) tier(1) weight(4) vip id(4) epoch(4).
    Source: struct backend.
    """
    endpoint = backend.endpoint
    return BACKEND.pack(
        mapped(endpoint.address_packed),
        endpoint.port.to_bytes(2, "big"),
        PROTOCOL[endpoint.transport],
        backend.tier,
        backend.weight,
        backend.vip_id,
        epoch,
    )


def pack_free_backend(raw: bytes) -> bytes:
    """The entry `raw` of `backends` as that of a free id: a member of no VIP, of no weight.

    Address, port and epoch stay, so that a program that is using them reads nothing half.
    """
    *address, _weight, _vip_id, epoch = BACKEND.unpack(raw)
    return BACKEND.pack(*address, 0, 0, epoch)


def unpack_backend(backend_id: int, raw: bytes) -> tuple[PutBackend | None, int]:
    """The backend under an id, None when the id is free, and the epoch of the id."""
    address, port, protocol, tier, weight, vip_id, epoch = BACKEND.unpack(raw)
    if not weight:
        return None, epoch
    if address.startswith(MAPPED_PREFIX):
        address = IPv4Address(address[12:]).packed
    endpoint = Endpoint(address, int.from_bytes(port, "big"), TRANSPORT[protocol])
    return PutBackend(backend_id, vip_id, endpoint, weight, Tier(tier)), epoch


def unpack_stats(raw: bytes) -> BackendCounters:
    """The counters of one backend."""
    connecting, active, consecutive, _, successes, failures, _last, *buckets = BACKEND_STATS.unpack(
        raw
    )
    return BackendCounters(connecting, active, successes, failures, consecutive, tuple(buckets))
