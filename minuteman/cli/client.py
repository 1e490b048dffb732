"""What a running agent answers: its REST interface, and root's control socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from api import schemas
from minuteman.control import Reply, Request
from minuteman.errors import MinutemanError, SourceError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

TIMEOUT_SECONDS = 10.0
SILENCE_SECONDS = 40.0
"""A stream that lives says something each 15 seconds."""
DATA = b"data: "


class NotFoundError(MinutemanError):
    """What was asked for does not exist: exit code 1, as grep does."""

    exit_code = 1


class RequestError(MinutemanError):
    """The agent says that the request has no meaning."""

    exit_code = os.EX_DATAERR


@dataclass(frozen=True, slots=True)
class Rest:
    """The REST interface at `api`, an `address:port` or a URL."""

    api: str

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return (self.api if "://" in self.api else f"http://{self.api}").rstrip("/")

    def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """Body of the answer.

        Errors: SourceError without an agent that answers, NotFoundError, RequestError.
        """
        response = self._send(path, query)
        if response.is_success:
            return response.content
        raise _failure(response)

    def health(self) -> schemas.Health:
        """Whether the host is well; a host that is not says so with an error status."""
        return decode(self._send("/api/health").content, schemas.Health)

    @contextmanager
    def stream(self, path: str, query: Mapping[str, str]) -> Iterator[Iterator[bytes]]:
        """The data of server-sent events, one after another.

        Errors: as `get` has, and SourceError when it ends: it does with the agent.
        """
        import httpx  # here: see minuteman.cli

        timeout = httpx.Timeout(TIMEOUT_SECONDS, read=SILENCE_SECONDS)
        with httpx.Client(trust_env=False, timeout=timeout) as client:
            try:
                request = client.build_request("GET", f"{self.url}{path}", params=query)
                response = client.send(request, stream=True)
                if not response.is_success:
                    response.read()
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise self._no_answer(exc) from exc
            try:
                if not response.is_success:
                    raise _failure(response)
                yield self._data(response)
            finally:
                response.close()

    def _data(self, response: httpx.Response) -> Iterator[bytes]:
        import httpx  # here: see minuteman.cli

        gone = SourceError(f"the agent at {self.url} has ended")
        try:
            for line in lines_of(response.iter_bytes()):
                if line.startswith(DATA):
                    yield line.removeprefix(DATA)
        except httpx.HTTPError as exc:
            raise gone from exc
        raise gone

    def _send(self, path: str, query: Mapping[str, str] | None = None) -> httpx.Response:
        import httpx  # here: see minuteman.cli

        try:
            return httpx.get(
                f"{self.url}{path}", params=query, timeout=TIMEOUT_SECONDS, trust_env=False
            )
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise self._no_answer(exc) from exc

    def _no_answer(self, error: Exception) -> SourceError:
        return SourceError(
            f"no agent answers at {self.url}; is it running, is --api right? ({error})"
        )


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a text that comes in pieces."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def decode(body: bytes, shape: type[T]) -> T:
    """`body` as `shape`, one of `api.schemas`. Errors: SourceError when something else answered."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError as exc:
        raise SourceError(f"what answers is not this version of minuteman: {exc}") from exc


def _failure(response: httpx.Response) -> MinutemanError:
    detail = decode(response.content, schemas.ProblemDetails).detail
    match response.status_code:
        case HTTPStatus.NOT_FOUND:
            return NotFoundError(detail)
        case HTTPStatus.UNPROCESSABLE_ENTITY:
            return RequestError(detail)
        case _:
            return SourceError(detail)


def call_agent(state_dir: Path, request: Request) -> Reply:
    """Ask the agent over its control socket to do something; it has when this returns.

    Errors: SourceError, with the agent's reason when it does not do it; RequestError.
    """
    path = state_dir / "control.sock"
    try:
        line = msgspec.json.encode(request) + b"\n"
    except UnicodeEncodeError as exc:
        raise RequestError(f"this is no text: {exc.object!r}") from exc
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(TIMEOUT_SECONDS)
            control.connect(os.fspath(path))
            control.sendall(line)
            with control.makefile("rb") as lines:
                answer = lines.readline()
    except OSError as exc:
        raise SourceError(
            f"no agent answers at {path}: {exc.strerror or exc}; is it running, are you root?"
        ) from exc
    reply = decode(answer, Reply)
    if not reply.ok:
        raise SourceError(reply.reason)
    return reply
