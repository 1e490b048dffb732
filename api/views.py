"""Published values as the shapes that are sent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import zip_longest

from api import schemas
from minuteman.model import (
    Backend,
    BackendCounters,
    Counters,
    Endpoint,
    Frontend,
    SourceHealth,
    Task,
    Tier,
    Vip,
    VipName,
)
from minuteman.reader import Published

NO_COUNTERS = BackendCounters()
TIER_NAMES: Mapping[Tier, schemas.TierName] = {
    Tier.UP: "up",
    Tier.MAYBE: "maybe",
    Tier.DRAINING: "draining",
}


def in_order(vips: Iterable[Vip]) -> list[Vip]:
    """Names by the alphabet, then IPv4, then IPv6 addresses by value; then port and transport."""
    return sorted(vips, key=_position)


def _position(vip: Vip) -> tuple[int, str | bytes, int, str]:
    key = vip.key
    if isinstance(key.host, VipName):
        return 0, key.host.fqdn, key.port, key.transport
    return key.host.version, key.host.packed, key.port, key.transport


# ---- /v1 -----------------------------------------------------------------------------------------
def legacy_vips(published: Published) -> list[schemas.LegacyVip]:
    """VIPs with a backend, as dcos-net shows them."""
    return [_legacy_vip(vip) for vip in in_order(published.vips.values()) if vip.backends]


def _legacy_vip(vip: Vip) -> schemas.LegacyVip:
    return schemas.LegacyVip(
        vip=str(vip.key),
        protocol=vip.key.transport,
        backend=tuple(
            schemas.LegacyBackend(ip=str(backend.endpoint.address), port=backend.endpoint.port)
            for backend in vip.backends
        ),
    )


# ---- /api ----------------------------------------------------------------------------------------
def vip(value: Vip, tasks: Mapping[tuple[str, str], Task], counters: Counters) -> schemas.Vip:
    """`value` with the tasks behind it and what the kernel counted for each."""
    host = value.key.host
    return schemas.Vip(
        vip=str(value.key),
        protocol=value.key.transport,
        port=value.key.port,
        names=(host.fqdn,) if isinstance(host, VipName) else (),
        addresses=tuple(str(frontend.address) for frontend in value.frontends),
        framework=value.framework,
        affinity_seconds=value.affinity_seconds,
        backends=tuple(
            _backend(
                backend,
                tasks.get((backend.framework_id, backend.task_id)),
                backend_counters(counters, value.frontends, backend.endpoint),
            )
            for backend in value.backends
        ),
    )


def _backend(value: Backend, task: Task | None, counted: BackendCounters) -> schemas.Backend:
    return schemas.Backend(
        address=str(value.endpoint.address),
        port=value.endpoint.port,
        weight=value.weight,
        tier=TIER_NAMES[value.tier],
        ejected=counted.ejected,
        source=value.source,
        framework_id=value.framework_id,
        task_id=value.task_id,
        task_name=task.name if task else None,
        task_state=task.state if task else None,
        healthy=task.healthy if task else None,
        agent_id=value.agent_id,
        agent_address=str(task.agent_ip) if task and task.agent_ip else None,
        counters=schemas.Counters(
            connecting=counted.connecting,
            active=counted.active,
            attempts=counted.attempts,
            successes=counted.successes,
            failures=counted.failures,
            consecutive_failures=counted.consecutive_failures,
            bytes_sent=counted.bytes_sent,
            bytes_received=counted.bytes_received,
            retransmits=counted.retransmits,
            connect_log2_us=counted.connect_log2_us,
        ),
    )


def backend_counters(
    counters: Counters, frontends: tuple[Frontend, ...], endpoint: Endpoint
) -> BackendCounters:
    """What was counted for a backend, over all the addresses of its VIP."""
    found = [
        counted
        for frontend in frontends
        if (counted := counters.by_vip_backend.get((frontend, endpoint)))
    ]
    match found:
        case []:
            return NO_COUNTERS
        case [counted]:
            return counted
        case _:
            return _sum(found)


def _sum(parts: list[BackendCounters]) -> BackendCounters:
    return BackendCounters(
        connecting=sum(part.connecting for part in parts),
        active=sum(part.active for part in parts),
        attempts=sum(part.attempts for part in parts),
        successes=sum(part.successes for part in parts),
        failures=sum(part.failures for part in parts),
        consecutive_failures=max(part.consecutive_failures for part in parts),
        connect_log2_us=add_histograms(part.connect_log2_us for part in parts),
        ejected=any(part.ejected for part in parts),
        bytes_sent=sum(part.bytes_sent for part in parts),
        bytes_received=sum(part.bytes_received for part in parts),
        retransmits=sum(part.retransmits for part in parts),
    )


def add_histograms(histograms: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Bucket by bucket."""
    return tuple(sum(bucket) for bucket in zip_longest(*histograms, fillvalue=0))


def problems(published: Published) -> schemas.ProblemList:
    """All problems, with their count."""
    return schemas.ProblemList(
        count=len(published.problems),
        problems=tuple(
            schemas.Problem(
                where=problem.where,
                subject=problem.subject,
                field=problem.field,
                reason=problem.reason,
            )
            for problem in published.problems
        ),
    )


def health(published: Published, now: datetime, now_monotonic: float) -> schemas.Health:
    """What is stale and since when; `now` and `now_monotonic` are the same moment."""
    reasons = tuple(_why_not_ok(published))
    return schemas.Health(
        status=_status(published, reasons),
        reasons=reasons,
        generation=published.generation,
        attached=published.attached,
        withheld=published.withheld,
        without_room=published.without_room,
        repairs=published.repairs,
        problems=len(published.problems),
        sources=tuple(
            _source(name, source, now, now_monotonic)
            for name, source in sorted(published.sources.items())
        ),
    )


def heard_of_agent(published: Published) -> bool:
    """False until the agent's first report: an agent has at least one source."""
    return bool(published.sources)


def _status(published: Published, reasons: tuple[str, ...]) -> schemas.HealthStatus:
    if not heard_of_agent(published):
        return "starting"
    return "degraded" if reasons else "ok"


def _why_not_ok(published: Published) -> Iterator[str]:
    if not heard_of_agent(published):
        yield "the agent has not reported yet"
        return
    for name, source in sorted(published.sources.items()):
        if not source.fresh:
            yield f"source {name} is stale{f': {source.reason}' if source.reason else ''}"
    if not published.attached:
        yield "not every program is in effect on the cgroup"
    if published.withheld:
        yield f"{published.withheld} removals are not believed yet"
    if published.without_room:
        yield (
            f"the maps are full, {published.without_room} VIPs keep what they had: raise max_vips, "
            "max_slots or max_backends, /api/problems says which"
        )


def _source(
    name: str, source: SourceHealth, now: datetime, now_monotonic: float
) -> schemas.SourceState:
    age = timedelta(seconds=max(0.0, now_monotonic - source.since_monotonic))
    return schemas.SourceState(
        name=name,
        fresh=source.fresh,
        since=(now - age).astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        seconds=int(age.total_seconds()),
        reason=source.reason,
    )
