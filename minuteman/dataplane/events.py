"""What becomes of connections, line by line, as long as somebody listens.

    python -m minuteman.dataplane.events --pins FOLDER

The programs tell of connections in a ring buffer while `Dataplane.listen_until` says so. This reads
it, twenty times a second, and writes a line of JSON for each event to standard output, in the order
of the events:

    {"time":"2026-01-02T03:04:05.000006Z","protocol":"tcp","vip":"11.0.0.37:80",
     "backend":"10.0.0.1:31001","outcome":"connected","waited_us":321,
     "cgroup":"/mesos/0","pid":4711,"command":"curl"}

time        RFC 3339, UTC, microseconds
protocol    tcp or udp
vip         what the client connects to; IPv6 in brackets, IPv4-mapped as IPv4
backend     what it was given; null: nothing
waited_us   for the backend's answer; null: there was nothing to wait for
cgroup      path of the client's cgroup below the mount; null: not known, or gone
pid         of the client's process, as the host numbers it; null: not known
command     name of the thread that asked; null: not known

outcome     what it tells of
-------------------------------------------------------------------------------------------------
chosen            a UDP socket was given a backend, connected or with its first datagram
refused_empty     the VIP has no backend
refused_unknown   there is no VIP, at an address that is for VIPs alone
refused_torn      the VIP was changed under every look at it
not_sent          TCP: the socket was closed before a SYN was sent: there is no way to the backend
unanswered        TCP: a SYN was not answered in time, and is sent again; that is not the end
connected         TCP: the backend has answered
refused           TCP: the backend has refused, or the network on the way to it
given_up          TCP: the client has closed the socket before there was an answer
timed_out         TCP: the kernel has given up
closed            TCP: a connection has ended, whoever ended it

Where a TCP connection was chosen a backend before this began, or longer ago than `REMEMBERED`
connections, its process is not known.

{"lost":N} stands for N events that there was no room for: in the ring buffer, or in a pipe that
nobody reads. It never waits for the pipe.

It ends with its parent, and when nobody has its standard output open any more. What went wrong is
written to standard error; it returns an exit code of errors.py.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import msgspec

from minuteman.dataplane import bpf
from minuteman.dataplane.cgroup import cgroup2_mount, path_of_cgroup
from minuteman.dataplane.layout import EVENT, KINDS, REASONS, SLOT, TRANSPORT, unmapped
from minuteman.dataplane.pins import Pins
from minuteman.errors import MinutemanError
from minuteman.model import Transport
from minuteman.privileges import end_with_parent

READ_SECONDS = 0.05
BATCH = 8_192
"""Events that are read before what they say is written."""
REMEMBERED = 65_536
"""TCP connections whose process is known."""
PENDING_BYTES = 1 << 22
"""More than a full ring buffer may wait for the pipe, and no more than this."""
EVENT_LOST = SLOT.pack(REASONS.index("event_lost"))
CHOICES = frozenset({"chosen", "refused_empty", "refused_unknown", "refused_torn"})
"""They come from the process that asks."""
WAITED = frozenset({"unanswered", "connected", "refused", "given_up", "timed_out"})
"""Something was waited for."""
LAST = frozenset({"not_sent", "refused", "given_up", "timed_out", "closed"})
"""Nothing comes after them."""


class Line(msgspec.Struct, frozen=True):
    """What is said of one event."""

    time: str
    protocol: Transport
    vip: str
    backend: str | None
    outcome: str
    waited_us: int | None
    cgroup: str | None
    pid: int | None
    command: str | None


class Lost(msgspec.Struct, frozen=True):
    """What is said of events that nobody can tell of."""

    lost: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose a socket is."""

    cgroup: int = 0
    pid: int = 0
    command: bytes = b""


NOBODY = Caller()


@dataclass(slots=True)
class Teller:
    """Makes lines of events, and remembers who connects.

    `since_ns` is on the clock of bpf_ktime_get_ns(), monotonic: what happened before is left out.
    """

    since_ns: int
    mount: Path
    """Where cgroup version 2 is."""
    _callers: OrderedDict[int, Caller] = field(default_factory=OrderedDict)
    """By cookie, the one that was heard of last at the end."""

    def tell(self, events: Iterable[bytes]) -> Iterator[Line]:
        """The lines of `events`, each a struct event."""
        ahead_ns = time.time_ns() - time.monotonic_ns()
        for raw in events:
            (
                time_ns, cookie, cgroup, command, vip, backend, vip_port, backend_port,
                pid, waited_us, kind, protocol,
            ) = EVENT.unpack(raw)  # fmt: skip
            if time_ns < self.since_ns:
                continue
            transport, outcome = TRANSPORT[protocol], KINDS[kind]
            if outcome in CHOICES:
                caller = Caller(cgroup, pid, command)
            else:
                caller = self._recall(cookie, outcome)
            if outcome == "chosen" and transport == "tcp":  # what comes of it is told when it does
                self._remember(cookie, caller)
                continue
            yield Line(
                rfc3339(time_ns + ahead_ns),
                transport,
                place(vip, vip_port),
                place(backend, backend_port) if any(backend_port) else None,
                outcome,
                waited_us if outcome in WAITED else None,
                path_of_cgroup(self.mount, caller.cgroup) if caller.cgroup else None,
                caller.pid or None,
                name(caller.command) or None,
            )

    def _remember(self, cookie: int, caller: Caller) -> None:
        self._callers[cookie] = caller
        self._callers.move_to_end(cookie)
        if len(self._callers) > REMEMBERED:
            self._callers.popitem(last=False)

    def _recall(self, cookie: int, outcome: str) -> Caller:
        if outcome in LAST:
            return self._callers.pop(cookie, NOBODY)
        return self._callers.get(cookie, NOBODY)


@lru_cache(REMEMBERED)
def place(address: bytes, port: bytes) -> str:
    """An address and its port, both in network order, as a client writes them."""
    packed = unmapped(address)
    host = f"{IPv4Address(packed)}" if len(packed) == 4 else f"[{IPv6Address(packed)}]"
    return f"{host}:{int.from_bytes(port, 'big')}"


@lru_cache(1_024)
def name(command: bytes) -> str:
    """The name of a thread; it may be any bytes."""
    return command.rstrip(b"\0").decode(errors="replace")


def rfc3339(time_ns: int) -> str:
    """A time since 1970, in UTC, with microseconds."""
    seconds, rest = divmod(time_ns, 10**9)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Outlet:
    """A pipe that takes as much as it has room for, and what waits for room."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = b""
        self._encoder = msgspec.json.Encoder()
        self._poll = select.poll()
        os.set_blocking(fd, False)

    def put(self, lines: Sequence[Line | Lost]) -> bool:
        """Take `lines`; False: too much waits already. Errors: BrokenPipeError."""
        if len(self._pending) > PENDING_BYTES:
            return False
        self._pending += self._encoder.encode_lines(lines)
        self.flush()
        return True

    def flush(self) -> None:
        """Write what there is room for. Errors: BrokenPipeError."""
        with suppress(BlockingIOError):
            while self._pending:
                self._pending = self._pending[os.write(self._fd, self._pending) :]

    def wait(self, seconds: float) -> bool:
        """Let so much time pass, or less when there is room again.

        False: nobody has the other end open any more.
        """
        self._poll.register(self._fd, select.POLLOUT if self._pending else 0)
        return not any(what & select.POLLERR for _, what in self._poll.poll(seconds * 1000))


class Reader:
    """From the ring buffer to the pipe."""

    def __init__(self, ring: bpf.RingBuffer, reasons: int, teller: Teller, outlet: Outlet) -> None:
        self._ring = ring
        self._reasons = reasons
        self._teller = teller
        self._outlet = outlet
        self._not_told = self._count_lost()
        """How many events had no room in the ring buffer when that was told last."""
        self._not_taken = 0
        """How many had none in the pipe, and were not told of."""

    def run(self) -> None:
        """Until nobody listens. Errors: DataplaneError."""
        while self._outlet.wait(READ_SECONDS):
            self.read()

    def read(self) -> None:
        """Pass on what is there."""
        self._outlet.flush()
        while events := self._ring.read(BATCH):
            lines = list(self._teller.tell(events))
            if lines and not self._outlet.put(lines):
                self._not_taken += len(lines)
            if len(events) < BATCH:
                break
        self._tell_lost()

    def _tell_lost(self) -> None:
        count = self._count_lost()
        lost = max(0, count - self._not_told) + self._not_taken
        if lost and self._outlet.put([Lost(lost)]):
            self._not_told, self._not_taken = count, 0

    def _count_lost(self) -> int:
        return sum(bpf.read_percpu(self._reasons, EVENT_LOST))


def listen(where: Pins, out: int) -> None:
    """Write what becomes of connections to `out` while somebody has its other end open.

    Errors: DataplaneError.
    """
    with ExitStack() as stack:
        fds = {}
        for map_name in ("events", "reasons"):
            fds[map_name] = bpf.open_pin(where.maps / map_name)
            stack.callback(os.close, fds[map_name])
        ring = stack.enter_context(bpf.RingBuffer(fds["events"]))
        teller = Teller(time.monotonic_ns(), cgroup2_mount())
        Reader(ring, fds["reasons"], teller, Outlet(out)).run()


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m minuteman.dataplane.events`."""
    parser = argparse.ArgumentParser(prog="minuteman.dataplane.events", description=__doc__)
    parser.add_argument("--pins", type=Path, required=True)
    options = parser.parse_args(arguments)
    end_with_parent()
    try:
        listen(Pins(options.pins), sys.stdout.fileno())
    except BrokenPipeError:  # nobody listens any more
        return os.EX_OK
    except MinutemanError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
