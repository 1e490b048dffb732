"""Published values and the kernel's counters as Prometheus metrics.

Every host would otherwise show every backend of the cluster: series of a VIP and of its backends
appear with this host's first connection to them. Connect times are added up over the backends of a
VIP; `/api/vips` has them for each backend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from api import views
from minuteman.model import BackendCounters, Counters, Endpoint, Vip
from minuteman.reader import Published

VIP_LABELS = ("vip", "protocol")
BACKEND_LABELS = (*VIP_LABELS, "backend")

REASONS: Mapping[str, str] = {
    "translated": "a connection, or the first datagram of a socket, was given a backend",
    "refused_empty": "refused, the VIP has no backend",
    "refused_unknown": "refused, the address is for VIPs alone and none is at this port",
    "refused_torn": "refused, the VIP's entry was being replaced at each of four tries",
    "retried": "looked up again, the VIP's entry was being replaced",
    "untracked": "no room to note what a socket was given, it is not counted",
    "ejected": "a backend failed too often in a row and gets no connection for a while",
    "last_resort": "every backend that was looked at is ejected, one of them was taken",
    "settled": "a socket was found gone whose end no program saw",
    "event_lost": "somebody listens to events, and there was no room for one",
}
"""What each decision of the kernel programs means."""


@dataclass(frozen=True, slots=True)
class MinutemanCollector(Collector):
    """One scrape: all metrics of one moment."""

    published: Published
    counters: Counters
    now_monotonic: float
    version: str

    def collect(self) -> Iterator[Metric]:
        """Each metric family once."""
        yield InfoMetricFamily(
            "minuteman_build", "Version of the agent.", value={"version": self.version}
        )
        yield from _state(self.published)
        yield from _sources(self.published, self.now_monotonic)
        yield _decisions(self.counters)
        used = _used(self.published, self.counters)
        yield from _connections(used)
        yield from _traffic(used)
        yield _connect_seconds(used)


def _state(published: Published) -> Iterator[Metric]:
    vips = published.vips.values()
    tiers = Counter(backend.tier for vip in vips for backend in vip.backends)
    yield GaugeMetricFamily(
        "minuteman_generation", "Changes of what the kernel has.", value=published.generation
    )
    yield GaugeMetricFamily("minuteman_vips", "VIPs that the kernel has.", value=len(vips))
    yield GaugeMetricFamily(
        "minuteman_vips_refusing",
        "VIPs without a backend.",
        value=sum(not vip.backends for vip in vips),
    )
    backends = GaugeMetricFamily(
        "minuteman_backends", "Members of VIPs, by tier.", labels=("tier",)
    )
    for tier, name in views.TIER_NAMES.items():
        backends.add_metric((name,), tiers[tier])
    yield backends
    yield GaugeMetricFamily(
        "minuteman_programs_attached",
        "1 when every program is in effect on the cgroup.",
        value=published.attached,
    )
    yield GaugeMetricFamily(
        "minuteman_problems",
        "Tasks, labels and units that were skipped, kept or refused.",
        value=len(published.problems),
    )
    yield GaugeMetricFamily(
        "minuteman_removals_withheld",
        "Removals that are not believed yet.",
        value=published.withheld,
    )
    yield CounterMetricFamily(
        "minuteman_drift",
        "How often the kernel's maps were found to differ from what was written.",
        value=published.drift,
    )
    yield CounterMetricFamily(
        "minuteman_attachment_repairs",
        "How often programs were found not to be in effect, and were attached again.",
        value=published.repairs,
    )
    yield CounterMetricFamily(
        "minuteman_sockets_ended",
        "Sockets that were ended because their backend had gone.",
        value=published.sockets_ended,
    )
    yield GaugeMetricFamily(
        "minuteman_vips_without_room",
        "VIPs that do not fit into the kernel's maps: it has what it had of them.",
        value=published.without_room,
    )


def _sources(published: Published, now_monotonic: float) -> Iterator[Metric]:
    fresh = GaugeMetricFamily(
        "minuteman_source_fresh", "1 when what the source says is current.", labels=("source",)
    )
    stale_seconds = GaugeMetricFamily(
        "minuteman_source_stale_seconds",
        "For how long it has not been current; 0 when it is.",
        labels=("source",),
    )
    for name, source in sorted(published.sources.items()):
        age = max(0.0, now_monotonic - source.since_monotonic)
        fresh.add_metric((name,), source.fresh)
        stale_seconds.add_metric((name,), 0.0 if source.fresh else age)
    yield fresh
    yield stale_seconds


def _decisions(counters: Counters) -> Metric:
    meanings = "; ".join(f"{reason}: {meaning}" for reason, meaning in REASONS.items())
    decisions = CounterMetricFamily(
        "minuteman_decisions",
        f"Decisions of the kernel programs, by reason. {meanings}.",
        labels=("reason",),
    )
    for reason, count in sorted(counters.reasons.items()):
        decisions.add_metric((reason,), count)
    return decisions


@dataclass(frozen=True, slots=True)
class _UsedVip:
    """A VIP that this host has connected to, with the backends that it used."""

    labels: tuple[str, str]
    backends: tuple[tuple[str, BackendCounters], ...]


def _used(published: Published, counters: Counters) -> list[_UsedVip]:
    used = []
    for vip in published.vips.values():
        backends = tuple(_used_backends(vip, counters))
        if backends:
            used.append(_UsedVip((str(vip.key), vip.key.transport), backends))
    return used


def _used_backends(vip: Vip, counters: Counters) -> Iterator[tuple[str, BackendCounters]]:
    for backend in vip.backends:
        counted = views.backend_counters(counters, vip.frontends, backend.endpoint)
        if _was_used(counted):
            yield _host_port(backend.endpoint), counted


def _was_used(counted: BackendCounters) -> bool:
    """Whether a connection was ever given to it, one that still waits for an answer too."""
    numbers = (
        counted.attempts,
        counted.connecting,
        counted.active,
        counted.successes,
        counted.failures,
    )
    return any(numbers) or counted.ejected


def _host_port(endpoint: Endpoint) -> str:
    address = endpoint.address
    return f"[{address}]:{endpoint.port}" if address.version == 6 else f"{address}:{endpoint.port}"


def _connections(used: Iterable[_UsedVip]) -> Iterator[Metric]:
    attempts = CounterMetricFamily(
        "minuteman_connect_attempts",
        "How often a backend was given to a connection, or to a UDP socket, however that ended.",
        labels=BACKEND_LABELS,
    )
    connects = CounterMetricFamily(
        "minuteman_connects",
        "Connects through a VIP that a backend accepted or not.",
        labels=(*BACKEND_LABELS, "result"),
    )
    connecting = GaugeMetricFamily(
        "minuteman_connections_connecting",
        "Connections that wait for the backend's answer.",
        labels=BACKEND_LABELS,
    )
    active = GaugeMetricFamily(
        "minuteman_connections_active", "Connections that are open.", labels=BACKEND_LABELS
    )
    ejected = GaugeMetricFamily(
        "minuteman_backend_ejected",
        "1 when it failed too often in a row: this host gives it no connection for a while.",
        labels=BACKEND_LABELS,
    )
    for vip in used:
        for backend, counted in vip.backends:
            labels = (*vip.labels, backend)
            attempts.add_metric(labels, counted.attempts)
            connects.add_metric((*labels, "success"), counted.successes)
            connects.add_metric((*labels, "failure"), counted.failures)
            connecting.add_metric(labels, counted.connecting)
            active.add_metric(labels, counted.active)
            ejected.add_metric(labels, counted.ejected)
    yield attempts
    yield connects
    yield connecting
    yield active
    yield ejected


def _traffic(used: Iterable[_UsedVip]) -> Iterator[Metric]:
    size = CounterMetricFamily(
        "minuteman_bytes",
        "Bytes of TCP connections through a VIP, added when a connection closes.",
        labels=(*BACKEND_LABELS, "direction"),
    )
    retransmits = CounterMetricFamily(
        "minuteman_retransmits",
        "Segments sent again by TCP connections through a VIP, added when a connection closes.",
        labels=BACKEND_LABELS,
    )
    for vip in used:
        for backend, counted in vip.backends:
            labels = (*vip.labels, backend)
            size.add_metric((*labels, "sent"), counted.bytes_sent)
            size.add_metric((*labels, "received"), counted.bytes_received)
            retransmits.add_metric(labels, counted.retransmits)
    yield size
    yield retransmits


def _connect_seconds(used: Iterable[_UsedVip]) -> Metric:
    seconds = HistogramMetricFamily(
        "minuteman_connect_seconds",
        "Time from connect() to the backend's answer.",
        labels=VIP_LABELS,
    )
    for vip in used:
        histogram = views.add_histograms(counted.connect_log2_us for _, counted in vip.backends)
        if histogram:
            # No sum: the kernel keeps buckets only, so Prometheus can tell quantiles, not a mean.
            seconds.add_metric(vip.labels, cumulative_buckets(histogram), sum_value=None)
    return seconds


def cumulative_buckets(log2_us: tuple[int, ...]) -> list[tuple[str, float]]:
    """Prometheus buckets, `(le in seconds, connects up to it)`, of a histogram of the kernel's."""
    bounds = [str(2**i / 1_000_000) for i in range(len(log2_us) - 1)]
    return list(zip([*bounds, "+Inf"], accumulate(log2_us), strict=True))
