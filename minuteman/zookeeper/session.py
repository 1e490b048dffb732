"""One ZooKeeper session: the only place that knows kazoo.

kazoo reconnects by itself, but leaves four things to its user, and they are settled here:

- Every watch is lost with the connection. `Connection.number` counts connections: what was read
  under an older number must be read again.
- A session that expired may be followed by another world, where a known zxid means something else.
  `Connection.session` counts sessions.
- After a wipe, or a restore of an older snapshot, every server refuses the client for ever, because
  it has seen a later zxid. `tend` starts anew after `restart_seconds` without a connection.
- State listeners and watches run in kazoo's threads and must not block: here they set a value and
  call a function that rings a bell.

A server in read-only mode refuses us, as it does every client that does not ask for it: what such a
server says may be old, so it is silence.
"""

from __future__ import annotations

import logging
import math
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from socket import socket
from typing import TypeVar

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoAuthError, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler
from kazoo.interfaces import IAsyncResult
from kazoo.protocol.states import EventType, KazooState, WatchedEvent, ZnodeStat

from minuteman.errors import ConfigError, SourceError

T = TypeVar("T")

log = logging.getLogger(__name__)

# kazoo warns at each attempt to connect, and its debug lines hold credentials.
kazoo_log = logging.getLogger(f"{__name__}.kazoo")
kazoo_log.setLevel(logging.ERROR)

DEFAULT_PORT = 2181
IN_FLIGHT = 512
"""Requests that are under way at once. More does not make it faster."""

# By default kazoo's pause between two attempts grows to an hour.
CONNECTION_RETRY = {"max_tries": -1, "delay": 0.1, "backoff": 2, "max_delay": 2.0}

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s,]+)(?::(\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a ZooKeeper is, as `parse_url` reads it. Its text never shows the credentials."""

    hosts: str
    """`host:port` and more of them, separated by commas; IPv6 in brackets."""
    chroot: str = ""
    """Put before every path: empty or `/a/b`."""
    credentials: str = field(default="", repr=False)
    """`user:password` of the digest scheme; empty for none."""

    def __str__(self) -> str:
        return f"zk://{self.hosts}{self.chroot}"


def parse_url(url: str) -> Location:
    """Location of `zk://[user:password@]host[:port][,host[:port]...][/chroot]`.

    Errors: ConfigError, which never shows the part with the credentials.
    """
    scheme, separator, rest = url.partition("://")
    if scheme != "zk" or not separator:
        raise ConfigError("zookeeper: the URL must begin with zk://, as in zk://10.0.0.1:2181")
    credentials, at, rest = rest.rpartition("@")
    if at and not all(credentials.partition(":")):
        raise ConfigError("zookeeper: before the @ of the URL must stand user:password")
    hosts, slash, path = rest.partition("/")
    return Location(
        ",".join(_host_port(text) for text in hosts.split(",")),
        _chroot(path) if slash else "",
        credentials,
    )


def _host_port(text: str) -> str:
    match = _HOST_PORT.fullmatch(text)
    port = int(match[2] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise ConfigError(f"zookeeper: {text!r} in the URL is not host:port")
    return f"{match[1]}:{port}"


def _chroot(path: str) -> str:
    names = path.removesuffix("/").split("/")
    if names == [""]:
        return ""
    if any(name in ("", ".", "..") for name in names):
        raise ConfigError(f"zookeeper: '/{path}' in the URL is not the path of a znode")
    return "/" + "/".join(names)


@dataclass(frozen=True, slots=True)
class Connection:
    """The state of the connection. `since_monotonic` dates `connected`."""

    connected: bool
    since_monotonic: float
    number: int = 0
    """Connections until now, this one included. Each began without a watch."""
    session: int = 1
    """Which session it belongs to. Zxids compare within one."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What ZooKeeper knows about a znode beside its content."""

    czxid: int
    mzxid: int
    """Of the last change of the data: within one session it names the content."""
    pzxid: int
    """Of the last child that came or went."""
    ctime_ms: int


@dataclass(frozen=True, slots=True)
class Content:
    """The data of a znode."""

    data: bytes
    stat: Stat


@dataclass(frozen=True, slots=True)
class Listing:
    """The names of a znode's children, in no order."""

    names: tuple[str, ...]
    stat: Stat


class Session:
    """A session that lasts, and pipelined reads over it. For one thread, but for `connection`.

    Args:
        location: Where to connect. The chroot is not applied: callers use whole paths.
        rang: Called with the path of each watch that fires, in a thread of kazoo's.
        changed: Called after each change of `connection`, likewise.
        timeout_seconds: Of the session; the server may clamp it. A silent server is noticed after
            two thirds of it.
        restart_seconds: Without a connection for so long, the session is given up for a new one.
    """

    def __init__(
        self,
        location: Location,
        rang: Callable[[str], None],
        changed: Callable[[], None],
        *,
        timeout_seconds: float = 10.0,
        restart_seconds: float = 60.0,
    ) -> None:
        self.location = location
        self._rang = rang
        self._changed = changed
        self._timeout_seconds = timeout_seconds
        self._restart_seconds = restart_seconds
        self._connection = Connection(connected=False, since_monotonic=time.monotonic())
        self._started_monotonic = 0.0
        self._client: KazooClient | None = None

    # ---- life -------------------------------------------------------------------------------
    def start(self) -> None:
        """Connect in the background. Returns at once, whether there is a ZooKeeper or not."""
        self._start_client()

    @property
    def connection(self) -> Connection:
        """The state of the connection now."""
        return self._connection

    def tend(self) -> float:
        """Start anew when it is time to; return the seconds until this wants to be called again."""
        if self._client is None or self._connection.connected:
            return math.inf
        waiting_since = max(self._connection.since_monotonic, self._started_monotonic)
        remaining = waiting_since + self._restart_seconds - time.monotonic()
        if remaining > 0:
            return remaining
        log.info("zookeeper session given up location=%s", self.location)
        self._stop_client()
        self._start_client()
        return self._restart_seconds

    def close(self) -> None:
        """End the session. May be called twice."""
        self._stop_client()

    def _start_client(self) -> None:
        # A client that was stopped keeps requests in its queue: a new one for each start.
        credentials = self.location.credentials
        self._client = KazooClient(
            self.location.hosts,
            timeout=self._timeout_seconds,
            handler=_PollingHandler(),
            auth_data=[("digest", credentials)] if credentials else [],
            connection_retry=CONNECTION_RETRY,
            logger=kazoo_log,
        )
        self._client.add_listener(self._on_state)
        self._started_monotonic = time.monotonic()
        self._client.start_async()

    def _stop_client(self) -> None:
        if self._client is not None:
            self._client.stop()
            self._client.close()
            self._client = None

    def _on_state(self, state: str) -> None:
        """Of kazoo's connection thread."""
        old = self._connection
        connected = state == KazooState.CONNECTED
        self._connection = replace(
            old,
            connected=connected,
            since_monotonic=(
                old.since_monotonic if connected == old.connected else time.monotonic()
            ),
            number=old.number + connected,
            session=old.session + (state == KazooState.LOST),
        )
        self._changed()

    def _on_watch(self, event: WatchedEvent) -> None:
        """Of kazoo's callback thread. A lost connection fires each watch once, for nothing."""
        if event.type != EventType.NONE:
            self._rang(event.path)

    # ---- reads ------------------------------------------------------------------------------
    def get(
        self, paths: Iterable[str], *, watch: bool = True
    ) -> Iterator[tuple[str, Content | SourceError | None]]:
        """Each path with its content, in order; None: no such znode.

        An error as the value is of that znode alone: it may not be read.  Errors: SourceError.
        """
        client, watcher = self._ready(), self._on_watch if watch else None
        for path, answer in self._pipelined(
            paths, lambda path: client.get_async(path, watch=watcher)
        ):
            try:
                found = self._value(path, answer)
            except NoAuthError as exc:
                error = SourceError(f"{path}: not allowed to read it")
                error.__cause__ = exc
                yield path, error
            else:
                yield path, None if found is None else Content(found[0], _stat(found[1]))

    def children(
        self, paths: Iterable[str], *, watch: bool = True
    ) -> Iterator[tuple[str, Listing | None]]:
        """Each path with the names of its children; None: no such znode. Errors: SourceError."""
        client, watcher = self._ready(), self._on_watch if watch else None
        for path, answer in self._pipelined(
            paths,
            lambda path: client.get_children_async(path, watch=watcher, include_data=True),
        ):
            found = self._permitted(path, answer)
            yield path, None if found is None else Listing(tuple(found[0]), _stat(found[1]))

    def exists(self, path: str) -> Stat | None:
        """Stat of one znode, watched; its creation is, while it is missing. Errors: SourceError."""
        found = self._permitted(path, self._ready().exists_async(path, watch=self._on_watch))
        return None if found is None else _stat(found)

    def content_of(self, path: str) -> Content | None:
        """Content of one znode, watched; its creation is, while it is missing.

        Errors: SourceError, also when it may not be read.
        """
        while True:
            [(_, found)] = self.get([path])
            if isinstance(found, SourceError):
                raise found
            if found is not None or self.exists(path) is None:
                return found

    def children_of(self, path: str) -> Listing | None:
        """Children of one znode, watched; its creation is, while it is missing.

        Errors: SourceError.
        """
        while True:
            [(_, found)] = self.children([path])
            if found is not None or self.exists(path) is None:
                return found

    def sync(self, path: str) -> None:
        """Let the server catch up with the leader: later reads are not older than this call.

        Errors: SourceError.
        """
        self._permitted(path, self._ready().sync_async(path))

    def _ready(self) -> KazooClient:
        """The client. Errors: SourceError when it is not connected: requests would wait in it."""
        if self._client is None or not self._connection.connected:
            raise SourceError(f"no connection to {self.location}")
        return self._client

    def _pipelined(
        self, paths: Iterable[str], ask: Callable[[str], IAsyncResult[T]]
    ) -> Iterator[tuple[str, IAsyncResult[T]]]:
        """Ask for every path, at most IN_FLIGHT ahead of the answers that were taken.

        Answers come in the order of the requests. So many of them are awaited at the last one: a
        thread that wakes for each answer costs more than the answer.
        """
        asked: deque[tuple[str, IAsyncResult[T]]] = deque()
        for path in paths:
            asked.append((path, ask(path)))
            if len(asked) == IN_FLIGHT:
                asked[IN_FLIGHT // 2 - 1][1].wait(self._timeout_seconds)
                for _ in range(IN_FLIGHT // 2):
                    yield asked.popleft()
        if asked:
            asked[-1][1].wait(self._timeout_seconds)
        yield from asked

    def _permitted(self, path: str, answer: IAsyncResult[T]) -> T | None:
        try:
            return self._value(path, answer)
        except NoAuthError as exc:
            raise SourceError(
                f"{path}: not allowed to read it; check the credentials in zk://"
            ) from exc

    def _value(self, path: str, answer: IAsyncResult[T]) -> T | None:
        """Wait for an answer; None: no such znode. Errors: SourceError, NoAuthError."""
        try:
            return answer.get(timeout=self._timeout_seconds)
        except NoNodeError:
            return None
        except NoAuthError:
            raise
        except KazooTimeoutError as exc:
            raise SourceError(
                f"{path}: no answer from {self.location} in {self._timeout_seconds:g} s"
            ) from exc
        except KazooException as exc:
            raise SourceError(f"{path}: {type(exc).__name__} at {self.location}") from exc


class _PollingHandler(SequentialThreadingHandler):
    """kazoo's handler, but for its `select`: that makes four selectors for each read."""

    def select(
        self,
        rlist: Sequence[socket],
        wlist: Sequence[socket],
        xlist: Sequence[socket],
        timeout: float | None = None,
    ) -> tuple[list[socket], list[socket], list[socket]]:
        """As `select.select`, for any number of open files; `xlist` is not looked at."""
        poll = select.poll()
        for each in rlist:
            poll.register(each, select.POLLIN)
        for each in wlist:
            poll.register(each, select.POLLOUT)
        ready = {number for number, _ in poll.poll(None if timeout is None else timeout * 1000)}
        return (
            [each for each in rlist if each.fileno() in ready],
            [each for each in wlist if each.fileno() in ready],
            [],
        )


def _stat(stat: ZnodeStat) -> Stat:
    return Stat(stat.czxid, stat.mzxid, stat.pzxid, stat.ctime)


def probe(location: Location, path: str, timeout_seconds: float = 5.0) -> Stat | None:
    """Connect, read the stat of one znode and leave: whether ZooKeeper can be used from here.

    Errors: SourceError that says what is wrong.
    """
    changed = threading.Event()
    session = Session(location, lambda _: None, changed.set, timeout_seconds=timeout_seconds)
    session.start()
    try:
        if not changed.wait(timeout_seconds) or not session.connection.connected:
            raise SourceError(f"no ZooKeeper at {location} took a session in {timeout_seconds:g} s")
        return session.exists(path)
    finally:
        session.close()
