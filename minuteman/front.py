"""The listening process: REST, metrics, events. No privilege, and the agent never waits for it.

    python -m minuteman.front --fd N --listen 127.0.0.1:62080 --user nobody

The agent starts it as root with one end of a stream socket pair at descriptor N (`minuteman.feed`).
It binds, imports all that it will ever need, because later it may not be able to read the files,
becomes the user, and serves until the socket closes. SIGINT is ignored: a terminal sends Ctrl-C to
the agent too, which decides. Exit codes: 0 when the socket closed or at SIGTERM; with one line on
standard error, 75 when it cannot listen now, because another process has the address, and 78 for a
setting that cannot work.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

import uvicorn

from api.app import create_app
from minuteman import privileges
from minuteman.audience import Audience, Seat
from minuteman.errors import ConfigError, MinutemanError, SourceError
from minuteman.feed import COUNTERS_PLEASE, EVENTS_PLEASE, Decoder, Events, Message, Update
from minuteman.model import Counters
from minuteman.reader import Published

RECEIVE_BYTES = 1 << 18
BACKLOG = 1024
HANG_UP_SECONDS = 0.5
"""After it is to stop; then who has not read their answer will not."""
STOP_SECONDS = 1

log = logging.getLogger("minuteman.front")


class ListenError(MinutemanError):
    """The address cannot be had now; later it may."""

    exit_code = os.EX_TEMPFAIL


class FeedReader:
    """The `Reader` of this process: what the agent sent last."""

    def __init__(self, age_seconds: float = 1.0, timeout_seconds: float = 5.0) -> None:
        self._age_seconds = age_seconds
        self._timeout_seconds = timeout_seconds
        self._published = Published()
        self._news = asyncio.Event()
        self._agent: asyncio.StreamWriter | None = None
        self._answer: asyncio.Future[Counters] | None = None
        self._audience = Audience(self._ask_for_events)

    def current(self) -> Published:
        """The newest value; never blocks."""
        return self._published

    async def changed(self, after: int) -> Published:
        """Wait for a generation higher than `after`."""
        while self._published.generation <= after:
            await self._news.wait()
        return self._published

    async def counters(self) -> Counters:
        """The agent is asked once, whoever asks; its answer is good for `age_seconds`.

        Errors: SourceError when the agent does not answer in time.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(self._question())
        except TimeoutError as exc:
            raise SourceError("the agent does not answer; it may be busy") from exc

    def _question(self) -> asyncio.Future[Counters]:
        if self._agent is None:
            raise SourceError("the agent is not connected")
        if self._answer is None:
            self._agent.write(COUNTERS_PLEASE)
            self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def listen(self) -> AbstractContextManager[Seat]:
        """Hear of events while the block runs. Errors: SourceError when too many do."""
        return self._audience.listen(self._published)

    def _ask_for_events(self) -> None:
        if self._agent is not None:
            self._agent.write(EVENTS_PLEASE)

    def end_events(self) -> None:
        """Have those who listen go."""
        self._audience.end()

    async def follow(self, feed: socket.socket) -> None:
        """Take what the agent sends, until it closes its end."""
        stream, self._agent = await asyncio.open_unix_connection(sock=feed, limit=RECEIVE_BYTES)
        decoder = Decoder()
        try:
            with suppress(ConnectionResetError):
                while received := await stream.read(RECEIVE_BYTES):
                    for message in decoder.feed(received):
                        self._take(message)
        finally:
            self._agent.close()
            self._agent = None

    def _take(self, message: Message) -> None:
        match message:
            case Update():
                self._audience.follow(self._published, message)
                self._published = message.applied_to(self._published)
                self._news.set()
                self._news.clear()
            case Counters():
                self._take_counters(message)
            case Events():
                self._audience.take(message.lines)

    def _take_counters(self, counters: Counters) -> None:
        if self._answer is None or self._answer.done():
            return
        self._answer.set_result(counters)
        asyncio.get_running_loop().call_later(self._age_seconds, self._forget_counters)

    def _forget_counters(self) -> None:
        self._answer = None


class Server(uvicorn.Server):
    """A server that leaves signals alone, and does not wait for clients that do not read."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Change nothing: SIGINT stays ignored, and `serve` handles SIGTERM."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Have requests end, a while by themselves."""
        asyncio.get_running_loop().call_later(HANG_UP_SECONDS, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def serve(
    server: Server, listener: socket.socket, reader: FeedReader, feed: socket.socket
) -> None:
    """Answer requests at `listener` until `feed` ends or SIGTERM comes."""

    def stop() -> None:
        server.should_exit = True
        reader.end_events()  # else the server would wait for those who listen

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(reader.follow(feed))
        following.add_done_callback(lambda _: stop())
        await server.serve(sockets=[listener])
        following.cancel()


def listen(text: str) -> socket.socket:
    """A listening socket at `text`, `address:port`, on the loopback.

    Errors: ConfigError for what is no such address, ListenError when it is taken.
    """
    try:
        parts = urlsplit(f"//{text}")
        address, port = ip_address(parts.hostname or ""), parts.port
    except ValueError as exc:
        raise ConfigError(f"api: {text!r} is not address:port, such as 127.0.0.1:62080") from exc
    if port is None:
        raise ConfigError(f"api: {text!r} has no port; write {text}:62080")
    if not address.is_loopback:
        raise ConfigError(
            f"api: {address} is not a loopback address, and REST has no access control: "
            "listen at 127.0.0.1 and put a proxy in front"
        )
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    # With its protocol: asyncio sends without delay only what it knows to be TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise ListenError(
            f"api: cannot listen at {text}: {exc.strerror}; is another agent running?"
        ) from exc
    return listener


def make_server(reader: FeedReader) -> Server:
    """The server, with every module that it may need later."""
    config = uvicorn.Config(
        create_app(reader),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    config.load()
    importlib.import_module("anyio._backends._asyncio")  # else at the first streamed response
    return Server(config)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; the agent writes it."""
    parser = argparse.ArgumentParser(prog="minuteman-front", description="started by the agent")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the socket pair")
    parser.add_argument("--listen", required=True, help="address:port on the loopback")
    parser.add_argument("--user", required=True, help="whom to become")
    return parser.parse_args(argv)


def run(fd: int, listen_at: str, user: str) -> None:
    """Bind, get ready, become `user`, serve. Errors: ConfigError, ListenError."""
    feed = socket.socket(fileno=fd)
    listener = listen(listen_at)
    reader = FeedReader()
    server = make_server(reader)
    privileges.become(user)
    privileges.end_with_parent()
    host, port = listener.getsockname()[:2]
    log.info("listening address=%s port=%d user=%s", host, port, user)
    asyncio.run(serve(server, listener, reader, feed))


def main(argv: Sequence[str] | None = None) -> int:
    """The process; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    privileges.end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        run(arguments.fd, arguments.listen, arguments.user)
    except MinutemanError as exc:
        log.error("%s", exc)  # noqa: TRY400 - expected: one line is enough
        return exc.exit_code
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
