"""The values that cross the project. Frozen, comparable, free of IO.

Addresses are `ipaddress` objects, `port` is 1-65535 in host order, a `weight` is 0-100, times named
`*_seconds` are durations and those named `*_monotonic` come from `time.monotonic()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NewType

Address = IPv4Address | IPv6Address
Transport = Literal["tcp", "udp"]
TaskState = Literal["starting", "running", "killing", "unreachable"]
"""Terminal states are absent: a task that ended is no longer a value."""

UnitId = NewType("UnitId", str)
"""What a source replaces whole: an instance znode, an app znode, an agent's document."""

VIP_DOMAIN = "l4lb.thisdcos.directory"


class Tier(IntEnum):
    """How good a backend is for a new connection; the kernel serves from the best non-empty tier.

    A backend that refuses is found by each kernel itself and is not a value of the table.
    """

    UP = 0
    MAYBE = 1
    DRAINING = 2


# ---- what users ask for -------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, order=True)
class VipName:
    """A named VIP. Both parts are normalised, so that one name has one address."""

    label: str
    framework: str

    def __str__(self) -> str:
        """The short form, `web.marathon`: what is hashed for the home address."""
        return f"{self.label}.{self.framework}"

    @property
    def fqdn(self) -> str:
        """The name that DNS serves, without the final dot."""
        return f"{self.label}.{self.framework}.{VIP_DOMAIN}"


@dataclass(frozen=True, slots=True)
class VipKey:
    """Identity of a VIP: where clients connect to."""

    host: VipName | Address
    port: int
    transport: Transport

    def __str__(self) -> str:
        """`host:port`, IPv6 in brackets, names fully qualified; the transport is not part of it."""
        match self.host:
            case VipName():
                return f"{self.host.fqdn}:{self.port}"
            case IPv6Address():
                return f"[{self.host}]:{self.port}"
            case IPv4Address():
                return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class VipClaim:
    """What one port label asks for: `VIP_<n>` and the options beside it."""

    key: VipKey
    weight: int = 1
    affinity_seconds: int = 0


# ---- what runs ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TaskPort:
    """One port of a task and the VIPs that it asks to be behind."""

    transport: Transport
    number: int
    scope: Literal["host", "container"]
    """`host`: at `Task.agent_ip`; `container`: at each of `Task.ips`."""
    name: str = ""
    container_port: int | None = None
    """Behind a host port: where the container itself listens."""
    claims: tuple[VipClaim, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A task that has not ended, with VIP labels or without. Identity: `(framework_id, id)`."""

    framework_id: str
    id: str
    framework: str
    """Raw name of the framework, as it is registered."""
    name: str
    agent_id: str
    agent_ip: Address | None
    """None: the agent's host name does not resolve yet."""
    ips: tuple[Address, ...]
    state: TaskState
    healthy: bool | None
    """None: it has no health check that can be seen here."""
    ports: tuple[TaskPort, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was skipped, kept or refused, for an operator to read."""

    where: str
    """A znode path, a URL or a host name."""
    subject: str
    """A task id, a label or a VIP; empty for the whole unit."""
    field: str
    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest thing that a source replaces whole."""

    id: UnitId
    revision: int
    """mzxid, or the source's own count; never goes back within one origin."""
    tasks: tuple[Task, ...] = ()
    declares: tuple[VipClaim, ...] = ()
    """VIPs of an app definition: they exist with zero tasks too."""
    problems: tuple[Problem, ...] = ()
    kept: bool = False
    """It cannot be read now: this is its last good value."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Which world was read. Same incarnation and a position not lower: it is believed whole."""

    incarnation: str
    """`czxid:ctime` of the root znode."""
    position: int
    """Highest zxid seen."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One complete read of one source. An unchanged unit is the same object as before."""

    source: str
    origin: Origin
    units: Mapping[UnitId, Unit]
    lost_agents: frozenset[Address] = frozenset()
    """Liveness was seen there, and is gone for longer than the grace."""
    serial: int = 0
    """Counts the snapshots that this source handed out, from 1; 0: restored from disk."""
    touched: frozenset[UnitId] | None = None
    """Units that may differ from snapshot `serial - 1`, gone ones too; None: compare them all."""


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """Whether what a source says is current. `since_monotonic` dates the present state."""

    fresh: bool
    since_monotonic: float
    reason: str = ""


# ---- what is behind a VIP -----------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Frontend:
    """An address that the kernel knows: what a program passes to `connect()`."""

    address: Address
    port: int
    transport: Transport

    def __str__(self) -> str:
        """`tcp 11.0.0.37:80`, IPv6 in brackets."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{self.transport} {host}:{self.port}"


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """Where a backend listens. Sorts by address bytes, IPv4 before IPv6 of the same prefix."""

    address_packed: bytes
    """4 or 16 bytes, network order."""
    port: int
    transport: Transport

    @property
    def address(self) -> Address:
        """The address as an `ipaddress` object."""
        if len(self.address_packed) == 4:
            return IPv4Address(self.address_packed)
        return IPv6Address(self.address_packed)

    def __str__(self) -> str:
        """`tcp 10.0.0.1:31001`, IPv6 in brackets."""
        return str(Frontend(self.address, self.port, self.transport))


@dataclass(frozen=True, slots=True)
class Backend:
    """A task's port as a member of one VIP."""

    endpoint: Endpoint
    weight: int
    """0-100; it decides the share within the tier, and 0 counts as 1 in the last tier."""
    tier: Tier
    source: str
    framework_id: str
    task_id: str
    """It and those around it are empty when the task is not known."""
    agent_id: str = ""
    inner: Endpoint | None = None
    """Behind a host port: where the container itself listens. Of use on its own host only."""


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual IP. Without a backend it refuses."""

    key: VipKey
    frontends: tuple[Frontend, ...]
    """A name may have an IPv4 and an IPv6 one; none while it waits for an address."""
    backends: tuple[Backend, ...]
    """Sorted by endpoint; one entry for each endpoint."""
    framework: str = ""
    """Raw name of the framework whose task asks for it, the smallest of several.

    Without a task: the framework in the name of a named VIP, empty for a literal one.
    """
    affinity_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Claims:
    """Which address each name has."""

    addresses: Mapping[VipName, tuple[Address, ...]] = field(default_factory=dict)
    """One per family that the name uses, IPv4 first."""
    provisional: frozenset[VipName] = frozenset()
    """Home address, written down nowhere yet."""
    waiting: Mapping[VipName, str] = field(default_factory=dict)
    """No address now, and why."""


# ---- what the kernel counts ---------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class BackendCounters:
    """Since the backend joined its VIP on this host."""

    connecting: int = 0
    active: int = 0
    successes: int = 0
    failures: int = 0
    consecutive_failures: int = 0
    attempts: int = 0
    """How often it was given to a connection, or to a UDP socket."""
    bytes_sent: int = 0
    """By TCP connections that are closed, and acknowledged."""
    bytes_received: int = 0
    """Likewise."""
    retransmits: int = 0
    """Segments, likewise."""
    connect_log2_us: tuple[int, ...] = ()
    """Bucket i counts connects that took less than 2**i microseconds, the last one all others."""
    ejected: bool = False
    """It failed too often in a row: this host gives it no connection for a while."""


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading of the kernel's counters."""

    taken_monotonic: float = 0.0
    by_vip_backend: Mapping[tuple[Frontend, Endpoint], BackendCounters] = field(
        default_factory=dict
    )
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Decisions of the programs by name: `translated`, `refused_empty`, ..."""
