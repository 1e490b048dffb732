"""The bytes in the maps: a `Record` for each C struct of `ebpf/maps.h`, and what packs them.

`bytes` are network order, `int` is host order. The loader compares every size with what the
compiler made of the C side, and with what is pinned, before anything is used.

The maps describe themselves: `about` has the text of every record, so that any version can read
what another one left by the names of the fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

import msgspec

from minuteman.dataplane.record import Record
from minuteman.model import BackendCounters, Endpoint, Frontend, Tier, Transport
from minuteman.reconcile.kernelstate import Limits, Owner, Prefix, PutBackend

SCHEMA = 3
"""Goes up with every change of what the maps mean."""

VIP4_KEY = Record("addr:4s port:2s proto:B zero:x")
VIP6_KEY = Record("addr:16s port:2s proto:B zero:x")
PLACE = Record("place:I")
RUN = Record("base:I up:I maybe:I draining:I")
VIP = Record("turn:I id:I run0:4I run1:4I addr:16s port:2s proto:B zero:x affinity_seconds:I")
SLOT = Record("index:I")
BACKEND_ID = Record("backend_id:I")
BACKEND = Record("addr:16s port:2s proto:B tier:B weight:H flags:H vip_id:I epoch:I")
BACKEND_STATS = Record(
    "connecting:I active:I consecutive_failures:I zero:I ejected_until_ns:Q attempts:Q "
    "successes:Q failures:Q last_failure_ns:Q bytes_sent:Q bytes_received:Q retransmits:Q "
    "connect_log2_us:20Q zeros:16x"
)
CARRIED_STATS = Record(f"backend_id:I reason:I count:Q {BACKEND_STATS.text}")
INNER = Record("addr:16s port:2s zero:2x backend_id:I")
PREFIX = Record("bits:I addr:16s")
OWNER = Record("owner:I")
COOKIE = Record("cookie:Q")
CONN = Record(
    "vip_addr:16s backend_addr:16s vip_port:2s backend_port:2s backend_id:I epoch:I proto:B "
    "phase:B timeouts:B abandoned:B netns:I started_ms:I cookie:Q"
)
SPILLED = Record("spilled:I")
FLOW_KEY = Record("cookie:Q addr:16s port:2s direction:B zero:x zeros:I")
FLOW = Record("addr:16s port:2s zero:2x backend_id:I epoch:I")
CLIENT = Record("cgroup:Q netns:Q vip_id:I zero:I")
AFFINITY = Record("backend_id:I epoch:I used_ns:Q")
SKIP = Record("skip:I")
OPTIONS = Record("host_netns:Q listening_until_ns:Q skips:I zero:I")
REASON = Record("count:Q")
META = Record("schema:I zero:I generation:Q boot_id:16s")
EVENT = Record(
    "time_ns:Q cookie:Q cgroup:Q command:16s vip_addr:16s backend_addr:16s vip_port:2s "
    "backend_port:2s pid:I waited_us:I kind:B proto:B zero:2x"
)
ABOUT = Record("text:8192s")

FLOWS, AFFINITIES, SKIPS, EVENT_BYTES = 131_072, 65_536, 1_024, 1 << 20
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
    "event_lost",
)
"""Names of `enum reason`, in its order."""

KINDS = (
    "chosen",
    "refused_empty",
    "refused_unknown",
    "refused_torn",
    "not_sent",
    "unanswered",
    "connected",
    "refused",
    "given_up",
    "timed_out",
    "closed",
)
"""Names of `enum kind`, in its order."""

# enum bpf_map_type and flags, linux/bpf.h
HASH, ARRAY, PROG_ARRAY, PERCPU_ARRAY, LRU_HASH, LPM_TRIE, RINGBUF = 1, 2, 3, 6, 9, 11, 27
NO_PREALLOC, MMAPABLE = 1, 1 << 10


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a pinned map must be to be ours."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class MapLayout:
    """What is in a map, and how much of it."""

    kind: int
    key: Record
    value: Record
    max_entries: int
    flags: int = 0

    @property
    def shape(self) -> MapShape:
        """As the kernel knows it."""
        if self.kind == RINGBUF:  # it has neither keys nor values of its own
            return MapShape(self.kind, 0, 0, self.max_entries, self.flags)
        return MapShape(self.kind, self.key.size, self.value.size, self.max_entries, self.flags)

    def converted(self, to: MapLayout, key: bytes, value: bytes) -> tuple[bytes, bytes]:
        """An entry as another layout of the map has it."""
        return to.key.write(self.key.read(key)), to.value.write(self.value.read(value))


def conn_places(limits: Limits) -> int:
    """Entries of `conns`: a power of two."""
    return max(SPILL_PLACES, 1 << (limits.conns - 1).bit_length())


def map_layouts(limits: Limits) -> dict[str, MapLayout]:
    """Every map by its name. Source: ebpf/maps.h."""
    places = conn_places(limits)
    return {
        "vips4": MapLayout(HASH, VIP4_KEY, PLACE, limits.vips, NO_PREALLOC),
        "vips6": MapLayout(HASH, VIP6_KEY, PLACE, limits.vips, NO_PREALLOC),
        "vips": MapLayout(ARRAY, SLOT, VIP, limits.vips, MMAPABLE),
        "slots": MapLayout(ARRAY, SLOT, BACKEND_ID, limits.slots),
        "backends": MapLayout(ARRAY, SLOT, BACKEND, limits.backends),
        "backend_stats": MapLayout(ARRAY, SLOT, BACKEND_STATS, limits.backends),
        "inners": MapLayout(HASH, BACKEND_ID, INNER, limits.backends, NO_PREALLOC),
        "prefixes": MapLayout(LPM_TRIE, PREFIX, OWNER, limits.prefixes, NO_PREALLOC),
        "conns": MapLayout(ARRAY, SLOT, CONN, places),
        "more_conns": MapLayout(HASH, COOKIE, CONN, places, NO_PREALLOC),
        "spills": MapLayout(ARRAY, SLOT, SPILLED, places // SPILL_PLACES),
        "flows": MapLayout(LRU_HASH, FLOW_KEY, FLOW, FLOWS),
        "affinities": MapLayout(LRU_HASH, CLIENT, AFFINITY, AFFINITIES),
        "skips": MapLayout(HASH, COOKIE, SKIP, SKIPS, NO_PREALLOC),
        "options": MapLayout(ARRAY, SLOT, OPTIONS, 1),
        "again_connect4": MapLayout(PROG_ARRAY, SLOT, SLOT, 1),
        "again_connect6": MapLayout(PROG_ARRAY, SLOT, SLOT, 1),
        "again_sendmsg4": MapLayout(PROG_ARRAY, SLOT, SLOT, 1),
        "again_sendmsg6": MapLayout(PROG_ARRAY, SLOT, SLOT, 1),
        "reasons": MapLayout(PERCPU_ARRAY, SLOT, REASON, len(REASONS)),
        "events": MapLayout(RINGBUF, SLOT, EVENT, EVENT_BYTES),
        "meta": MapLayout(ARRAY, SLOT, META, 1),
        "about": MapLayout(ARRAY, SLOT, ABOUT, 1),
    }


class AboutMap(msgspec.Struct, frozen=True):
    """What a record of a map consists of."""

    key: str
    value: str


class About(msgspec.Struct, frozen=True):
    """What `about` says of the other maps and the programs in its folder, as JSON."""

    schema: int
    maps: dict[str, AboutMap]
    reasons: tuple[str, ...]
    """Which one each entry of `reasons` counts."""
    programs: str = ""
    """Digest of what the pinned programs were made of; empty: they are not complete."""

    @classmethod
    def ours(cls, programs: str = "") -> About:
        """What this version writes."""
        maps = {
            name: AboutMap(made.key.text, made.value.text)
            for name, made in map_layouts(Limits()).items()
        }
        return cls(SCHEMA, maps, REASONS, programs)

    def pack(self) -> bytes:
        """Value of the one entry of `about`."""
        return ABOUT.pack(msgspec.json.encode(self))

    @classmethod
    def unpack(cls, raw: bytes) -> About:
        """What another version wrote, or this one. Errors: ValueError."""
        return msgspec.json.decode(ABOUT.unpack(raw)[0].rstrip(b"\0"), type=cls)


def folder_name(limits: Limits) -> str:
    """Name of the folder of pins: another one for each layout of the maps, and each capacity."""
    sizes = {name: made.max_entries for name, made in map_layouts(limits).items()}
    said = msgspec.json.encode((About.ours(), sizes), order="sorted")
    return f"v{SCHEMA}-{hashlib.sha256(said).hexdigest()[:8]}"


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
    (
        connecting,
        active,
        consecutive_failures,
        _zero,
        ejected_until_ns,
        attempts,
        successes,
        failures,
        _last_failure_ns,
        bytes_sent,
        bytes_received,
        retransmits,
        *buckets,
    ) = BACKEND_STATS.unpack(raw)
    return BackendCounters(
        connecting=_not_negative(connecting),
        active=_not_negative(active),
        attempts=attempts,
        successes=successes,
        failures=failures,
        consecutive_failures=consecutive_failures,
        ejected=now_ns < ejected_until_ns,
        bytes_sent=bytes_sent,
        bytes_received=bytes_received,
        retransmits=retransmits,
        connect_log2_us=tuple(buckets),
    )


def _not_negative(count: int) -> int:
    """A program that is stopped while its backend's id changes hands counts down once too often."""
    return 0 if count >= 1 << 31 else count
