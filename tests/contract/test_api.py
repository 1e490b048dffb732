"""The REST interface over values in memory: every route, every error."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter

from api import problem_json, schemas
from api.app import create_app
from api.metrics import REASONS, cumulative_buckets
from minuteman import __version__
from minuteman.dataplane import layout
from minuteman.errors import (
    ConfigError,
    DataplaneError,
    LayoutError,
    MinutemanError,
    ModelError,
    PrivilegeError,
    RunningError,
    SourceError,
    UnsupportedKernelError,
)
from minuteman.model import BackendCounters, Counters, SourceHealth, Vip, VipKey, VipName
from minuteman.reader import Event, Lost, Published
from tests.contract import published as sample
from tests.contract.published import FakeReader

ERRORS: list[MinutemanError] = [
    ModelError("port", 0, "is not a port"),
    ConfigError("zookeeper: there is no such host"),
    PrivilegeError("run it as root"),
    RunningError("another agent runs"),
    SourceError("the agent does not answer"),
    DataplaneError("read counters", errno.EPERM),
    LayoutError("vips", 0),
    UnsupportedKernelError("load", errno.EINVAL),
    MinutemanError("something else"),
]


def request(
    path: str,
    reader: FakeReader | None = None,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """The answer of an application of its own."""

    async def send() -> httpx.Response:
        app = create_app(reader or FakeReader())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://minuteman") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


def problem(response: httpx.Response) -> schemas.ProblemDetails:
    """The body of a failure; the form itself is checked here."""
    assert response.headers["content-type"] == problem_json.MEDIA_TYPE
    details = TypeAdapter(schemas.ProblemDetails).validate_json(response.content, strict=True)
    assert details.status == response.status_code
    assert details.type == "about:blank"
    assert details.detail
    return details


# ---- /v1 -----------------------------------------------------------------------------------------
def test_v1_vips_has_the_shape_of_dcos_net() -> None:
    response = request("/v1/vips")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == [
        {
            "vip": "api.hello-world.dev.marathon.l4lb.thisdcos.directory:8080",
            "protocol": "tcp",
            "backend": [{"ip": "10.0.0.1", "port": 31003}],
        },
        {
            "vip": "web.marathon.l4lb.thisdcos.directory:80",
            "protocol": "tcp",
            "backend": [
                {"ip": "9.0.1.6", "port": 8080},
                {"ip": "10.0.0.1", "port": 31001},
                {"ip": "10.0.0.2", "port": 31777},
            ],
        },
        {
            "vip": "1.2.3.4:53",
            "protocol": "udp",
            "backend": [{"ip": "10.0.0.1", "port": 53}],
        },
        {
            "vip": "1.2.3.4:5000",
            "protocol": "tcp",
            "backend": [{"ip": "10.0.0.1", "port": 31002}],
        },
        {
            "vip": "[fd01:c::1]:80",
            "protocol": "tcp",
            "backend": [{"ip": "fd00::7", "port": 8080}],
        },
    ]


def test_v1_vips_needs_no_counters() -> None:
    assert request("/v1/vips", FakeReader(error=SourceError("silent"))).status_code == 200


def test_the_entity_tag_changes_with_the_answer_only() -> None:
    tag = request("/v1/vips").headers["etag"]
    later = FakeReader(replace(sample.published(8), problems=()))
    assert request("/v1/vips", later).headers["etag"] == tag

    fewer = {sample.WEB: later.value.vips[sample.WEB]}
    other = request("/v1/vips", FakeReader(replace(sample.published(9), vips=fewer)))
    assert other.headers["etag"] != tag


@pytest.mark.parametrize("asked", ["{tag}", 'W/{tag}, "x"', '"x", {tag}', "*"])
def test_a_known_entity_tag_is_not_sent_again(asked: str) -> None:
    tag = request("/v1/vips").headers["etag"]
    response = request("/v1/vips", headers={"If-None-Match": asked.format(tag=tag)})
    assert response.status_code == 304
    assert response.headers["etag"] == tag
    assert response.content == b""


def test_another_entity_tag_gets_the_whole_answer() -> None:
    assert request("/v1/vips", headers={"If-None-Match": '"x"'}).status_code == 200


def test_v1_version() -> None:
    assert request("/v1/version").json() == {"Service": "minuteman", "Version": __version__}


# ---- /api/vips -----------------------------------------------------------------------------------
def names(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [f"{vip['protocol']} {vip['vip']}" for vip in response.json()["vips"]]


def test_all_vips_are_listed_those_that_refuse_too() -> None:
    response = request("/api/vips")
    assert names(response) == [
        "tcp api.hello-world.dev.marathon.l4lb.thisdcos.directory:8080",
        "tcp sleepy.marathon.l4lb.thisdcos.directory:80",
        "tcp web.marathon.l4lb.thisdcos.directory:80",
        "udp 1.2.3.4:53",
        "tcp 1.2.3.4:5000",
        "tcp [fd01:c::1]:80",
    ]
    assert response.json()["generation"] == 7
    TypeAdapter(schemas.VipList).validate_json(response.content)


def test_a_vip_with_everything() -> None:
    assert request("/api/vips/tcp/web.marathon:80").json() == {
        "vip": "web.marathon.l4lb.thisdcos.directory:80",
        "protocol": "tcp",
        "port": 80,
        "names": ["web.marathon.l4lb.thisdcos.directory"],
        "addresses": ["11.0.0.37", "fd01:c::25"],
        "framework": "marathon",
        "affinity_seconds": 300,
        "backends": [
            {
                "address": "9.0.1.6",
                "port": 8080,
                "weight": 1,
                "tier": "draining",
                "ejected": False,
                "source": "marathon",
                "framework_id": sample.FRAMEWORK_ID,
                "task_id": "web.3",
                "task_name": "web",
                "task_state": "killing",
                "healthy": False,
                "agent_id": sample.AGENT_ID,
                "agent_address": "10.0.0.9",
                "counters": {
                    "connecting": 0,
                    "active": 0,
                    "attempts": 0,
                    "successes": 0,
                    "failures": 0,
                    "consecutive_failures": 0,
                    "bytes_sent": 0,
                    "bytes_received": 0,
                    "retransmits": 0,
                    "connect_log2_us": [],
                },
            },
            {
                "address": "10.0.0.1",
                "port": 31001,
                "weight": 2,
                "tier": "up",
                "ejected": False,
                "source": "marathon",
                "framework_id": sample.FRAMEWORK_ID,
                "task_id": "web.1",
                "task_name": "web",
                "task_state": "running",
                "healthy": True,
                "agent_id": sample.AGENT_ID,
                "agent_address": "10.0.0.9",
                "counters": {
                    "connecting": 1,
                    "active": 3,
                    "attempts": 41,
                    "successes": 33,
                    "failures": 5,
                    "consecutive_failures": 2,
                    "bytes_sent": 3_030,
                    "bytes_received": 2_500_500,
                    "retransmits": 8,
                    "connect_log2_us": [1, 11, 21],
                },
            },
            {
                "address": "10.0.0.2",
                "port": 31777,
                "weight": 1,
                "tier": "maybe",
                "ejected": True,
                "source": "marathon",
                "framework_id": sample.FRAMEWORK_ID,
                "task_id": "web.2",
                "task_name": "web",
                "task_state": "unreachable",
                "healthy": None,
                "agent_id": sample.AGENT_ID,
                "agent_address": "10.0.0.9",
                "counters": {
                    "connecting": 0,
                    "active": 0,
                    "attempts": 11,
                    "successes": 5,
                    "failures": 6,
                    "consecutive_failures": 6,
                    "bytes_sent": 0,
                    "bytes_received": 0,
                    "retransmits": 0,
                    "connect_log2_us": [0, 0, 5],
                },
            },
        ],
    }


def test_a_backend_whose_task_is_not_known() -> None:
    reader = FakeReader(replace(sample.published(), tasks={}))
    backend = request("/api/vips/tcp/1.2.3.4:5000", reader).json()["backends"][0]
    assert backend["task_id"] == "literal.1"
    assert backend["task_name"] is backend["task_state"] is backend["agent_address"] is None


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("tcp/web.marathon:80", sample.WEB),
        ("tcp/WEB.Marathon:80", sample.WEB),
        ("tcp/web.marathon.l4lb.thisdcos.directory:80", sample.WEB),
        ("tcp/web.marathon.l4lb.thisdcos.directory.:80", sample.WEB),
        ("tcp/11.0.0.37:80", sample.WEB),
        ("tcp/[fd01:c::25]:80", sample.WEB),
        ("tcp/api.hello-world.dev.marathon:8080", sample.DOTTED),
        ("tcp/sleepy.marathon:80", sample.EMPTY),
        ("tcp/1.2.3.4:5000", sample.LITERAL),
        ("udp/1.2.3.4:53", sample.RESOLVER),
        ("tcp/[fd01:c::1]:80", sample.LITERAL6),
        ("tcp/[fd01:c:0:0::1]:80", sample.LITERAL6),
        ("tcp/%5Bfd01%3Ac%3A%3A1%5D%3A80", sample.LITERAL6),
    ],
)
def test_a_vip_is_found_by(path: str, found: VipKey) -> None:
    response = request(f"/api/vips/{path}")
    assert response.status_code == 200, response.text
    assert (response.json()["vip"], response.json()["protocol"]) == (str(found), found.transport)


@pytest.mark.parametrize(
    "path",
    [
        "tcp/web.marathon:81",
        "udp/web.marathon:80",
        "tcp/web:80",
        "tcp/1.2.3.5:5000",
        "tcp/[::1]:80",
    ],
)
def test_a_vip_that_does_not_exist(path: str) -> None:
    response = request(f"/api/vips/{path}")
    assert response.status_code == 404
    assert path.partition("/")[2] in problem(response).detail


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("tcp/web.marathon", "vip"),
        ("tcp/web.marathon:", "vip"),
        ("tcp/web.marathon:0", "vip"),
        ("tcp/web.marathon:65536", "vip"),
        ("tcp/web.marathon:+80", "vip"),
        ("tcp/web.marathon:٨٠", "vip"),
        ("tcp/:80", "vip"),
        ("tcp/...:80", "vip"),
        ("tcp/we b:80", "vip"),
        ("tcp/fd01:c::1:80", "vip"),
        ("tcp/[fd01:c::1:80", "vip"),
        ("tcp/[web]:80", "vip"),
        (f"tcp/{'a' * 254}:80", "vip"),
        ("sctp/web.marathon:80", "path.protocol"),
    ],
)
def test_a_vip_that_cannot_be(path: str, field: str) -> None:
    response = request(f"/api/vips/{path}")
    assert response.status_code == 422
    assert [error.field for error in problem(response).errors] == [field]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("name=web", ["tcp web.marathon.l4lb.thisdcos.directory:80"]),
        ("name=WEB.marathon", ["tcp web.marathon.l4lb.thisdcos.directory:80"]),
        ("name=11.0.0.37", ["tcp web.marathon.l4lb.thisdcos.directory:80"]),
        ("name=1.2.3.4", ["udp 1.2.3.4:53", "tcp 1.2.3.4:5000"]),
        ("name=1.2.3.4&protocol=udp", ["udp 1.2.3.4:53"]),
        ("framework=", ["udp 1.2.3.4:53"]),
        ("framework=kafka", []),
    ],
)
def test_the_list_is_filtered(query: str, found: list[str]) -> None:
    assert names(request(f"/api/vips?{query}")) == found


@pytest.mark.parametrize("query", ["protocol=sctp", "nmae=web"])
def test_a_filter_that_cannot_be(query: str) -> None:
    response = request(f"/api/vips?{query}")
    assert response.status_code == 422
    assert problem(response).errors[0].field == f"query.{query.partition('=')[0]}"


def many(count: int) -> Iterator[tuple[VipKey, Vip]]:
    for number in range(count):
        key = VipKey(VipName(f"app{number}", "marathon"), 80, "tcp")
        yield key, sample.vip(key, (), sample.backend("10.0.0.1", 31001, f"app{number}.1"))


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 1000])
def test_a_list_of_any_length_is_one_document(count: int) -> None:
    response = request("/api/vips", FakeReader(replace(sample.published(), vips=dict(many(count)))))
    assert len(response.json()["vips"]) == count


# ---- /api/health, /api/problems ------------------------------------------------------------------
def test_health_of_a_host_that_is_well() -> None:
    response = request("/api/health")
    assert response.status_code == 200
    health = TypeAdapter(schemas.Health).validate_json(response.content)
    assert (health.status, health.reasons) == ("ok", ())
    assert (health.generation, health.problems, health.withheld) == (7, 1, 0)
    assert (health.without_room, health.repairs) == (0, 0)
    (source,) = health.sources
    assert (source.name, source.fresh) == ("marathon", True)
    assert 90 <= source.seconds <= 95
    since = datetime.strptime(source.since, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert 90 <= (datetime.now(UTC) - since).total_seconds() <= 97


STALE = SourceHealth(fresh=False, since_monotonic=0.0, reason="session lost")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            replace(sample.published(), sources={"marathon": STALE}),
            "source marathon is stale: session lost",
        ),
        (
            replace(sample.published(), attached=False),
            "not every program is in effect on the cgroup",
        ),
        (replace(sample.published(), withheld=3), "3 removals are not believed yet"),
        (
            replace(sample.published(), without_room=2),
            "the maps are full, 2 VIPs keep what they had: raise max_vips, max_slots or "
            "max_backends, /api/problems says which",
        ),
    ],
)
def test_health_of_a_degraded_host(value: Published, reason: str) -> None:
    response = request("/api/health", FakeReader(value))
    assert response.status_code == 503
    assert response.json()["status"] == "degraded"
    assert response.json()["reasons"] == [reason]


def test_before_the_first_report_nothing_is_claimed() -> None:
    reader = FakeReader(Published())
    health = request("/api/health", reader)
    assert health.status_code == 503
    assert health.json()["status"] == "starting"
    for path in (
        "/v1/vips",
        "/api/vips",
        "/api/problems",
        "/api/vips/tcp/web.marathon:80",
        "/metrics",
    ):
        response = request(path, reader)
        assert response.status_code == 503
        assert "has not reported" in problem(response).detail


def test_problems() -> None:
    assert request("/api/problems").json() == {
        "count": 1,
        "problems": [
            {
                "where": "/marathon/state/apps/a",
                "subject": "",
                "field": "container",
                "reason": "is not readable.",
            }
        ],
    }


# ---- /metrics ------------------------------------------------------------------------------------
def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Value by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_of_the_state() -> None:
    values = samples(request("/metrics").text)
    assert values["minuteman_build_info", (("version", __version__),)] == 1
    assert values["minuteman_generation", ()] == 7
    assert values["minuteman_vips", ()] == 6
    assert values["minuteman_vips_refusing", ()] == 1
    assert values["minuteman_backends", (("tier", "up"),)] == 5
    assert values["minuteman_backends", (("tier", "maybe"),)] == 1
    assert values["minuteman_backends", (("tier", "draining"),)] == 1
    assert values["minuteman_programs_attached", ()] == 1
    assert values["minuteman_problems", ()] == 1
    assert values["minuteman_removals_withheld", ()] == 0
    assert values["minuteman_source_fresh", (("source", "marathon"),)] == 1
    assert values["minuteman_source_stale_seconds", (("source", "marathon"),)] == 0
    assert values["minuteman_decisions_total", (("reason", "refused_empty"),)] == 2
    assert values["minuteman_drift_total", ()] == 0
    assert values["minuteman_attachment_repairs_total", ()] == 0
    assert values["minuteman_vips_without_room", ()] == 0
    assert values["minuteman_sockets_ended_total", ()] == 0


def test_metrics_of_what_was_repaired_and_of_what_did_not_fit() -> None:
    value = replace(sample.published(), drift=1, repairs=2, without_room=3)
    values = samples(request("/metrics", FakeReader(value)).text)
    assert values["minuteman_drift_total", ()] == 1
    assert values["minuteman_attachment_repairs_total", ()] == 2
    assert values["minuteman_vips_without_room", ()] == 3
    health = request("/api/health", FakeReader(value)).json()
    assert (health["repairs"], health["without_room"]) == (2, 3)


def test_metrics_of_sockets_whose_backends_have_gone() -> None:
    reader = FakeReader(replace(sample.published(), sockets_ended=7))
    values = samples(request("/metrics", reader).text)
    assert values["minuteman_sockets_ended_total", ()] == 7


def test_metrics_of_a_stale_source() -> None:
    stale = SourceHealth(fresh=False, since_monotonic=time.monotonic() - 30)
    reader = FakeReader(replace(sample.published(), sources={"marathon": stale}))
    values = samples(request("/metrics", reader).text)
    assert values["minuteman_source_fresh", (("source", "marathon"),)] == 0
    assert 30 <= values["minuteman_source_stale_seconds", (("source", "marathon"),)] < 40


def test_metrics_of_connections_that_this_host_made() -> None:
    values = samples(request("/metrics").text)
    web = (("protocol", "tcp"), ("vip", str(sample.WEB)))
    used = (("backend", "10.0.0.1:31001"), *web)

    def connects(backend: str, result: str) -> float | None:
        labels = (("backend", backend), ("protocol", "tcp"), ("result", result), web[1])
        return values.get(("minuteman_connects_total", labels))

    def moved(direction: str) -> float:
        labels = (("backend", "10.0.0.1:31001"), ("direction", direction), *web)
        return values["minuteman_bytes_total", labels]

    assert values["minuteman_connect_attempts_total", used] == 41
    assert (moved("sent"), moved("received")) == (3_030, 2_500_500)
    assert values["minuteman_retransmits_total", used] == 8
    assert connects("10.0.0.1:31001", "success") == 33
    assert connects("10.0.0.1:31001", "failure") == 5
    assert connects("9.0.1.6:8080", "success") is None, "never used from here"
    assert values["minuteman_connections_active", used] == 3
    assert values["minuteman_connections_connecting", used] == 1
    assert values["minuteman_backend_ejected", used] == 0
    other = (("backend", "10.0.0.2:31777"), *web)
    assert values["minuteman_backend_ejected", other] == 1
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in values.items()
        if name == "minuteman_connect_seconds_bucket"
    }
    assert buckets == {"1e-06": 1, "2e-06": 12, "+Inf": 38}


@pytest.mark.parametrize(
    "counted",
    [BackendCounters(connecting=1), BackendCounters(attempts=1), BackendCounters(ejected=True)],
)
def test_metrics_of_a_backend_that_never_answered(counted: BackendCounters) -> None:
    vip = sample.published().vips[sample.LITERAL]
    used = {(vip.frontends[0], vip.backends[0].endpoint): counted}
    values = samples(request("/metrics", FakeReader(counted=Counters(0.0, used))).text)
    labels = (("backend", "10.0.0.1:31002"), ("protocol", "tcp"), ("vip", str(sample.LITERAL)))
    assert values["minuteman_connections_connecting", labels] == counted.connecting
    assert values["minuteman_backend_ejected", labels] == counted.ejected


def test_metrics_say_what_each_decision_means() -> None:
    assert tuple(REASONS) == layout.REASONS
    [help_line] = [
        line
        for line in request("/metrics").text.splitlines()
        if line.startswith("# HELP minuteman_decisions_total ")
    ]
    for reason, meaning in REASONS.items():
        assert f"{reason}: {meaning}" in help_line


@pytest.mark.parametrize("page", ["observe.md", "runbook.md"])
def test_metrics_that_the_pages_name_exist(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\bminuteman_\w+", text))
    assert named
    assert named <= {name for name, _ in samples(request("/metrics").text)} | {
        family.name for family in text_string_to_metric_families(request("/metrics").text)
    }


def test_metrics_name_ipv6_backends_in_brackets() -> None:
    vip = sample.published().vips[sample.LITERAL6]
    used = {(vip.frontends[0], vip.backends[0].endpoint): BackendCounters(successes=1)}
    text = request("/metrics", FakeReader(counted=Counters(0.0, used))).text
    assert 'backend="[fd00::7]:8080"' in text
    assert "minuteman_connect_seconds_bucket" not in text, "there is no histogram"


def test_metrics_in_either_format() -> None:
    plain = request("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    accept = "application/openmetrics-text; version=1.0.0"
    response = request("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = openmetrics.text_string_to_metric_families(response.text)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} > {"minuteman_vips", "minuteman_connects"}


def test_buckets_are_seconds_and_cumulative() -> None:
    assert cumulative_buckets((1, 0, 2, 4)) == [
        ("1e-06", 1),
        ("2e-06", 1),
        ("4e-06", 3),
        ("+Inf", 7),
    ]


# ---- errors --------------------------------------------------------------------------------------
def all_errors(kind: type[MinutemanError] = MinutemanError) -> set[type[MinutemanError]]:
    return {kind}.union(*(all_errors(below) for below in kind.__subclasses__()))


def test_every_error_of_the_project_is_tried_here() -> None:
    ours = {kind for kind in all_errors() if kind.__module__ == "minuteman.errors"}
    assert ours == {type(error) for error in ERRORS}


@pytest.mark.parametrize(
    "error", [*ERRORS, KeyError("a bug")], ids=lambda error: type(error).__name__
)
def test_every_error_becomes_a_problem(error: Exception) -> None:
    response = request("/api/vips", FakeReader(error=error))
    details = problem(response)
    match error:
        case ModelError():
            assert response.status_code == 422
            assert details.errors == (schemas.InvalidField(error.field, error.reason),)
        case SourceError() | DataplaneError():
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert details.detail == str(error)
        case _:
            assert response.status_code == 500
            assert str(error) not in details.detail, "a bug is for the log"


def test_the_frameworks_own_errors_are_problems() -> None:
    assert problem(request("/nowhere")).title == "Not Found"
    refused = request("/api/vips", method="POST")
    assert problem(refused).status == 405
    assert refused.headers["allow"] == "GET"


# ---- /api/events ---------------------------------------------------------------------------------
def stream(path: str, *told: Event | Lost) -> str:
    """The body of a stream of events."""
    response = request(path, FakeReader(told=told))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    return response.text


def test_events_are_server_sent_until_the_agent_has_gone() -> None:
    body = stream("/api/events", sample.event(1), Lost(3), sample.event(2))
    assert body == 'data: {"number":1}\n\ndata: {"lost":3}\n\ndata: {"number":2}\n\n'


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("vip=web", [1, 3]),
        ("vip=L4LB.thisdcos", [1, 3]),
        ("vip=1.2.3.4", [2]),
        ("backend=31001", [1, 2]),
        ("backend=web.1&outcome=connected", [1, 2]),
        ("outcome=refused", [3]),
        ("vip=nobody", []),
    ],
)
def test_events_can_be_narrowed(query: str, numbers: list[int]) -> None:
    told = (
        sample.event(1),
        sample.event(2, vip="1.2.3.4:5000"),
        sample.event(3, outcome="refused"),
    )
    body = stream(f"/api/events?{query}", *told)
    assert [int(number) for number in re.findall(r'"number":(\d+)', body)] == numbers


def test_too_many_listeners_are_a_503() -> None:
    refused = request("/api/events", FakeReader(error=SourceError("16 listen")))
    assert problem(refused).status == 503


def test_events_are_not_promised_by_an_agent_that_has_not_reported() -> None:
    refused = request("/api/events", FakeReader(Published(), told=(sample.event(1),)))
    assert problem(refused).status == 503


def test_every_outcome_that_the_kernel_tells_of_can_be_asked_for() -> None:
    assert get_args(schemas.Outcome) == layout.KINDS


@pytest.mark.parametrize("query", ["outcome=lost", "name=web"])
def test_a_filter_that_is_none_is_a_422(query: str) -> None:
    refused = problem(request(f"/api/events?{query}", FakeReader(told=(sample.event(1),))))
    assert refused.status == 422
    assert refused.errors[0].field == f"query.{query.partition('=')[0]}"


# ---- documentation -------------------------------------------------------------------------------
def test_every_route_is_described() -> None:
    document = request("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/v1/vips",
        "/v1/version",
        "/api/vips",
        "/api/vips/{protocol}/{vip}",
        "/api/health",
        "/api/problems",
        "/api/events",
        "/metrics",
    }
    for path in document["paths"].values():
        operation = path["get"]
        assert operation["summary"]
        assert operation["description"]
        assert all(parameter["description"] for parameter in operation.get("parameters", ()))
        for status, response in operation["responses"].items():
            assert status < "400" or response["content"], "failures have a body"


def test_every_reference_of_the_description_leads_somewhere() -> None:
    document = request("/openapi.json").json()
    known = document["components"]["schemas"]
    used = set(_references(document))
    assert used == {f"#/components/schemas/{name}" for name in known}
    assert "HTTPValidationError" not in known, "failures have one form"


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(reference := node.get("$ref"), str):
            yield reference
        for value in node.values():
            yield from _references(value)
    if isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_every_field_of_the_answers_is_described() -> None:
    for name, schema in request("/openapi.json").json()["components"]["schemas"].items():
        assert schema["description"], name
        for field, described in schema["properties"].items():
            assert described.get("description"), f"{name}.{field}"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_nothing_from_the_internet(path: str) -> None:
    page = request(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?:|[\"'(]//", page.text)


def test_the_documentation_has_its_files() -> None:
    page = request("/docs").text
    assert 'src="docs/swagger-ui.js"' in page
    assert 'href="docs/swagger-ui.css"' in page
    assert "url: 'openapi.json'" in page
    assert b"SwaggerUIBundle" in request("/docs/swagger-ui.js").content
    assert b".swagger-ui" in request("/docs/swagger-ui.css").content


def test_the_index_leads_to_every_route() -> None:
    page = request("/").text
    for path in json.loads(request("/openapi.json").text)["paths"]:
        assert path in page or "{" in path
