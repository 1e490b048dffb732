"""Sockets that come and go at random. Three programs that import nothing of ours:

churn.py serve TCP HOLE UDP
    Backends on these ports of the loopback.
churn.py connect SEED ADDRESS TCP REFUSED HOLE UDP
    A client of VIPs with these ports at one address. Says "ready" when it has had enough, then
    answers each line with what its sockets stand for: how many connect, how many are connected.
    When there are no more lines it ends, with all sockets that it still has.
churn.py share SEED ADDRESS PORT BACKEND FD ...
    Connects sockets that others have too to the VIP and to its backend at this port of the
    loopback, and disconnects them. Says "ready" when it has had enough.
"""

from __future__ import annotations

import ctypes
import os
import random
import selectors
import socket
import struct
import sys
from contextlib import suppress

ACTIONS = 300
MOST_SOCKETS = 40
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
AF_UNSPEC = bytes(16)
SYN_SENT, CLOSE = 2, 7
"""States of TCP. Source: linux/tcp_states.h."""

_libc = ctypes.CDLL(None, use_errno=True)


def disconnect(sock: socket.socket) -> None:
    """connect() to AF_UNSPEC, which Python has no word for. Errors: OSError."""
    if _libc.connect(sock.fileno(), AF_UNSPEC, len(AF_UNSPEC)):
        raise OSError(ctypes.get_errno(), "connect to AF_UNSPEC")


def reset_on_close(sock: socket.socket) -> None:
    """Have close() send a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def drop_all(sock: socket.socket) -> None:
    """Have the kernel drop what comes for `sock`: a classic BPF program that accepts no byte."""
    drop = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
    program = struct.pack("@HP", 1, ctypes.addressof(drop))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def hear_again(sock: socket.socket) -> None:
    """End `drop_all`."""
    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def state_of(sock: socket.socket) -> int:
    """The state of a TCP socket. Source: tcpi_state of struct tcp_info."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


# ---- backends -----------------------------------------------------------------------------------
class Server:
    """Accepts connections, and ends each at random: at once, or when its client does."""

    def __init__(self, tcp: int, hole: int, udp: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", tcp), backlog=4096)
        self._hole = socket.create_server(("127.0.0.1", hole), backlog=4096)
        drop_all(self._hole)
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind(("127.0.0.1", udp))

    def run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept(self._listener.accept()[0])
                elif isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)

    def _accept(self, connection: socket.socket) -> None:
        how = random.choice(("close", "reset", "half", "wait", "wait"))  # noqa: S311 - no secret
        if how == "reset":
            reset_on_close(connection)
        if how in ("close", "reset"):
            connection.close()
            return
        if how == "half":
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if connection.recv(4096):
                return
        self._selector.unregister(connection)
        connection.close()


# ---- clients ------------------------------------------------------------------------------------
class Client:
    """Does things with its sockets at random, and knows what they stand for."""

    def __init__(self, seed: int, address: str, *ports: int) -> None:
        tcp, refused, hole, udp = ports
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._address = address
        self._tcp_ports = (tcp, tcp, refused, hole)
        self._udp_port = udp
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._streams: list[socket.socket] = []
        self._datagrams: list[socket.socket] = []
        self._bound: set[socket.socket] = set()
        """Those of `_datagrams` whose last connect() was to the VIP."""

    def run(self) -> None:
        for _ in range(ACTIONS):
            with suppress(OSError):
                self._random.choice((self._act_on_a_stream, self._act_on_datagrams))()

    def expected(self) -> tuple[int, int]:
        """How many connect, and how many are connected."""
        states = [state_of(stream) for stream in self._streams]
        connected = sum(state not in (SYN_SENT, CLOSE) for state in states)
        return states.count(SYN_SENT), connected + len(self._bound)

    def _act_on_a_stream(self) -> None:
        if not self._streams or (len(self._streams) < MOST_SOCKETS and self._random.random() < 0.4):
            self._streams.append(socket.socket(self._family))
            self._connect(self._streams[-1])
            return
        stream = self._random.choice(self._streams)
        match self._random.randrange(7):
            case 0:
                self._connect(stream)
            case 1:
                disconnect(stream)
            case 2:
                stream.shutdown(socket.SHUT_WR)
            case 3:
                self._lend(stream)
            case 4:
                reset_on_close(stream)
                self._close(stream)
            case _:
                self._close(stream)

    def _connect(self, stream: socket.socket) -> None:
        """Begin to connect, and wait for the end of it, or do not."""
        stream.setblocking(False)
        port = self._random.choice(self._tcp_ports)
        with suppress(BlockingIOError):
            stream.connect((self._address, port))
        if self._random.random() < 0.5:
            selector = selectors.DefaultSelector()
            selector.register(stream, selectors.EVENT_WRITE)
            selector.select(0.005)
            selector.close()

    def _lend(self, stream: socket.socket) -> None:
        """Have a child hold the socket when we close it."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        self._close(stream)
        os.close(writing)
        os.waitpid(pid, 0)

    def _close(self, stream: socket.socket) -> None:
        self._streams.remove(stream)
        stream.close()

    def _act_on_datagrams(self) -> None:
        if not self._datagrams or (
            len(self._datagrams) < MOST_SOCKETS and self._random.random() < 0.3
        ):
            self._datagrams.append(socket.socket(self._family, socket.SOCK_DGRAM))
        sock = self._random.choice(self._datagrams)
        match self._random.randrange(5):
            case 0 | 1:
                sock.connect((self._address, self._udp_port))
                self._bound.add(sock)
            case 2:
                mapped = "::ffff:" if ":" in self._address else ""
                sock.connect((f"{mapped}127.0.0.1", self._udp_port))
                self._bound.discard(sock)
            case 3:
                disconnect(sock)
            case _:
                self._datagrams.remove(sock)
                self._bound.discard(sock)
                sock.close()


def share(seed: int, address: str, port: int, backend: int, *fds: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    sockets = [socket.socket(fileno=fd) for fd in fds]
    for _ in range(10 * ACTIONS):
        sock = chance.choice(sockets)
        sock.setblocking(False)
        with suppress(OSError):
            match chance.randrange(4):
                case 0:
                    disconnect(sock)
                case 1:
                    sock.connect(("127.0.0.1", backend))
                case _:
                    sock.connect((address, port))


def main(role: str, *words: str) -> None:
    match role:
        case "serve":
            server = Server(*map(int, words))
            say("ready")
            server.run()
        case "connect":
            seed, address, *ports = words
            client = Client(int(seed), address, *map(int, ports))
            client.run()
            say("ready")
            for _ in sys.stdin:
                say(*client.expected())
        case "share":
            seed, address, *numbers = words
            share(int(seed), address, *map(int, numbers))
            say("ready")


if __name__ == "__main__":
    main(*sys.argv[1:])
