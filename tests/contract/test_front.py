"""The front process: a real child at the other end of a real socket pair."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minuteman.errors import ConfigError, SourceError
from minuteman.feed import COUNTERS_PLEASE, Update, encode
from minuteman.front import FeedReader, listen
from minuteman.model import Counters, SourceHealth
from tests.contract import published as sample
from tests.contract.fronts import DEADLINE_SECONDS, USER, Front, eventually, start, update

ROOT = Path(__file__).parents[2]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def front() -> Iterator[Front]:
    with start(USER) as front:
        front.await_listening()
        yield front


def status_of(process: subprocess.Popen[str]) -> dict[str, list[str]]:
    """/proc/<pid>/status, by name."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def test_it_is_starting_until_the_first_update(front: Front) -> None:
    health = front.get("/api/health")
    assert health.status_code == 503
    assert health.json()["status"] == "starting"
    assert front.get("/api/vips/tcp/web.marathon:80").status_code == 503

    front.publish(update())

    assert front.get("/api/health").json()["status"] == "ok"


def test_updates_are_served(front: Front) -> None:
    front.publish(update(7))
    assert len(front.get("/v1/vips").json()) == 5

    dropped = frozenset({sample.LITERAL})
    sources = {"marathon": SourceHealth(fresh=False, since_monotonic=time.monotonic())}
    front.publish(Update(8, whole=False, dropped_vips=dropped, sources=sources, attached=True))

    assert len(front.get("/v1/vips").json()) == 4
    assert front.get("/api/health").json()["status"] == "degraded"


def test_a_whole_update_replaces_everything(front: Front) -> None:
    front.publish(update(7))
    web = {sample.WEB: sample.published().vips[sample.WEB]}

    front.publish(Update(8, whole=True, vips=web, sources=sample.published().sources))

    assert [vip["vip"] for vip in front.get("/v1/vips").json()] == [str(sample.WEB)]


def test_a_large_update_arrives_in_pieces(front: Front) -> None:
    frame = encode(update(7))
    for byte in range(0, len(frame), 100):
        front.feed.sendall(frame[byte : byte + 100])
    eventually(lambda: front.generation() == 7)


def test_counters_are_asked_for_once_however_many_want_them(front: Front) -> None:
    front.publish(update())
    with ThreadPoolExecutor(50) as pool:
        started = time.monotonic()
        answers = [pool.submit(front.get, "/api/vips/tcp/web.marathon:80") for _ in range(50)]
        assert front.feed.recv(1) == COUNTERS_PLEASE
        front.send(sample.COUNTERS)
        front.feed.settimeout(0.1)
        asked = 1
        while not all(answer.done() for answer in answers):
            try:
                asked += len(front.feed.recv(100))
            except TimeoutError:
                continue
            front.send(sample.COUNTERS)
        took = time.monotonic() - started
    bodies = {answer.result().text for answer in answers}
    assert len(bodies) == 1
    assert '"successes":33' in bodies.pop()
    assert asked <= 1 + took, "at most once a second"


def test_counters_that_do_not_come_are_a_503(front: Front) -> None:
    front.publish(update())
    response = front.get("/api/vips")
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert "agent" in response.json()["detail"]
    assert front.get("/v1/vips").status_code == 200, "what needs no counters goes on"


def test_it_ends_when_the_socket_closes(front: Front) -> None:
    front.publish(update())
    front.feed.close()
    assert front.process.wait(DEADLINE_SECONDS) == 0


def test_an_open_connection_does_not_keep_it(front: Front) -> None:
    front.publish(update())
    host, port = front.address.split(":")
    with socket.create_connection((host, int(port))) as idle:
        idle.sendall(b"GET /api/vips HTTP/1.1\r\nHost: x\r\n\r\n")
        assert front.feed.recv(1) == COUNTERS_PLEASE
        front.feed.close()
        assert front.process.wait(DEADLINE_SECONDS) == 0


def test_it_ignores_the_terminals_interrupt_and_ends_at_sigterm(front: Front) -> None:
    front.process.send_signal(signal.SIGINT)
    front.publish(update())
    front.process.send_signal(signal.SIGTERM)
    assert front.process.wait(DEADLINE_SECONDS) == 0


def test_the_next_one_takes_the_port_at_once() -> None:
    with start(USER) as first:
        first.await_listening()
        first.publish(update())
        first.process.kill()
        first.process.wait()
        with start(USER, address=first.address) as second:
            second.await_listening()
            second.publish(update())
            assert second.get("/v1/vips").status_code == 200


def test_a_taken_port_is_one_clear_line(front: Front) -> None:
    with start(USER, address=front.address) as second:
        _, said = second.process.communicate(timeout=DEADLINE_SECONDS)
    assert second.process.returncode == os.EX_TEMPFAIL
    assert said.count("\n") == 1
    assert f"cannot listen at {front.address}: Address already in use" in said


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0:0", "not a loopback"),
        ("[fd00::1]:80", "not a loopback"),
        ("127.0.0.1", "no port"),
        ("localhost:80", "not address:port"),
        ("127.0.0.1:http", "not address:port"),
        ("127.0.0.1:70000", "not address:port"),
    ],
)
def test_it_listens_on_the_loopback_only(address: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        listen(address)


@pytest.mark.parametrize(("address", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")])
def test_it_listens_on_either_family(address: str, host: str) -> None:
    with listen(address) as listener:
        assert listener.getsockname()[0] == host
        assert listener.proto == socket.IPPROTO_TCP, "else asyncio sends small answers with delay"


@pytest.mark.parametrize(
    ("user", "reason"), [("root", "must not be root"), ("no-such-user", "no user")]
)
def test_a_user_that_cannot_be(user: str, reason: str) -> None:
    with start(user) as front:
        _, said = front.process.communicate(timeout=DEADLINE_SECONDS)
    assert front.process.returncode == os.EX_CONFIG
    assert reason in said


@needs_root
def test_it_has_no_privilege_left(front: Front) -> None:
    status = status_of(front.process)
    nobody = pwd.getpwnam("nobody")
    assert status["Uid"] == [str(nobody.pw_uid)] * 4
    assert status["Gid"] == [str(nobody.pw_gid)] * 4
    assert status["Groups"] == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name][0], 16) == 0, name
    assert status["NoNewPrivs"] == ["1"]
    # Of a process that may not be dumped, /proc belongs to root.
    assert Path(f"/proc/{front.process.pid}/environ").stat().st_uid == 0


@needs_root
def test_it_needs_no_file_after_the_start(tmp_path: Path) -> None:
    """A checkout that the user cannot read: everything is imported before it changes its user."""
    tmp_path.chmod(0o700)
    checkout = tmp_path / "checkout"
    checkout.symlink_to(ROOT)
    prefix = Path(sys.prefix)
    assert prefix.is_relative_to(ROOT), "run the tests with the project's own environment"
    python = str(checkout / prefix.relative_to(ROOT) / "bin" / "python")
    with start("nobody", python=python, PYTHONPATH=str(checkout)) as front:
        front.await_listening()
        front.publish(update())
        with front.answering():
            for path, status in [
                ("/", 200),
                ("/docs", 200),
                ("/docs/swagger-ui.js", 200),
                ("/docs/swagger-ui.css", 200),
                ("/openapi.json", 200),
                ("/v1/vips", 200),
                ("/v1/version", 200),
                ("/api/health", 200),
                ("/api/problems", 200),
                ("/api/vips", 200),
                ("/api/vips/tcp/web.marathon:80", 200),
                ("/metrics", 200),
                ("/nowhere", 404),
                ("/api/vips/tcp/nonsense", 422),
                ("/api/vips?nonsense=1", 422),
            ]:
                assert front.get(path).status_code == status, path


async def _pair() -> tuple[FeedReader, socket.socket, asyncio.Task[None]]:
    """A reader whose questions time out fast, the agent's end, and the reader's task."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reader = FeedReader(timeout_seconds=0.2)
    following = asyncio.create_task(reader.follow(theirs))
    await asyncio.get_running_loop().sock_sendall(ours, encode(update(1)))
    await reader.changed(0)
    return reader, ours, following


async def _ask(reader: FeedReader, ours: socket.socket, times: int) -> tuple[bytes, list[Counters]]:
    """What was sent up when `times` callers wanted counters at once, and what they got."""
    loop = asyncio.get_running_loop()
    callers = [asyncio.create_task(reader.counters()) for _ in range(times)]
    sent = await loop.sock_recv(ours, 100)
    await loop.sock_sendall(ours, encode(sample.COUNTERS))
    return sent, await asyncio.gather(*callers)


def test_one_question_is_open_at_a_time() -> None:
    async def scenario() -> None:
        reader, ours, following = await _pair()
        sent, answers = await _ask(reader, ours, 50)
        assert sent == COUNTERS_PLEASE
        assert answers == [sample.COUNTERS] * 50
        assert await reader.counters() is answers[0], "a second has not passed"
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        ours.close()
        await following

    asyncio.run(scenario())


def test_an_unanswered_question_is_not_repeated() -> None:
    async def scenario() -> None:
        reader, ours, following = await _pair()
        for _ in range(3):
            with pytest.raises(SourceError, match="does not answer"):
                await reader.counters()
        assert ours.recv(100) == COUNTERS_PLEASE
        ours.close()
        await following
        with pytest.raises(SourceError, match="not connected"):
            await reader.counters()

    asyncio.run(scenario())


def test_old_counters_are_asked_for_again() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        reader = FeedReader(age_seconds=0.0)
        following = asyncio.create_task(reader.follow(theirs))
        await asyncio.get_running_loop().sock_sendall(ours, encode(update(1)))
        await reader.changed(0)
        for _ in range(3):
            sent, answers = await _ask(reader, ours, 1)
            assert sent == COUNTERS_PLEASE
            assert answers == [sample.COUNTERS]
        ours.close()
        await following

    asyncio.run(scenario())


def test_waiting_for_a_change() -> None:
    async def scenario() -> None:
        reader, ours, following = await _pair()
        waiting = asyncio.create_task(reader.changed(1))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(ours, encode(update(1)))
        await loop.sock_sendall(ours, encode(update(2)))
        assert (await waiting).generation == 2
        assert (await reader.changed(0)).generation == 2
        ours.close()
        await following

    asyncio.run(scenario())
