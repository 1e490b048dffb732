"""The routes that programs read."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from api import lookup, problem_json, schemas, views
from api.metrics import MinutemanCollector
from minuteman import __version__
from minuteman.errors import SourceError
from minuteman.model import Counters, Vip
from minuteman.reader import Published, Reader

JSON = "application/json"
VIPS_PER_CHUNK = 100

router = APIRouter()


async def current_reader(request: Request) -> Reader:
    """The reader that the application was created with."""
    reader: Reader = request.app.state.reader
    return reader


CurrentReader = Annotated[Reader, Depends(current_reader)]


async def reported(reader: CurrentReader) -> Published:
    """What the kernel has. Errors: SourceError when that is not known: "nothing" would be a lie."""
    published = reader.current()
    if not views.heard_of_agent(published):
        raise SourceError("the agent has not reported yet")
    return published


Reported = Annotated[Published, Depends(reported)]


class VipFilter(BaseModel):
    """What a VIP has to match; a parameter that is not here is an error."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[
        str, Field(description="Text in the VIP's name or address, such as `web.marathon`.")
    ] = ""
    protocol: Annotated[schemas.Protocol | None, Field(description="`tcp` or `udp`.")] = None
    framework: Annotated[str | None, Field(description="Name of the framework, exactly.")] = None

    def matches(self, vip: Vip) -> bool:
        """Whether all of the filters hold for `vip`."""
        return (
            (not self.name or self._named(vip))
            and self.protocol in (None, vip.key.transport)
            and self.framework in (None, vip.framework)
        )

    def _named(self, vip: Vip) -> bool:
        text = self.name.lower()
        return text in str(vip.key) or any(
            text in str(frontend.address) for frontend in vip.frontends
        )


ProtocolText = Annotated[schemas.Protocol, Path(description="`tcp` or `udp`.")]
VipText = Annotated[
    str,
    Path(
        description="`host:port`. The host is an address, IPv6 in brackets, or a name, "
        "`web.marathon` or fully qualified.",
        examples=["web.marathon:80", "[fd01:c::1]:80"],
    ),
]


def failures(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI describes that a route may answer with `statuses`."""
    return {
        status.value: {
            "description": status.phrase,
            "content": {
                problem_json.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
            },
        }
        for status in statuses
    }


def etag_of(body: bytes) -> str:
    """A strong entity tag: base64 of SHA-1, as dcos-net's looks."""
    digest = hashlib.sha1(body, usedforsecurity=False).digest()
    return f'"{base64.b64encode(digest).decode()}"'


# ---- /v1: what clients of dcos-net read ----------------------------------------------------------
@router.get(
    "/v1/vips",
    tags=["dcos-net"],
    summary="VIPs with a backend, in dcos-net's shape",
    response_model=list[schemas.LegacyVip],
    responses={
        304: {"description": "Not modified: the entity tag is in `If-None-Match`."},
        **failures(HTTPStatus.SERVICE_UNAVAILABLE),
    },
)
async def list_legacy_vips(published: Reported, request: Request) -> Response:
    """The one difference to dcos-net: a literal IPv6 VIP is bracketed, `[fd01:c::1]:80`.

    The entity tag changes with the answer, and is the same on hosts that have the same VIPs.
    """
    body = msgspec.json.encode(views.legacy_vips(published))
    etag = etag_of(body)
    known = {tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")}
    if known & {etag, f"W/{etag}", "*"}:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
    return Response(body, media_type=JSON, headers={"ETag": etag})


@router.get(
    "/v1/version",
    tags=["dcos-net"],
    summary="Name and version of the service",
    response_model=schemas.Version,
)
async def show_version() -> Response:
    """Name and version of what answers here."""
    version = schemas.Version(Service="minuteman", Version=__version__)
    return Response(msgspec.json.encode(version), media_type=JSON)


# ---- /api ----------------------------------------------------------------------------------------
@router.get(
    "/api/vips",
    tags=["minuteman"],
    summary="All VIPs, with their backends and counters",
    response_model=schemas.VipList,
    responses=failures(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def list_vips(
    published: Reported, reader: CurrentReader, wanted: Annotated[VipFilter, Query()]
) -> Response:
    """VIPs without a backend are here too: they refuse connections."""
    counters = await reader.counters()
    vips = views.in_order(vip for vip in published.vips.values() if wanted.matches(vip))
    return StreamingResponse(_vip_list(vips, published, counters), media_type=JSON)


async def _vip_list(
    vips: Sequence[Vip], published: Published, counters: Counters
) -> AsyncIterator[bytes]:
    """A `VipList` as JSON, in pieces: a long list is never in memory at once.

    Other requests are served between two pieces.
    """
    head = b'{"generation":%d,"counted_monotonic":%f,"vips":['
    yield head % (published.generation, counters.taken_monotonic)
    for start in range(0, len(vips), VIPS_PER_CHUNK):
        chunk = vips[start : start + VIPS_PER_CHUNK]
        shapes = [views.vip(vip, published.tasks, counters) for vip in chunk]
        array = msgspec.json.encode(shapes)
        yield (b"," if start else b"") + array[1:-1]
        await asyncio.sleep(0)
    yield b"]}"


@router.get(
    "/api/vips/{protocol}/{vip}",
    tags=["minuteman"],
    summary="One VIP, with its backends and counters",
    response_model=schemas.Vip,
    responses=failures(
        HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
    ),
)
async def show_vip(
    published: Reported, reader: CurrentReader, protocol: ProtocolText, vip: VipText
) -> Response:
    """By name or by address; the address of a named VIP finds it too."""
    found = lookup.find_vip(published, protocol, vip)
    if found is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no VIP {protocol} {vip}.")
    shape = views.vip(found, published.tasks, await reader.counters())
    return Response(msgspec.json.encode(shape), media_type=JSON)


@router.get(
    "/api/problems",
    tags=["minuteman"],
    summary="What was skipped, kept or refused, and why",
    response_model=schemas.ProblemList,
    responses=failures(HTTPStatus.SERVICE_UNAVAILABLE),
)
async def list_problems(published: Reported) -> Response:
    """Each one costs at most the task or label that it is about."""
    return Response(msgspec.json.encode(views.problems(published)), media_type=JSON)


@router.get(
    "/api/health",
    tags=["minuteman"],
    summary="What is stale, and since when",
    response_model=schemas.Health,
    responses={
        503: {"model": schemas.Health, "description": "Degraded, or starting: `reasons` says why."}
    },
)
async def show_health(reader: CurrentReader) -> Response:
    """Whether this host's VIPs are as the cluster wants them.

    A degraded host still serves what it last knew.
    """
    health = views.health(reader.current(), datetime.now(UTC), time.monotonic())
    status = HTTPStatus.OK if health.status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(msgspec.json.encode(health), media_type=JSON, status_code=status)


# ---- metrics -------------------------------------------------------------------------------------
@router.get(
    "/metrics",
    tags=["metrics"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus text, or OpenMetrics when `Accept` asks for it.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **failures(HTTPStatus.SERVICE_UNAVAILABLE),
    },
)
async def show_metrics(published: Reported, reader: CurrentReader, request: Request) -> Response:
    """Series of a VIP and of its backends appear with this host's first connection to them."""
    collector = MinutemanCollector(
        published, await reader.counters(), time.monotonic(), __version__
    )
    encode, media_type = choose_encoder(request.headers.get("Accept", ""))
    # In a thread: tens of thousands of lines would keep other requests waiting.
    text = await asyncio.to_thread(encode, collector)
    return Response(text, headers={"Content-Type": media_type})
