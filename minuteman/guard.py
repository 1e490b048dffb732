"""Which addresses no label may take, as they are now: of this host, its resolvers and ZooKeeper."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from minuteman.dataplane.sockets import local_addresses
from minuteman.errors import DataplaneError
from minuteman.model import Address
from minuteman.policy import LiteralPolicy
from minuteman.source.hostnames import Lookup, system_lookup

log = logging.getLogger(__name__)

REFRESH_SECONDS = 60.0
RESOLV_CONF = Path("/etc/resolv.conf")


class Guard:
    """Keeps the policy for literal VIPs current, in a thread: a resolver may take its time.

    Args:
        policy: What an operator allows.
        zookeeper: Addresses and names of ZooKeeper's servers.
        lookup: What names are asked of.
        resolv_conf: Names this host's resolvers.
    """

    def __init__(
        self,
        policy: LiteralPolicy,
        zookeeper: Sequence[str],
        lookup: Lookup = system_lookup,
        resolv_conf: Path = RESOLV_CONF,
    ) -> None:
        self._zookeeper = zookeeper
        self._lookup = lookup
        self._resolv_conf = resolv_conf
        self._resolvers: frozenset[Address] = frozenset()
        self.local: frozenset[Address] = frozenset()
        """This host's own addresses."""
        self._resolved: dict[str, Sequence[Address]] = {}
        """The last good answer for each name."""
        self._closing = threading.Event()
        self.policy = policy
        """The newest one: another object when it or `local` changed. At first without names."""
        self._look_at_host()
        self.policy = self._guarded()

    def start(self, bell: Callable[[], None], also: Callable[[], bool]) -> None:
        """Look again now and then, and do `also` each time, all from a thread.

        `bell` is rung when `policy` is another object, or `also` says that something has changed.
        """
        threading.Thread(target=self._run, args=(bell, also), name="guard", daemon=True).start()

    def close(self) -> None:
        """Have the thread end, after what it is at."""
        self._closing.set()

    def _run(self, bell: Callable[[], None], also: Callable[[], bool]) -> None:
        while not self._closing.is_set():
            if also():
                bell()
            local = self.local
            self._look_at_host()
            self._resolve()
            policy = self._guarded()
            # An address that is ZooKeeper's, too, comes and goes without a change of the policy.
            if policy != self.policy or self.local != local:
                self.policy = policy
                bell()
            self._closing.wait(REFRESH_SECONDS)

    def _look_at_host(self) -> None:
        try:
            self.local = local_addresses()
        except DataplaneError as exc:
            log.warning("own addresses not read error=%s", exc)
        try:
            text = self._resolv_conf.read_text(encoding="utf-8", errors="replace")
        except OSError as exc:  # a host without DNS has none
            log.debug("resolvers not read error=%s", exc)
        else:
            self._resolvers = frozenset(_resolvers(text))

    def _resolve(self) -> None:
        for name in self._zookeeper:
            if _address(name) is None:
                try:
                    self._resolved[name] = self._lookup(name)
                except OSError as exc:
                    log.debug("name not resolved name=%s error=%s", name, exc)

    def _guarded(self) -> LiteralPolicy:
        forbidden = dict.fromkeys(self._resolvers, "a resolver")
        forbidden |= dict.fromkeys(self.local, "this host")
        for name in self._zookeeper:
            address = _address(name)
            known = self._resolved.get(name, ()) if address is None else (address,)
            forbidden |= dict.fromkeys(known, "ZooKeeper")
        return replace(self.policy, forbidden=forbidden)


def _resolvers(resolv_conf: str) -> Iterator[Address]:
    """The addresses that a resolv.conf names."""
    for line in resolv_conf.splitlines():
        match line.split():
            case ["nameserver", host, *_] if address := _address(host):
                yield address


def _address(host: str) -> Address | None:
    """The address that `host` is; None when it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None
