"""`minuteman events` as a process: against a real front process, with the test as its agent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minuteman.feed import EVENTS_PLEASE, Events, lost
from tests.contract.fronts import DEADLINE_SECONDS, USER, Front, start, update
from tests.contract.test_events import WEB, asked, lines

MINUTEMAN = Path(sys.executable).with_name("minuteman")
UTC = {**os.environ, "TZ": "UTC"}


@pytest.fixture
def front() -> Iterator[Front]:
    with start(USER) as front:
        front.await_listening()
        front.publish(update())
        yield front


@contextmanager
def listening(front: Front, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once it listens."""
    command = subprocess.Popen(
        [MINUTEMAN, "events", "--api", front.address, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=UTC,
    )
    try:
        assert asked(front) == EVENTS_PLEASE
        yield command
    finally:
        command.kill()
        command.communicate()


def result(command: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Exit code, lines and errors of a command that ends by itself."""
    out, err = command.communicate(timeout=DEADLINE_SECONDS)
    return command.returncode, out.splitlines(), err


def test_events_are_lines_with_columns(front: Front) -> None:
    refused = {
        "backend": None,
        "outcome": "refused_empty",
        "vip": "1.2.3.4:5000",
        "waited_us": None,
    }
    unknown = {"waited_us": 1_500_000, "cgroup": None, "pid": None, "command": None}
    with listening(front, "--count", "3") as command:
        front.send(Events(lines(WEB, WEB | refused, WEB | unknown)))
        code, [head, *rows], err = result(command)
    assert (code, err) == (0, "")
    assert [" ".join(line.split()) for line in (head, *rows)] == [
        "Time Outcome Waited VIP Backend Task Process Cgroup",
        "03:04:05.000 connected 321us web.marathon.l4lb.thisdcos.directory:80 10.0.0.1:31001 web.1 "
        "curl[4711] /mesos/0",
        "03:04:05.000 refused_empty 1.2.3.4:5000 curl[4711] /mesos/0",
        "03:04:05.000 connected 1.5s web.marathon.l4lb.thisdcos.directory:80 10.0.0.1:31001 web.1",
    ]
    assert rows[0].index("/mesos/0") == rows[1].index("/mesos/0"), "what is wide makes it wider"


def test_json_is_what_rest_sends(front: Front) -> None:
    with listening(front, "--json", "--count", "2") as command:
        front.send(Events(lines(WEB) + lost(7) + lines(WEB | {"pid": 1}, WEB)))
        code, out, err = result(command)
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out]
    assert [event.get("pid") for event in found] == [4711, None, 1]
    assert found[1] == {"lost": 7}
    assert found[0]["task_id"] == "web.1"


def test_what_is_lost_is_said_and_not_counted(front: Front) -> None:
    with listening(front, "--count", "1") as command:
        front.send(Events(lost(7) + lines(WEB)))
        code, out, err = result(command)
    assert (code, len(out)) == (0, 2)
    assert err == "7 events were lost: there were too many at once\n"


def test_filters_are_those_of_rest(front: Front) -> None:
    options = ("--vip", "web.marathon", "--backend", "web.1", "--outcome", "connected")
    with listening(front, "--json", "--count", "1", *options) as command:
        others = ({"vip": "1.2.3.4:5000"}, {"backend": "10.0.0.2:31777"}, {"outcome": "closed"})
        front.send(Events(lines(*(WEB | other for other in others), WEB | {"pid": 1})))
        code, [line], _ = result(command)
    assert (code, json.loads(line)["pid"]) == (0, 1)


def test_a_name_of_a_process_steers_no_terminal(front: Front) -> None:
    with listening(front, "--count", "1") as command:
        front.send(Events(lines(WEB | {"command": "\x1b[2J\u2028\r\nx"})))
        code, [_, row], _ = result(command)
    assert code == 0
    assert "  \ufffd[2J\ufffd\ufffd\ufffdx[4711]  " in row


def test_ctrl_c_ends_it(front: Front) -> None:
    with listening(front) as command:
        front.send(Events(lines(WEB)))
        assert command.stdout is not None
        for _ in range(2):
            assert command.stdout.readline()
        command.send_signal(signal.SIGINT)
        assert result(command) == (0, [], "")


def test_a_pipe_that_is_closed_ends_it(front: Front) -> None:
    with listening(front) as command:
        assert command.stdout is not None
        assert command.stdout.readline()
        command.stdout.close()
        front.send(Events(lines(WEB)))
        assert command.wait(DEADLINE_SECONDS) == 0
        assert command.stderr is not None
        assert command.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_agent(front: Front, number: signal.Signals) -> None:
    with listening(front) as command:
        assert command.stdout is not None
        assert command.stdout.readline()
        front.process.send_signal(number)
        code, out, err = result(command)
    assert (code, out) == (os.EX_UNAVAILABLE, [])
    assert err == f"minuteman: the agent at http://{front.address} has ended\n"


def test_no_agent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    command = subprocess.run(
        [MINUTEMAN, "events", "--api", f"127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
    )
    assert (command.returncode, command.stdout) == (os.EX_UNAVAILABLE, "")
    assert command.stderr.startswith(f"minuteman: no agent answers at http://127.0.0.1:{port};")
    assert command.stderr.count("\n") == 1
