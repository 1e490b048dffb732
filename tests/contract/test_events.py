"""Events on their way to people: a real front process, with the test as its agent."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from pydantic import TypeAdapter

from api import schemas
from minuteman.audience import ASK_SECONDS, HEARD_SIZE, LISTENERS, RING_SIZE
from minuteman.feed import EVENTS_PLEASE, Events, Update, lost
from minuteman.model import VipKey, VipName
from tests.contract import published as sample
from tests.contract.fronts import DEADLINE_SECONDS, USER, Front, eventually, start, update

WEB = {
    "time": "2026-01-02T03:04:05.000006Z",
    "protocol": "tcp",
    "vip": "11.0.0.37:80",
    "backend": "10.0.0.1:31001",
    "outcome": "connected",
    "waited_us": 321,
    "cgroup": "/mesos/0",
    "pid": 4711,
    "command": "curl",
}


def lines(*events: dict[str, object]) -> bytes:
    """As the child of the agent writes them."""
    texts = (json.dumps(event, ensure_ascii=False) for event in events)
    return "".join(f"{text}\n" for text in texts).encode()


class Stream:
    """An open stream, read line by line."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def event(self) -> dict[str, object]:
        """The next one."""
        for line in self._lines:
            name, _, data = line.partition(": ")
            if name == "data":
                found: dict[str, object] = json.loads(data)
                return found
        raise EOFError

    def rest(self) -> list[str]:
        """What comes until the end, without empty lines."""
        return [line for line in self._lines if line]


@contextmanager
def listening(front: Front, query: str = "") -> Iterator[Stream]:
    with front.client.stream("GET", f"http://{front.address}/api/events{query}") as response:
        assert response.status_code == 200
        yield Stream(response)


def asked(front: Front) -> bytes:
    """The next byte that the front sends up."""
    front.feed.settimeout(DEADLINE_SECONDS)
    return front.feed.recv(1)


def is_silent(front: Front, seconds: float) -> bool:
    """Whether nothing comes up for so long."""
    front.feed.settimeout(seconds)
    try:
        return not front.feed.recv(1)
    except TimeoutError:
        return True


@pytest.fixture
def front() -> Iterator[Front]:
    with start(USER) as front:
        front.await_listening()
        front.publish(update())
        yield front


@pytest.fixture(scope="module")
def same_front() -> Iterator[Front]:
    """For tests that leave it as it was."""
    with start(USER) as front:
        front.await_listening()
        front.publish(update())
        yield front


def test_an_event_comes_with_the_names_behind_its_addresses(same_front: Front) -> None:
    with listening(same_front) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        same_front.send(Events(lines(WEB)))
        event = stream.event()
    assert event == WEB | {"name": str(sample.WEB), "task_id": "web.1"}
    TypeAdapter(schemas.Event).validate_json(json.dumps(event), strict=True)


@pytest.mark.parametrize(
    ("changed", "name", "task_id"),
    [
        ({"vip": "[fd01:c::25]:80"}, str(sample.WEB), "web.1"),
        ({"backend": "10.0.0.2:31777"}, str(sample.WEB), "web.2"),
        ({"backend": "10.0.0.9:1"}, str(sample.WEB), None),
        ({"backend": None, "outcome": "refused"}, str(sample.WEB), None),
        ({"vip": "1.2.3.4:5000", "backend": "10.0.0.1:31002"}, None, "literal.1"),
        ({"vip": "1.2.3.4:53", "backend": "10.0.0.1:53", "protocol": "udp"}, None, "resolver.1"),
        ({"vip": "1.2.3.4:53", "backend": "10.0.0.1:53"}, None, None),
        ({"vip": "9.9.9.9:9"}, None, None),
    ],
)
def test_whose_the_addresses_are(
    same_front: Front, changed: dict[str, object], name: str | None, task_id: str | None
) -> None:
    with listening(same_front) as stream:
        same_front.send(Events(lines(WEB | changed)))
        event = stream.event()
    assert (event["name"], event["task_id"]) == (name, task_id)


def test_names_follow_the_updates(front: Front) -> None:
    key = VipKey(VipName("new", "marathon"), 80, "tcp")
    born = sample.vip(key, ("11.0.0.99",), sample.backend("10.0.0.1", 31001, "new.1"))
    event = WEB | {"vip": "11.0.0.99:80"}
    sources = sample.published().sources
    with listening(front) as stream:
        front.send(Events(lines(event)))
        front.send(Update(8, whole=False, vips={key: born}, sources=sources))
        front.send(Events(lines(event)))
        front.send(Update(9, whole=False, dropped_vips=frozenset({key}), sources=sources))
        front.send(Events(lines(event)))
        found = [stream.event()["task_id"] for _ in range(3)]
    assert found == [None, "new.1", None]


def test_nobody_listens_and_nothing_is_asked(front: Front) -> None:
    front.send(Events(lines(WEB)))
    assert front.get("/api/events?nonsense=1").status_code == 422
    assert front.get("/api/events?outcome=nonsense").status_code == 422
    assert is_silent(front, 1.5 * ASK_SECONDS)


def test_the_agent_is_asked_each_second_while_somebody_listens(front: Front) -> None:
    started = time.monotonic()
    with listening(front):
        for _ in range(2):
            assert asked(front) == EVENTS_PLEASE
        with listening(front), listening(front):
            for _ in range(2):
                assert asked(front) == EVENTS_PLEASE
            assert time.monotonic() - started > 2.9 * ASK_SECONDS, "once for all of them"
    eventually(lambda: is_silent(front, 1.5 * ASK_SECONDS))


def test_who_comes_later_is_asked_for_again(front: Front) -> None:
    for _ in range(2):
        with listening(front) as stream:
            assert asked(front) == EVENTS_PLEASE
            front.send(Events(lines(WEB)))
            assert stream.event()["pid"] == 4711
        eventually(lambda: is_silent(front, 1.5 * ASK_SECONDS))


def test_what_was_before_is_not_heard(same_front: Front) -> None:
    with listening(same_front) as early:
        same_front.send(Events(lines(WEB | {"pid": 1})))
        assert early.event()["pid"] == 1
        with listening(same_front) as late:
            same_front.send(Events(lines(WEB | {"pid": 2})))
            assert late.event()["pid"] == early.event()["pid"] == 2


@pytest.mark.parametrize(
    ("query", "pids"),
    [
        ("", [1, 2, 3, 4]),
        ("?vip=web.marathon", [1, 2, 3]),
        ("?vip=WEB.Marathon.l4lb", [1, 2, 3]),
        ("?vip=11.0.0.37:80", [1, 2, 3]),
        ("?vip=1.2.3.4:5000", [4]),
        ("?backend=10.0.0.2:31777", [2]),
        ("?backend=web.1", [1]),
        ("?outcome=refused", [3]),
        ("?outcome=connected&vip=web&backend=10.0.0", [1, 2]),
        ("?backend=None", []),
    ],
)
def test_filters(same_front: Front, query: str, pids: list[int]) -> None:
    events = [
        WEB | {"pid": 1},
        WEB | {"pid": 2, "backend": "10.0.0.2:31777"},
        WEB | {"pid": 3, "backend": None, "outcome": "refused"},
        WEB | {"pid": 4, "vip": "1.2.3.4:5000", "backend": "10.0.0.1:31002"},
    ]
    with listening(same_front, query) as stream:
        same_front.send(Events(lines(*events) + lost(5)))
        found = list(iter(stream.event, {"lost": 5}))
    assert [event["pid"] for event in found] == pids


def test_what_cannot_be_read_is_lost(same_front: Front) -> None:
    with listening(same_front, "?vip=no-such-vip") as stream:
        same_front.send(Events(b'no JSON\n{"vip": 7}\n[]\n'))
        assert [stream.event() for _ in range(3)] == [{"lost": 1}] * 3


# ---- ends ----------------------------------------------------------------------------------------
def test_it_ends_with_the_front_and_is_not_cut(front: Front) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(listening(front)) for _ in range(3)]
        front.process.terminate()
        for stream in streams:
            assert stream.rest() == []  # httpx raises when a body has no end
        assert front.process.wait(DEADLINE_SECONDS) == 0


def test_it_ends_with_the_agent_after_what_is_known(front: Front) -> None:
    with listening(front) as stream:
        front.send(Events(lines(*[WEB] * 3)))
        front.feed.close()
        assert len(stream.rest()) == 3
    assert front.process.wait(DEADLINE_SECONDS) == 0


def test_one_that_does_not_read_does_not_keep_it(front: Front) -> None:
    with deaf(front), listening(front) as stream:
        for _ in range(20):
            front.send(Events(lines(*[WEB] * 1000)))
            stream.event()
        front.process.terminate()
        assert front.process.wait(DEADLINE_SECONDS) == 0
        assert front.process.stderr is not None
        assert "Traceback" not in front.process.stderr.read()


def test_as_many_as_may_listen(front: Front) -> None:
    with ExitStack() as stack:
        for _ in range(LISTENERS):
            stack.enter_context(listening(front))
        refused = front.get("/api/events")
        assert refused.status_code == 503
        assert "listen" in refused.json()["detail"]

    def is_free() -> bool:
        with front.client.stream("GET", f"http://{front.address}/api/events") as response:
            return response.status_code == 200

    eventually(is_free)


def test_before_the_agent_has_reported_it_is_a_503() -> None:
    with start(USER) as front:
        front.await_listening()
        assert front.get("/api/events").status_code == 503
        assert is_silent(front, 0.1)


# ---- slow ones -----------------------------------------------------------------------------------
@contextmanager
def deaf(front: Front) -> Iterator[socket.socket]:
    """A listener that asks and does not read on."""
    host, port = front.address.split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1) == b"H"
        yield client


def test_a_slow_listener_is_told_how_many_it_lost_and_holds_nobody_up(front: Front) -> None:
    total = 3 * RING_SIZE
    with deaf(front) as client, listening(front) as stream:
        for first in range(0, total, HEARD_SIZE):
            block = range(first, min(first + HEARD_SIZE, total))
            front.send(Events(lines(*(WEB | {"pid": number} for number in block))))
            for number in block:
                assert stream.event()["pid"] == number
        client.settimeout(DEADLINE_SECONDS)
        text = ""
        while f'"pid": {total - 1},' not in text[-10_000:]:
            text += client.recv(1 << 16).decode()
    data = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    gaps = [event["lost"] for event in data if "lost" in event]
    heard = [event["pid"] for event in data if "pid" in event]
    assert len(gaps) == 1
    assert gaps[0] + len(heard) == total, "each was heard, or counted"
    assert heard == sorted(heard)
    assert heard[0] == 0
    assert heard[-1] == total - 1
