"""Root's socket of a running agent: one line of JSON each way.

{"call": "believe", "source": "marathon"}      {"ok": true}
                                               {"ok": false, "reason": "..."}
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from minuteman.errors import MinutemanError

log = logging.getLogger(__name__)

LINE_BYTES = 4096
BACKLOG = 4
CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


class Request(msgspec.Struct, frozen=True):
    """What is asked for."""

    call: str
    source: str = ""


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether it was done, or why not."""

    ok: bool
    reason: str = ""


class ControlSocket:
    """Listens, and answers without ever waiting for who asks.

    `selector` calls back through the data of its keys, with what is ready. `do` carries a request
    out; its MinutemanError is the answer.
    """

    def __init__(
        self, path: Path, selector: selectors.BaseSelector, do: Callable[[Request], None]
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
        try:
            connection.send(msgspec.json.encode(reply) + b"\n")  # an empty buffer takes it whole
        except OSError as exc:
            log.debug("control connection lost error=%s", exc)
        self._end(connection)

    def _answer(self, line: bytes) -> Reply:
        try:
            request = msgspec.json.decode(line, type=Request)
        except msgspec.MsgspecError as exc:
            return Reply(False, f"this is no request: {exc}")
        try:
            self._do(request)
        except MinutemanError as exc:
            return Reply(False, str(exc))
        log.info("control request done call=%s source=%s", request.call, request.source)
        return Reply(True)

    def _end(self, connection: socket.socket) -> None:
        del self._received[connection]
        self._selector.unregister(connection)
        connection.close()
