"""Directories that are watched: what they hand out, once, and never miss."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from kazoo.client import KazooClient
from kazoo.security import make_digest_acl

from lab.zookeeper import Server
from minuteman.errors import SourceError
from minuteman.zookeeper.session import IN_FLIGHT, Content, Session, parse_url
from minuteman.zookeeper.watch import Bells, Directory

DEADLINE_SECONDS = 20.0

Found = dict[str, bytes | None]


class Watched:
    """A session with its bells, and directories of it."""

    def __init__(self, server: Server) -> None:
        self.bells = Bells()
        connected = threading.Event()
        self.session = Session(parse_url(server.url), self.bells.ring, connected.set)
        self.session.start()
        assert connected.wait(DEADLINE_SECONDS)

    def read(self, directory: Directory, rung: set[str] | None = None) -> Found:
        return {path: data(content) for path, content in directory.read(rung)}

    def until_read(self, directory: Directory, expected: Found) -> None:
        """Read what rings until that is what came in sum."""
        found: Found = {}
        while found != expected:
            rung = self.bells.wait(DEADLINE_SECONDS)
            assert rung, f"{found} and nothing more"
            found.update(self.read(directory, rung))


def data(content: Content | SourceError | None) -> bytes | None:
    assert not isinstance(content, SourceError)
    return None if content is None else content.data


@pytest.fixture
def watched(server: Server) -> Iterator[Watched]:
    watched = Watched(server)
    yield watched
    watched.session.close()


@pytest.fixture
def flat(watched: Watched, client: KazooClient, chroot: str) -> Directory:
    """Depth 1: chroot/<leaf>."""
    client.ensure_path(chroot)
    return Directory(watched.session, chroot, depth=1)


@pytest.fixture
def deep(watched: Watched, client: KazooClient, chroot: str) -> Directory:
    """Depth 2: chroot/<bucket>/<leaf>."""
    client.ensure_path(chroot)
    return Directory(watched.session, chroot, depth=2)


def test_a_first_read_hands_out_every_leaf(
    watched: Watched, deep: Directory, client: KazooClient
) -> None:
    written: Found = {
        f"{deep.path}/{bucket}/{leaf}": leaf.encode() for bucket in "ab" for leaf in "12"
    }
    for path, content in written.items():
        client.create(path, content or b"", makepath=True)
    client.ensure_path(f"{deep.path}/empty")
    client.create(f"{deep.path}/a/1/below", b"not a leaf")
    assert watched.read(deep) == written
    assert set(deep.leaves()) == written.keys()


def test_a_second_read_hands_out_nothing(
    watched: Watched, flat: Directory, client: KazooClient
) -> None:
    client.create(f"{flat.path}/leaf", b"1")
    assert watched.read(flat) == {f"{flat.path}/leaf": b"1"}
    assert watched.read(flat) == {}
    assert watched.read(flat, {flat.path, f"{flat.path}/leaf"}) == {}


def test_whatever_happens_to_a_leaf_rings(
    watched: Watched, deep: Directory, client: KazooClient
) -> None:
    path = f"{deep.path}/bucket/leaf"
    assert watched.read(deep) == {}
    client.create(path, b"1", makepath=True)
    watched.until_read(deep, {path: b"1"})
    client.set(path, b"2")
    watched.until_read(deep, {path: b"2"})
    client.delete(path)
    watched.until_read(deep, {path: None})
    assert list(deep.leaves()) == []
    client.create(path, b"3")
    watched.until_read(deep, {path: b"3"})
    client.delete(f"{deep.path}/bucket", recursive=True)
    watched.until_read(deep, {path: None})


def test_a_missing_directory_has_no_leaves(watched: Watched, chroot: str) -> None:
    directory = Directory(watched.session, f"{chroot}/missing", depth=2)
    assert watched.read(directory) == {}
    assert directory.position == 0


def test_what_a_directory_knew_goes_with_it(
    watched: Watched, deep: Directory, client: KazooClient
) -> None:
    paths = [f"{deep.path}/{bucket}/leaf" for bucket in "abc"]
    for path in paths:
        client.create(path, b"", makepath=True)
    watched.read(deep)
    client.delete(f"{deep.path}/a", recursive=True)
    assert watched.read(deep) == {paths[0]: None}
    client.delete(deep.path, recursive=True)
    assert watched.read(deep) == {paths[1]: None, paths[2]: None}


def test_a_leaf_that_vanishes_between_list_and_read_is_gone(
    watched: Watched, flat: Directory, client: KazooClient
) -> None:
    paths = [f"{flat.path}/{number:04}" for number in range(IN_FLIGHT + 2)]
    created = [client.create_async(path, b"1") for path in paths]
    created[-1].get()
    reading = flat.read()
    first, _ = next(reading)
    assert first == paths[0]
    # Everything is listed, and the last leaf is not asked for before half of the others are taken.
    client.delete(paths[-1])
    rest = dict(reading)
    assert rest[paths[-1]] is None
    assert data(rest[paths[-2]]) == b"1"
    assert set(flat.leaves()) == set(paths[:-1])
    client.create(paths[-1], b"2")
    watched.until_read(flat, {paths[-1]: b"2"})


def test_a_leaf_that_was_replaced_while_nobody_looked_is_handed_out(
    watched: Watched, flat: Directory, client: KazooClient
) -> None:
    path = f"{flat.path}/leaf"
    client.create(path, b"same")
    watched.read(flat)
    client.delete(path)
    client.create(path, b"same")
    watched.until_read(flat, {path: b"same"})


def test_doubt_hands_out_what_did_not_change(
    watched: Watched, flat: Directory, client: KazooClient
) -> None:
    path = f"{flat.path}/leaf"
    client.create(path, b"1")
    watched.read(flat)
    flat.doubt([path, f"{flat.path}/unknown", flat.path, "/elsewhere"])
    assert watched.read(flat) == {path: b"1"}
    flat.doubt([path])
    assert watched.read(flat, {path}) == {path: b"1"}


def test_what_is_no_part_of_it_is_not_read(
    watched: Watched, flat: Directory, client: KazooClient
) -> None:
    watched.read(flat)
    client.create(f"{flat.path}/new", b"1")
    other = {"/", "/elsewhere", f"{flat.path}/new/below", f"{flat.path}/unknown"}
    assert watched.read(flat, other) == {}
    assert watched.read(flat, other | {flat.path}) == {f"{flat.path}/new": b"1"}


def test_a_leaf_that_may_not_be_read_comes_as_an_error_each_time(
    watched: Watched, flat: Directory, client: KazooClient
) -> None:
    secret = f"{flat.path}/secret"
    client.create(secret, b"1", acl=[make_digest_acl("somebody", "else", all=True)])
    client.create(f"{flat.path}/open", b"1")
    found = dict(flat.read())
    assert isinstance(found[secret], SourceError)
    assert data(found[f"{flat.path}/open"]) == b"1"
    [(path, again)] = flat.read()
    assert path == secret
    assert isinstance(again, SourceError)


def test_the_position_is_the_highest_zxid_of_what_is_there(
    watched: Watched, deep: Directory, client: KazooClient
) -> None:
    client.create(f"{deep.path}/a/1", b"", makepath=True)
    client.create(f"{deep.path}/b/2", b"", makepath=True)
    watched.read(deep)
    created = client.exists(f"{deep.path}/b/2")
    assert created is not None
    assert deep.position == created.czxid
    changed = client.set(f"{deep.path}/a/1", b"1")
    watched.read(deep, {f"{deep.path}/a/1"})
    assert deep.position == changed.mzxid
    # A removal shows in the directory, so a reader that starts now finds no lower position.
    client.delete(f"{deep.path}/a/1")
    afresh = Directory(watched.session, deep.path, depth=2)
    watched.read(afresh)
    assert afresh.position > changed.mzxid
