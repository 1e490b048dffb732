"""Root's socket: one line each way, and no client can hold the agent up."""

from __future__ import annotations

import selectors
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from minuteman.control import (
    BACKLOG,
    LINE_BYTES,
    ControlSocket,
    Reply,
    Request,
    SkippedCgroup,
)
from minuteman.errors import SourceError

PATIENCE_SECONDS = 5.0
MANY = tuple(SkippedCgroup(f"/{number}/{'x' * 1000}", number, "root") for number in range(1000))
"""More than a socket takes at once."""


class Agent:
    """Turns a selector, and notes what it is asked to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Request] = []
        self.selector = selectors.DefaultSelector()
        self.control = ControlSocket(path, self.selector, self.do)

    def do(self, request: Request) -> Reply:
        if request.call == "skipped":
            return Reply(True, cgroups=MANY)
        if request.call != "believe":
            raise SourceError(f"no {request.call} here")
        self.asked.append(request)
        return Reply(True)

    def turn(self) -> None:
        """React until nothing is ready."""
        while ready := self.selector.select(0.0):
            for key, events in ready:
                key.data(events)

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE_SECONDS)
        client.connect(str(self.path))
        return client

    def ask(self, *pieces: bytes) -> bytes:
        """What one client gets back for what it sends."""
        with self.client() as client:
            for piece in pieces:
                client.sendall(piece)
                self.turn()
            return client.recv(LINE_BYTES)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "control.sock")
    yield agent
    agent.control.close()
    assert not agent.path.exists()
    assert not agent.selector.get_map()
    agent.selector.close()


def test_a_request_is_done_and_answered(agent: Agent) -> None:
    assert agent.ask(b'{"call": "believe", "source": "marathon"}\n') == b'{"ok":true}\n'
    assert agent.asked == [Request("believe", "marathon")]


def test_a_request_may_come_in_pieces(agent: Agent) -> None:
    assert agent.ask(b'{"call": "bel', b'ieve"}', b"\n") == b'{"ok":true}\n'


def test_a_long_answer_goes_out_as_fast_as_it_is_read(agent: Agent) -> None:
    with agent.client() as client, client.makefile("rb") as lines:
        client.sendall(b'{"call": "skipped"}\n')
        agent.turn()
        assert agent.ask(b'{"call": "believe"}\n') == b'{"ok":true}\n'
        answer = b""
        while not answer.endswith(b"\n"):
            answer += lines.read1()
            agent.turn()
        assert lines.read() == b""
    assert msgspec.json.decode(answer, type=Reply) == Reply(True, cgroups=MANY)


def test_who_leaves_in_the_middle_of_an_answer_is_forgotten(agent: Agent) -> None:
    with agent.client() as client:
        client.sendall(b'{"call": "skipped"}\n')
        agent.turn()
        client.recv(1)
    agent.turn()
    assert len(agent.selector.get_map()) == 1


def test_what_cannot_be_done_is_answered_with_its_reason(agent: Agent) -> None:
    assert agent.ask(b'{"call": "dance"}\n') == b'{"ok":false,"reason":"no dance here"}\n'


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[1]\n", b'{"call": 5}\n', b"\xff\n", b"x" * LINE_BYTES]
)
def test_what_is_no_request_is_said_to_be_none(agent: Agent, line: bytes) -> None:
    assert agent.ask(line).startswith(b'{"ok":false,"reason":"')
    assert agent.asked == []


def test_clients_that_say_nothing_leave_the_others_alone(agent: Agent) -> None:
    silent = [agent.client() for _ in range(BACKLOG - 1)]
    agent.turn()
    assert agent.ask(b'{"call": "believe"}\n') == b'{"ok":true}\n'
    silent[0].close()
    silent[1].shutdown(socket.SHUT_WR)
    agent.turn()
    assert b"one line" in silent[1].recv(LINE_BYTES)
    for client in silent:
        client.close()
    agent.turn()
    assert agent.ask(b'{"call": "believe"}\n') == b'{"ok":true}\n'


def test_more_clients_than_it_serves_at_once_are_turned_away(agent: Agent) -> None:
    crowd = []
    for _ in range(BACKLOG + 1):
        crowd.append(agent.client())
        agent.turn()
    assert crowd[-1].recv(1) == b""
    for client in crowd:
        client.close()
    agent.turn()


def test_only_its_owner_may_use_it(agent: Agent) -> None:
    assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600


def test_what_an_agent_that_was_killed_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    agent = Agent(path)
    assert agent.ask(b'{"call": "believe"}\n') == b'{"ok":true}\n'
    agent.control.close()
    agent.selector.close()
