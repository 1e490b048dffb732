"""Shapes of the answers. What is documented in OpenAPI and what is sent are these same classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

Protocol = Literal["tcp", "udp"]
TierName = Literal["up", "maybe", "draining"]
HealthStatus = Literal["ok", "degraded", "starting"]
Outcome = Literal[
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
]


class Shape:
    """Base of all: a field's docstring is its description in OpenAPI."""

    __slots__ = ()
    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True)


# ---- /v1: the shapes of dcos-net -----------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class LegacyBackend(Shape):
    """Where one backend listens."""

    ip: str
    """Address of the backend; IPv6 without brackets."""
    port: int
    """1-65535."""


@dataclass(frozen=True, slots=True)
class LegacyVip(Shape):
    """A VIP with at least one backend, as dcos-net shows it."""

    vip: str
    """`host:port`. The host is a fully qualified name or a literal address, IPv6 in brackets."""
    protocol: Protocol
    """Transport that clients use."""
    backend: tuple[LegacyBackend, ...]
    """All backends of any tier; the key is singular, as it always was."""


@dataclass(frozen=True, slots=True)
class Version(Shape):
    """Who answers. The keys are capitalised, as dcos-net has them."""

    Service: str
    """Always `minuteman`."""
    Version: str
    """Version of this agent."""


# ---- /api ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Counters(Shape):
    """Connections of this host to one backend through one VIP, since the backend joined it."""

    connecting: int
    """Connections that wait for the backend's answer now."""
    active: int
    """Connections that are open now, connected UDP sockets too."""
    attempts: int
    """How often it was given to a connection, or to a UDP socket, however that ended."""
    successes: int
    """TCP connects that the backend accepted."""
    failures: int
    """Connects that were refused or timed out."""
    consecutive_failures: int
    """Failures since the last success; a SYN that is not answered in time is one, too."""
    bytes_sent: int
    """Bytes that the backend has acknowledged, of TCP connections that are closed: what one has
    sent is added when it closes. Datagrams are not counted."""
    bytes_received: int
    """Bytes that came from the backend, likewise."""
    retransmits: int
    """Segments that were sent again, likewise."""
    connect_log2_us: tuple[int, ...]
    """Connect times: item i counts connects under 2**i microseconds, not counted by an item
    before it; the last item counts all the others."""


@dataclass(frozen=True, slots=True)
class Backend(Shape):
    """A task's port as a member of one VIP."""

    address: str
    """Where it listens; IPv6 without brackets."""
    port: int
    """1-65535."""
    weight: int
    """0-100: its share among the backends of its tier."""
    tier: TierName
    """New connections go to the best tier that is not empty, in this order."""
    ejected: bool
    """It failed 5 times in a row: for 30 seconds this host gives it no connection, unless there is
    no other backend. Then one connection tries it."""
    source: str
    """The source that reported the task; empty when unknown."""
    framework_id: str
    """Id of the task's framework, as Mesos has it; empty when unknown."""
    task_id: str
    """Id of the task; empty when unknown."""
    task_name: str | None
    """Name of the task; null when the task itself is not known any more."""
    task_state: Literal["starting", "running", "killing", "unreachable"] | None
    """Last known state; null when the task itself is not known any more."""
    healthy: bool | None
    """Result of its health checks; null without a check that can be seen here."""
    agent_id: str
    """Id of the Mesos agent that runs it; empty when unknown."""
    agent_address: str | None
    """Address of that agent; null when unknown."""
    counters: Counters
    """What this host's kernel counted."""


@dataclass(frozen=True, slots=True)
class Vip(Shape):
    """A virtual IP. Without a backend it refuses connections."""

    vip: str
    """`host:port`. The host is a fully qualified name or a literal address, IPv6 in brackets."""
    protocol: Protocol
    """Transport that clients use."""
    port: int
    """Port that clients connect to, 1-65535."""
    names: tuple[str, ...]
    """DNS names; none for a VIP that was asked for by address."""
    addresses: tuple[str, ...]
    """Addresses that clients connect to; none while a name waits for its address."""
    framework: str
    """Name of the framework whose task asks for it; empty when unknown."""
    affinity_seconds: int
    """How long a client keeps its backend after its last connection; 0: it does not."""
    backends: tuple[Backend, ...]
    """Sorted by address and port."""


@dataclass(frozen=True, slots=True)
class VipList(Shape):
    """VIPs that the kernel has: names first, then addresses."""

    generation: int
    """Counts the changes of what the kernel has."""
    counted_monotonic: float
    """When the counters were read, in seconds of this host's monotonic clock: what was counted
    between two answers was counted between these two moments."""
    vips: tuple[Vip, ...]
    """Those that match every filter."""


@dataclass(frozen=True, slots=True)
class Problem(Shape):
    """Something that was skipped, kept or refused."""

    where: str
    """A znode path, a URL or a host name."""
    subject: str
    """A task id, a label or a VIP; empty when it is about all that is there."""
    field: str
    """Name of the field or label that is wrong; empty when it is about the whole subject."""
    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True)
class ProblemList(Shape):
    """Everything that costs a task or a label its place now."""

    count: int
    """How many there are."""
    problems: tuple[Problem, ...]
    """In the order in which they were found."""


@dataclass(frozen=True, slots=True)
class SourceState(Shape):
    """Whether what one source says is current."""

    name: str
    """Name of the source."""
    fresh: bool
    """False: its last complete read is kept, and may be out of date."""
    since: str
    """When it came into this state, RFC 3339, UTC."""
    seconds: int
    """How long it has been in this state."""
    reason: str
    """Why it is stale; may be empty when it is fresh."""


@dataclass(frozen=True, slots=True)
class Health(Shape):
    """Whether this host's VIPs are as the cluster wants them."""

    status: HealthStatus
    """`starting`: the agent has not reported yet. Only `ok` comes with HTTP status 200."""
    reasons: tuple[str, ...]
    """Why it is not `ok`: a sentence each."""
    generation: int
    """Counts the changes of what the kernel has."""
    attached: bool
    """Every program is in effect on the cgroup."""
    withheld: int
    """Removals that are not believed yet."""
    without_room: int
    """VIPs that do not fit into the kernel's maps. One that it has keeps its old backends, one that
    is new is not served."""
    repairs: int
    """How often programs were found not to be in effect, and were attached again."""
    problems: int
    """How many entries `/api/problems` has; they do not make the host degraded."""
    sources: tuple[SourceState, ...]
    """All configured sources, by name."""


@dataclass(frozen=True, slots=True)
class Event(Shape):
    """What became of a connection, or of a UDP socket."""

    time: str
    """When, RFC 3339, UTC."""
    protocol: Protocol
    """Transport that the client uses."""
    vip: str
    """What the client connects to, `host:port`: the host is an address, IPv6 in brackets."""
    backend: str | None
    """What it was given, `host:port`; null: nothing."""
    outcome: Outcome
    """`chosen`: a UDP socket was given a backend. `refused_empty`: the VIP has none.
    `refused_unknown`: there is no VIP. `refused_torn`: the VIP was changed under every look at it.
    `not_sent`: there is no way to the backend. `unanswered`: a SYN was, and is sent again.
    `connected`, `refused`: so the backend has answered. `given_up`: the client did not wait for it.
    `timed_out`: the kernel did not. `closed`: a connection has ended."""
    waited_us: int | None
    """For the backend's answer, in microseconds; null: there was nothing to wait for."""
    cgroup: str | None
    """Path of the client's cgroup; null: not known, or gone."""
    pid: int | None
    """Of the client's process, as the host numbers it; null: not known."""
    command: str | None
    """Name of the client's thread; null: not known."""
    name: str | None
    """The VIP by its name, `host:port`; null: it has none, or is not known any more."""
    task_id: str | None
    """Id of the backend's task; null: not known any more."""


@dataclass(frozen=True, slots=True)
class LostEvents(Shape):
    """Events that nobody could keep up with."""

    lost: int
    """How many there were, of all VIPs."""


# ---- errors --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class InvalidField(Shape):
    """One part of a request that has no meaning."""

    field: str
    """Which: a parameter of the path or of the query."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, slots=True)
class ProblemDetails(Shape):
    """Why a request failed (RFC 9457), sent as `application/problem+json`."""

    type: str
    """Always `about:blank`: the title says all that a program needs."""
    title: str
    """The phrase of the HTTP status."""
    status: int
    """The HTTP status."""
    detail: str
    """A sentence for a person."""
    instance: str
    """Path of the request."""
    errors: tuple[InvalidField, ...] = ()
    """The parts that are invalid; empty for other failures."""
