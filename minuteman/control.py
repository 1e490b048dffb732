"""Root's socket of a running agent: one line of JSON each way.

{"call": "believe", "source": "marathon"}           {"ok": true}
                                                    {"ok": false, "reason": "..."}
{"call": "skip", "path": "mesh/sidecar"}            {"ok": true}
{"call": "skipped"}                                 {"ok": true, "cgroups": [...]}
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from minuteman.errors import MinutemanError

log = logging.getLogger(__name__)

LINE_BYTES = 4096
BACKLOG = 4
CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is asked for."""

    call: str
    source: str = ""
    path: str = ""
    """Of a cgroup."""


class SkippedCgroup(msgspec.Struct, frozen=True):
    """A cgroup that is left alone, with all below it."""

    path: str
    """Absolute."""
    id: int | None
    """The kernel's number; None: it does not exist now."""
    wanted_by: Literal["settings", "root"]


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether it was done, or why not; and what was asked for, if anything was."""

    ok: bool
    reason: str = ""
    cgroups: tuple[SkippedCgroup, ...] = ()


class ControlSocket:
    """Listens, and answers without ever waiting for who asks.

    `selector` calls back through the data of its keys, with what is ready. `do` carries a request
    out and answers; a MinutemanError is an answer, too.
    """

    def __init__(
        self, path: Path, selector: selectors.BaseSelector, do: Callable[[Request], Reply]
    ) -> None:
        """Replaces what is at `path`: nobody else may be listening there. Errors: OSError."""
        self._path = path
        self._selector = selector
        self._do = do
        self._received: dict[socket.socket, bytes] = {}
        """What each open connection has sent."""
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, lambda _: self._accept())

    def close(self) -> None:
        """Stop to listen; open connections end without an answer."""
        for connection in list(self._received):
            self._end(connection)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it went away again
            return
        connection.setblocking(False)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        _, user, _ = CREDENTIALS.unpack(credentials)
        if user not in (0, os.geteuid()) or len(self._received) >= BACKLOG:
            connection.close()
            return
        self._received[connection] = b""
        self._selector.register(
            connection, selectors.EVENT_READ, lambda _: self._receive(connection)
        )

    def _receive(self, connection: socket.socket) -> None:
        try:
            received = connection.recv(LINE_BYTES)
        except OSError:
            received = b""
        line = self._received[connection] + received
        self._received[connection] = line
        if b"\n" in line:
            reply = self._answer(line.partition(b"\n")[0])
        elif received and len(line) < LINE_BYTES:
            return
        else:
            reply = Reply(False, "a request is one line of JSON")
        self._send(connection, msgspec.json.encode(reply) + b"\n")

    def _send(self, connection: socket.socket, rest: bytes) -> None:
        """Send what the buffer takes, now and whenever it takes more."""
        try:
            rest = rest[connection.send(rest) :]
        except OSError as exc:
            log.debug("control connection lost error=%s", exc)
            rest = b""
        if rest:
            self._selector.modify(
                connection, selectors.EVENT_WRITE, lambda _: self._send(connection, rest)
            )
        else:
            self._end(connection)

    def _answer(self, line: bytes) -> Reply:
        try:
            request = msgspec.json.decode(line, type=Request)
        except msgspec.MsgspecError as exc:
            return Reply(False, f"this is no request: {exc}")
        try:
            reply = self._do(request)
        except MinutemanError as exc:
            return Reply(False, str(exc))
        log.info("control request done %s", line.decode())
        return reply

    def _end(self, connection: socket.socket) -> None:
        del self._received[connection]
        self._selector.unregister(connection)
        connection.close()
