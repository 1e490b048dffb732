"""Connection events, as long as somebody listens: server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from api import schemas
from api.routes import CurrentReader, Reported, failures
from minuteman.reader import Event, Listener, Lost

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b":\n\n"
"""A comment."""
HEARTBEAT_SECONDS = 15.0

router = APIRouter()


class EventFilter(BaseModel):
    """What an event has to match; a parameter that is not here is an error."""

    model_config = ConfigDict(extra="forbid")

    vip: Annotated[
        str, Field(description="Text in the VIP's name or address, such as `web.marathon`.")
    ] = ""
    backend: Annotated[
        str, Field(description="Text in the backend's address, or in the id of its task.")
    ] = ""
    outcome: Annotated[
        schemas.Outcome | None, Field(description="What became of the connection.")
    ] = None

    def matches(self, event: Event | Lost) -> bool:
        """Whether all of the filters hold; what is lost could have been anything."""
        return isinstance(event, Lost) or (
            self.outcome in (None, event.outcome)
            and _is_in(self.vip, event.vip, event.name)
            and _is_in(self.backend, event.backend, event.task_id)
        )


def _is_in(text: str, *values: str | None) -> bool:
    """Whether `text` is in one of `values`, upper or lower case."""
    return not text or any(value and text.lower() in value.lower() for value in values)


async def listening(
    _published: Reported, reader: CurrentReader, wanted: Annotated[EventFilter, Query()]
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body. Its listener is one until the response has ended, whoever ends it."""
    with reader.listen() as listener:
        yield _stream(listener, wanted)


@router.get(
    "/api/events",
    tags=["minuteman"],
    summary="What becomes of connections, from now on",
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events; `data` is one of these objects. A comment comes "
            "when there was none for 15 seconds.",
            "content": {
                MEDIA_TYPE: {
                    "schema": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/Event"},
                            {"$ref": "#/components/schemas/LostEvents"},
                        ]
                    }
                }
            },
        },
        **failures(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
    },
)
async def stream_events(stream: Annotated[AsyncIterator[bytes], Depends(listening)]) -> Response:
    """The kernel tells of connections only while somebody listens here."""
    return StreamingResponse(stream, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})


async def _stream(listener: Listener, wanted: EventFilter) -> AsyncIterator[bytes]:
    """The body: ends when the agent does."""
    clock = asyncio.get_running_loop().time
    beat_at = clock() + HEARTBEAT_SECONDS
    while (heard := await listener.heard(beat_at - clock())) is not None:
        text = b"".join(_text(event) for event in heard if wanted.matches(event))
        if clock() >= beat_at:
            text = text or HEARTBEAT
        if text:
            beat_at = clock() + HEARTBEAT_SECONDS
            yield text
        await asyncio.sleep(0)  # others are served in between, however fast events come


def _text(event: Event | Lost) -> bytes:
    data = b'{"lost":%d}' % event.count if isinstance(event, Lost) else event.json
    return b"data: " + data + b"\n\n"
