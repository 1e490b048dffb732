"""The session: what kazoo leaves to its user."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kazoo.client import KazooClient
from kazoo.security import make_digest_acl

from lab.zookeeper import Server
from minuteman.errors import SourceError
from minuteman.zookeeper.session import IN_FLIGHT, Location, Session, parse_url, probe
from minuteman.zookeeper.watch import Bells

DEADLINE_SECONDS = 20.0


class Observed:
    """A session, what rang in it, and waiting for its connection."""

    def __init__(
        self, location: Location, timeout_seconds: float = 10.0, restart_seconds: float = 60.0
    ) -> None:
        self.bells = Bells()
        self._changed = threading.Event()
        self.session = Session(
            location,
            self.bells.ring,
            self._changed.set,
            timeout_seconds=timeout_seconds,
            restart_seconds=restart_seconds,
        )

    def until(self, condition: Callable[[], bool], *, tend: bool = False) -> None:
        """Wait for a change of the connection that makes `condition` true."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            self._changed.clear()
            if condition():
                return
            seconds = deadline - time.monotonic()
            assert seconds > 0, self.session.connection
            self._changed.wait(min(seconds, self.session.tend()) if tend else seconds)

    def until_connected(self, *, tend: bool = False) -> None:
        self.until(lambda: self.session.connection.connected, tend=tend)

    def until_lost(self) -> None:
        self.until(lambda: not self.session.connection.connected)


@contextmanager
def observing(
    location: Location, timeout_seconds: float = 10.0, restart_seconds: float = 60.0
) -> Iterator[Observed]:
    observed = Observed(location, timeout_seconds, restart_seconds)
    observed.session.start()
    try:
        yield observed
    finally:
        observed.session.close()


@pytest.fixture
def observed(server: Server) -> Iterator[Observed]:
    with observing(parse_url(server.url)) as connected:
        connected.until_connected()
        yield connected


# ---- reads ---------------------------------------------------------------------------------------
def test_pipelined_reads_come_in_order_and_say_what_is_missing(
    observed: Observed, client: KazooClient, chroot: str
) -> None:
    client.ensure_path(chroot)
    paths = [f"{chroot}/{number:04}" for number in range(2 * IN_FLIGHT + 10)]
    written = [
        client.create_async(path, path.encode()) for number, path in enumerate(paths) if number % 3
    ]
    for answer in written:
        answer.get()
    found = list(observed.session.get(paths))
    assert [path for path, _ in found] == paths
    for number, (path, content) in enumerate(found):
        if number % 3:
            assert not isinstance(content, SourceError)
            assert content is not None
            assert content.data == path.encode()
        else:
            assert content is None


def test_a_watch_rings_once_with_its_path(
    observed: Observed, client: KazooClient, chroot: str
) -> None:
    path = f"{chroot}/znode"
    client.create(path, b"1", makepath=True)
    list(observed.session.get([path]))
    list(observed.session.children([chroot]))
    client.set(path, b"2")
    assert observed.bells.wait(DEADLINE_SECONDS) == {path}
    client.set(path, b"3")
    client.create(f"{chroot}/other")
    assert observed.bells.wait(DEADLINE_SECONDS) == {chroot}


def test_a_read_without_a_watch_rings_nothing(
    observed: Observed, client: KazooClient, chroot: str
) -> None:
    client.create(f"{chroot}/znode", b"1", makepath=True)
    client.create(f"{chroot}/last", b"1")
    list(observed.session.get([f"{chroot}/znode"], watch=False))
    list(observed.session.children([chroot], watch=False))
    list(observed.session.get([f"{chroot}/last"]))
    client.set(f"{chroot}/znode", b"2")
    client.create(f"{chroot}/other")
    client.set(f"{chroot}/last", b"2")
    # Watches fire in the order of the changes, so the others would have rung before.
    assert observed.bells.wait(DEADLINE_SECONDS) == {f"{chroot}/last"}


def test_the_creation_of_a_missing_znode_rings(
    observed: Observed, client: KazooClient, chroot: str
) -> None:
    assert observed.session.content_of(f"{chroot}/late") is None
    assert observed.session.children_of(chroot) is None
    client.ensure_path(chroot)
    assert observed.bells.wait(DEADLINE_SECONDS) == {chroot}
    client.create(f"{chroot}/late", b"here")
    assert observed.bells.wait(DEADLINE_SECONDS) == {f"{chroot}/late"}
    content = observed.session.content_of(f"{chroot}/late")
    assert content is not None
    assert content.data == b"here"
    listing = observed.session.children_of(chroot)
    assert listing is not None
    assert listing.names == ("late",)
    assert listing.stat.pzxid == content.stat.mzxid == content.stat.czxid


def test_a_znode_that_may_not_be_read_does_not_stop_the_others(
    observed: Observed, client: KazooClient, chroot: str
) -> None:
    client.create(f"{chroot}/open", b"", makepath=True)
    owner = make_digest_acl("somebody", "else", all=True)
    client.create(f"{chroot}/secret", b"", acl=[owner])
    found = dict(observed.session.get([f"{chroot}/secret", f"{chroot}/open"]))
    assert isinstance(found[f"{chroot}/secret"], SourceError)
    assert not isinstance(found[f"{chroot}/open"], SourceError)
    with pytest.raises(SourceError, match="not allowed"):
        observed.session.content_of(f"{chroot}/secret")
    with pytest.raises(SourceError, match="credentials"):
        observed.session.children_of(f"{chroot}/secret")


def test_credentials_open_what_is_theirs_and_are_never_shown(
    server: Server, client: KazooClient, chroot: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    owner = make_digest_acl("me", "pass@word", all=True)
    client.ensure_path(chroot)
    client.create(f"{chroot}/secret", b"1", acl=[owner])
    location = parse_url(f"zk://me:pass@word@{server.address}")
    with observing(location) as observed:
        observed.until_connected()
        content = observed.session.content_of(f"{chroot}/secret")
        assert content is not None
        assert content.data == b"1"
    assert "pass@word" not in f"{location} {location!r}"
    assert not [record for record in caplog.records if "pass@word" in record.getMessage()]


def test_reads_without_a_connection_fail_at_once(own_server: Server) -> None:
    with observing(parse_url(own_server.url)) as observed:
        observed.until_connected()
        own_server.kill()
        observed.until_lost()
        with pytest.raises(SourceError, match="no connection"):
            observed.session.exists("/")
        with pytest.raises(SourceError, match="no connection"):
            list(observed.session.get(["/"]))


def test_a_silent_server_fails_the_reads_that_wait_for_it(own_server: Server) -> None:
    with observing(parse_url(own_server.url), timeout_seconds=2.0) as observed:
        observed.until_connected()
        own_server.pause()
        with pytest.raises(SourceError, match="ConnectionLoss"):
            list(observed.session.get(["/"] * 10))
        own_server.resume()
        observed.until_connected()
        assert len(list(observed.session.get(["/"] * 10))) == 10


# ---- life ----------------------------------------------------------------------------------------
def test_it_starts_before_the_server_does(tmp_path: Path) -> None:
    late = Server(tmp_path)
    began = time.monotonic()
    with observing(parse_url(late.url)) as observed:
        assert time.monotonic() - began < 1.0
        assert not observed.session.connection.connected
        with late:
            observed.until_connected()
            assert observed.session.exists("/") is not None


def test_a_restarted_server_gives_the_same_session_a_new_connection(own_server: Server) -> None:
    # A server that is asked while it starts may never answer. Three names for it: a third of the
    # session's timeout is waited for each answer, and the session outlives that.
    location = parse_url(f"zk://{','.join(3 * [own_server.address])}")
    with observing(location, timeout_seconds=20.0) as observed:
        observed.until_connected()
        before = observed.session.connection
        own_server.kill()
        observed.until_lost()
        own_server.start()
        observed.until_connected()
        after = observed.session.connection
        assert (after.number, after.session) == (before.number + 1, before.session)
        assert after.since_monotonic > before.since_monotonic


def test_an_expired_session_is_followed_by_another(own_server: Server) -> None:
    with observing(parse_url(own_server.url)) as observed:
        observed.until_connected()
        before = observed.session.connection
        expire(observed.session, own_server)
        observed.until(lambda: observed.session.connection.session != before.session)
        observed.until_connected()
        assert observed.session.connection.number == before.number + 1
        assert observed.session.exists("/") is not None


def expire(session: Session, server: Server) -> None:
    """End the session from the server's side: somebody else resumes and closes it."""
    assert session._client is not None
    thief = KazooClient(server.address, client_id=session._client.client_id)
    thief.start()
    thief.stop()
    thief.close()


def test_a_wiped_server_is_accepted_after_the_restart(own_server: Server) -> None:
    with observing(parse_url(own_server.url), restart_seconds=2.0) as observed:
        observed.until_connected()
        before = observed.session.connection
        own_server.kill()
        own_server.wipe()
        own_server.start()
        observed.until_connected(tend=True)
        assert observed.session.connection.session > before.session
        assert observed.session.exists("/") is not None


def test_close_may_be_called_twice_and_without_a_server(tmp_path: Path) -> None:
    observed = Observed(parse_url(Server(tmp_path).url))
    observed.session.close()
    observed.session.start()
    observed.session.close()
    observed.session.close()
    assert not observed.session.connection.connected
    with pytest.raises(SourceError, match="no connection"):
        observed.session.exists("/")


# ---- probe ---------------------------------------------------------------------------------------
def test_probe_says_what_is_there(server: Server, client: KazooClient, chroot: str) -> None:
    location = parse_url(server.url)
    assert probe(location, chroot) is None
    client.ensure_path(chroot)
    assert probe(location, chroot) is not None


def test_probe_says_that_nobody_is_there(tmp_path: Path) -> None:
    location = parse_url(Server(tmp_path).url)
    with pytest.raises(SourceError, match=f"no ZooKeeper at {re.escape(str(location))}"):
        probe(location, "/", timeout_seconds=0.5)
