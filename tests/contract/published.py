"""Values as the agent publishes them, and a reader of such values."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

from minuteman.model import (
    Backend,
    BackendCounters,
    Counters,
    Endpoint,
    Frontend,
    Problem,
    SourceHealth,
    Task,
    TaskState,
    Tier,
    Transport,
    Vip,
    VipKey,
    VipName,
)
from minuteman.reader import Event, Lost, Published

FRAMEWORK_ID = "20a5c1f0-0000"
AGENT_ID = "20a5c1f0-S1"


def endpoint(address: str, port: int, transport: Transport = "tcp") -> Endpoint:
    return Endpoint(ip_address(address).packed, port, transport)


def backend(
    address: str, port: int, task_id: str, tier: Tier = Tier.UP, weight: int = 1
) -> Backend:
    return Backend(
        endpoint=endpoint(address, port),
        weight=weight,
        tier=tier,
        source="marathon",
        framework_id=FRAMEWORK_ID,
        task_id=task_id,
        agent_id=AGENT_ID,
    )


def vip(
    key: VipKey,
    addresses: tuple[str, ...],
    *backends: Backend,
    framework: str = "marathon",
    affinity_seconds: int = 0,
) -> Vip:
    frontends = tuple(Frontend(ip_address(a), key.port, key.transport) for a in addresses)
    return Vip(key, frontends, backends, framework, affinity_seconds)


def task(task_id: str, state: TaskState = "running", *, healthy: bool | None = None) -> Task:
    return Task(
        framework_id=FRAMEWORK_ID,
        id=task_id,
        framework="marathon",
        name=task_id.partition(".")[0],
        agent_id=AGENT_ID,
        agent_ip=ip_address("10.0.0.9"),
        ips=(),
        state=state,
        healthy=healthy,
        ports=(),
    )


WEB = VipKey(VipName("web", "marathon"), 80, "tcp")
DOTTED = VipKey(VipName("api.hello-world", "dev.marathon"), 8080, "tcp")
EMPTY = VipKey(VipName("sleepy", "marathon"), 80, "tcp")
LITERAL = VipKey(ip_address("1.2.3.4"), 5000, "tcp")
RESOLVER = VipKey(ip_address("1.2.3.4"), 53, "udp")
LITERAL6 = VipKey(ip_address("fd01:c::1"), 80, "tcp")

VIPS = (
    vip(LITERAL6, ("fd01:c::1",), backend("fd00::7", 8080, "six.1")),
    vip(LITERAL, ("1.2.3.4",), backend("10.0.0.1", 31002, "literal.1", weight=0)),
    vip(RESOLVER, ("1.2.3.4",), backend("10.0.0.1", 53, "resolver.1"), framework=""),
    vip(EMPTY, ("11.5.5.5",)),
    vip(DOTTED, (), backend("10.0.0.1", 31003, "hello.1")),
    vip(
        WEB,
        ("11.0.0.37", "fd01:c::25"),
        backend("9.0.1.6", 8080, "web.3", Tier.DRAINING),
        backend("10.0.0.1", 31001, "web.1", weight=2),
        backend("10.0.0.2", 31777, "web.2", Tier.MAYBE),
        affinity_seconds=300,
    ),
)
TASKS = (
    task("web.1", healthy=True),
    task("web.2", "unreachable"),
    task("web.3", "killing", healthy=False),
    task("literal.1"),
    task("resolver.1"),
    task("hello.1"),
)
WEB_FRONTEND, WEB_FRONTEND6 = VIPS[-1].frontends
COUNTERS = Counters(
    taken_monotonic=0.0,
    by_vip_backend={
        (WEB_FRONTEND, endpoint("10.0.0.1", 31001)): BackendCounters(
            connecting=1,
            active=2,
            successes=30,
            failures=4,
            consecutive_failures=1,
            attempts=36,
            bytes_sent=3_000,
            bytes_received=2_500_000,
            retransmits=7,
            connect_log2_us=(0, 10, 20),
        ),
        (WEB_FRONTEND6, endpoint("10.0.0.1", 31001)): BackendCounters(
            active=1,
            successes=3,
            failures=1,
            consecutive_failures=2,
            attempts=5,
            bytes_sent=30,
            bytes_received=500,
            retransmits=1,
            connect_log2_us=(1, 1, 1),
        ),
        (WEB_FRONTEND, endpoint("10.0.0.2", 31777)): BackendCounters(
            successes=5,
            failures=6,
            consecutive_failures=6,
            attempts=11,
            connect_log2_us=(0, 0, 5),
            ejected=True,
        ),
    },
    reasons={"translated": 39, "refused_empty": 2},
)


def published(generation: int = 7) -> Published:
    """Six VIPs of every kind."""
    return Published(
        generation=generation,
        vips={vip.key: vip for vip in VIPS},
        tasks={(task.framework_id, task.id): task for task in TASKS},
        problems=(Problem("/marathon/state/apps/a", "", "container", "is not readable."),),
        sources={"marathon": SourceHealth(fresh=True, since_monotonic=time.monotonic() - 90)},
        attached=True,
    )


@dataclass(slots=True)
class FakeReader:
    """A `Reader` of values in memory."""

    value: Published = field(default_factory=published)
    counted: Counters = COUNTERS
    error: Exception | None = None
    """What asking for counters raises, and listening."""
    told: tuple[Event | Lost, ...] = ()
    """What a listener hears."""

    def current(self) -> Published:
        return self.value

    async def counters(self) -> Counters:
        if self.error:
            raise self.error
        return self.counted

    async def changed(self, after: int) -> Published:
        assert self.value.generation > after, "values in memory do not change by themselves"
        return self.value

    @contextmanager
    def listen(self) -> Iterator[FakeListener]:
        if self.error:
            raise self.error
        yield FakeListener(list(self.told))


@dataclass(slots=True)
class FakeListener:
    """Hears what it has, one after another; then the agent is gone."""

    events: list[Event | Lost]

    async def heard(self, seconds: float) -> Sequence[Event | Lost] | None:
        assert seconds <= 15.0
        return [self.events.pop(0)] if self.events else None


def event(number: int, vip: str = "11.0.0.37:80", outcome: str = "connected") -> Event:
    """One of a backend of `WEB`."""
    return Event(
        json=b'{"number":%d}' % number,
        vip=vip,
        name=str(WEB) if vip == "11.0.0.37:80" else None,
        backend="10.0.0.1:31001" if outcome != "refused" else None,
        task_id="web.1" if outcome != "refused" else None,
        outcome=outcome,
    )
