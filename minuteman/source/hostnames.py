"""Addresses of agents that call themselves by a DNS name."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import ip_address
from queue import SimpleQueue

from minuteman.model import Address

log = logging.getLogger(__name__)

THREADS = 4
"""A resolver that does not answer costs many seconds a name."""

Lookup = Callable[[str], Sequence[Address]]
"""Addresses of a name, in the order of preference. Errors: OSError."""


def system_lookup(name: str) -> list[Address]:
    """Ask the system's resolver. Errors: OSError."""
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as exc:  # a part of it is empty or too long, so Python does not ask
        raise OSError(f"{name!r} is no host name") from exc
    return [ip_address(sockaddr[0]) for *_, sockaddr in answers if isinstance(sockaddr[0], str)]


class HostNames:
    """Resolves names in the background and keeps the last good answer for each.

    `known`, `want`, `changed` and `refresh` are for one thread.

    Args:
        bell: Rung in a thread of its own when `changed` has something.
        lookup: What is asked.
    """

    def __init__(self, bell: Callable[[], None], lookup: Lookup = system_lookup) -> None:
        self._bell = bell
        self._lookup = lookup
        self._wanted: set[str] = set()
        self._pending: set[str] = set()
        """Asked and not answered yet, so that a slow resolver is not asked twice."""
        self._known: dict[str, Address] = {}
        self._asked: SimpleQueue[str | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[str, Address | None]] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def known(self) -> Mapping[str, Address]:
        """What is known now. The mapping changes in `changed` only."""
        return self._known

    def want(self, name: str) -> None:
        """Find the address of `name`, if nobody asked for it before."""
        if name not in self._wanted:
            self._wanted.add(name)
            self._ask(name)

    def changed(self) -> set[str]:
        """Names whose address is another than before, since the last call."""
        names = set()
        while not self._answers.empty():
            name, address = self._answers.get()
            self._pending.discard(name)
            if address and name in self._wanted and self._known.get(name) != address:
                self._known[name] = address
                names.add(name)
        return names

    def refresh(self, in_use: Collection[str]) -> None:
        """Forget all other names, and ask for these again."""
        self._wanted.intersection_update(in_use)
        for name in self._known.keys() - self._wanted:
            del self._known[name]
        for name in self._wanted:
            self._ask(name)

    def close(self) -> None:
        """Let the threads end, each after the question that it is at."""
        for _ in self._threads:
            self._asked.put(None)
        self._threads.clear()

    def _ask(self, name: str) -> None:
        if name in self._pending:
            return
        self._pending.add(name)
        # Most clusters have no names to resolve, so they get no threads. These are daemons: a
        # resolver that hangs must not hold up the end of the process.
        if len(self._threads) < THREADS:
            thread = threading.Thread(target=self._run, name="hostnames", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._asked.put(name)

    def _run(self) -> None:
        while (name := self._asked.get()) is not None:
            self._answers.put((name, self._address(name)))
            self._bell()

    def _address(self, name: str) -> Address | None:
        """IPv4 before IPv6. What a host tells only itself about its name comes last."""
        try:
            addresses = self._lookup(name)
        except OSError as exc:
            log.debug("agent name not resolved name=%s error=%s", name, exc)
            return None
        return min(
            addresses,
            key=lambda each: (each.is_loopback or each.is_link_local, each.version),
            default=None,
        )
