"""The command line, as processes: against a real front process and a real control socket."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from minuteman import __version__
from minuteman.feed import Update
from minuteman.model import BackendCounters, Counters, SourceHealth, VipKey, VipName
from tests.contract import published as sample
from tests.contract.fronts import DEADLINE_SECONDS, USER, Front, start, update

MINUTEMAN = Path(sys.executable).with_name("minuteman")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MINUTEMAN, *words],
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE_SECONDS,
        env={**os.environ, **environment},
    )


def one_line(command: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """What a command that failed in an expected way says: one line, and no traceback."""
    assert command.returncode == exit_code, command.stderr
    assert command.stderr.count("\n") == 1, command.stderr
    assert command.stderr.startswith("minuteman: ")
    return command.stderr


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with start(USER) as front:
        front.await_listening()
        front.publish(update())
        with front.answering():
            yield front


@pytest.fixture(scope="module")
def starting_front() -> Iterator[Front]:
    with start(USER) as front:
        front.await_listening()
        yield front


# ---- vips, vip, problems -------------------------------------------------------------------------
def body(command: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a table, without its head."""
    lines = command.stdout.splitlines()
    rule = next(number for number, line in enumerate(lines) if set(line.strip()) == {"─"})
    return [line for line in lines[rule + 1 :] if line.strip()]


def rows(command: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a table, without what aligns them."""
    assert command.returncode == 0, command.stderr
    return [" ".join(line.split()) for line in body(command)]


def test_vips_is_a_table(front: Front) -> None:
    command = run("vips", "--api", front.address)
    assert rows(command) == [
        "api.hello-world.dev.marathon.l4lb.thisdcos.directory:8080 tcp 1 0 0 0 0 0 0 0 0B 0B",
        "sleepy.marathon.l4lb.thisdcos.directory:80 tcp 11.5.5.5 0 0 0 0 0 0 0 0 0B 0B",
        "web.marathon.l4lb.thisdcos.directory:80 tcp 11.0.0.37 fd01:c::25 300s "
        "1 1 1 1 3 52 38 11 3.0kB 2.5MB",
        "1.2.3.4:53 udp 1.2.3.4 1 0 0 0 0 0 0 0 0B 0B",
        "1.2.3.4:5000 tcp 1.2.3.4 1 0 0 0 0 0 0 0 0B 0B",
        "[fd01:c::1]:80 tcp fd01:c::1 1 0 0 0 0 0 0 0 0B 0B",
    ]
    assert command.stderr == ""


def test_vips_can_be_narrowed(front: Front) -> None:
    shown = rows(run("vips", "--name", "1.2.3.4", "--protocol", "udp", "--api", front.address))
    assert [row.split()[0] for row in shown] == ["1.2.3.4:53"]
    none = run("vips", "--name", "nobody-has-this", MINUTEMAN_API=f"http://{front.address}/")
    assert (none.returncode, none.stdout) == (0, "No VIPs.\n")


def test_vips_of_a_degraded_host_come_with_the_reason() -> None:
    stale = SourceHealth(fresh=False, since_monotonic=0.0, reason="session lost")
    with start(USER) as front:
        front.await_listening()
        front.publish(replace(update(), sources={"marathon": stale}))
        with front.answering():
            command = run("vips", "--api", front.address)
    assert len(rows(command)) == 6
    assert command.stderr == "degraded: source marathon is stale: session lost\n"


def test_vips_as_json_is_what_rest_answers(front: Front) -> None:
    command = run("vips", "--json", "--api", front.address)
    assert json.loads(command.stdout) == front.get("/api/vips").json()


def test_a_vip_with_its_backends(front: Front) -> None:
    command = run("vip", "web.marathon:80", "--api", front.address)
    assert "tcp web.marathon.l4lb.thisdcos.directory:80" in command.stdout
    assert "addresses  11.0.0.37 fd01:c::25" in command.stdout
    assert "affinity   300s" in command.stdout
    assert rows(command)[1] == (
        "10.0.0.1:31001 up web.1 running healthy 10.0.0.9 2 3 41 33 5 >=2us >=2us 3.0kB 2.5MB 8"
    )


def test_an_ejected_backend_is_marked(front: Front) -> None:
    command = run("vip", "web.marathon:80", "--api", front.address)
    assert [row.partition(", ejected ")[0] for row in rows(command) if ", ejected " in row] == [
        "10.0.0.2:31777 maybe"
    ]


def test_a_vip_without_backends(front: Front) -> None:
    command = run("vip", "sleepy.marathon:80", "--api", front.address)
    assert "No backend: it refuses connections." in command.stdout
    assert "affinity" not in command.stdout


def test_a_literal_ipv6_vip(front: Front) -> None:
    command = run("vip", "[fd01:c::1]:80", "--api", front.address)
    assert rows(command)[0].startswith("[fd00::7]:8080 up ")


def test_problems_are_listed(front: Front) -> None:
    assert rows(run("problems", "--api", front.address)) == [
        "/marathon/state/apps/a container is not readable."
    ]


@pytest.mark.parametrize(
    ("vip", "exit_code", "reason"),
    [
        ("web.marathon:81", 1, "There is no VIP tcp web.marathon:81."),
        ("web.marathon", os.EX_DATAERR, "the port is missing"),
        ("a/b:80", 1, "Not Found"),
    ],
)
def test_a_vip_that_cannot_be_shown(front: Front, vip: str, exit_code: int, reason: str) -> None:
    assert reason in one_line(run("vip", vip, "--api", front.address), exit_code)


def test_an_agent_that_is_starting(starting_front: Front) -> None:
    command = run("vips", "--api", starting_front.address)
    assert "has not reported" in one_line(command, os.EX_UNAVAILABLE)


def test_no_agent_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    said = one_line(run("vips", "--api", f"127.0.0.1:{port}"), os.EX_UNAVAILABLE)
    assert f"no agent answers at http://127.0.0.1:{port}" in said


def test_something_else_that_answers(front: Front) -> None:
    command = run("vips", "--api", f"{front.address}/v1/vips")
    assert "Not Found" in one_line(command, 1)


# ---- top -----------------------------------------------------------------------------------------
def read_terminal(fd: int) -> bytes:
    """What was written to a terminal; nothing when nobody has it open any more."""
    try:
        return os.read(fd, 65_536)
    except OSError:
        return b""


def busier_and_busier() -> Callable[[], Counters]:
    """Answers with ten seconds between each two, in which a backend is given 50 connections."""
    served = (sample.WEB_FRONTEND, sample.endpoint("10.0.0.1", 31001))
    turns = count(1)

    def next_counters() -> Counters:
        turn = next(turns)
        counted = BackendCounters(
            active=2,
            attempts=50 * turn,
            successes=45 * turn,
            failures=5 * turn,
            bytes_sent=15_000 * turn,
            bytes_received=20 * turn,
            retransmits=turn,
            connect_log2_us=(0, 0, 0, 44 * turn, 0, turn, 0),
        )
        return Counters(10.0 * turn, {served: counted})

    return next_counters


@pytest.fixture
def busy_front() -> Iterator[Front]:
    with start(USER) as front:
        front.await_listening()
        front.publish(update())
        with front.answering(busier_and_busier()):
            yield front


def test_in_a_pipe_a_row_is_a_line_however_long_it_is(busy_front: Front) -> None:
    key = VipKey(VipName("a-rather-long-label-" * 3 + "x", "marathon"), 65535, "tcp")
    long = sample.vip(key, ("11.111.111.111", "fd01:c::1111:2222:3333:4444"))
    sources = sample.published().sources
    busy_front.publish(Update(8, whole=False, vips={key: long}, sources=sources, attached=True))
    [row] = [row for row in rows(run("vips", "--api", busy_front.address)) if "rather" in row]
    assert row.startswith(f"{key} tcp 11.111.111.111 fd01:c::1111:2222:3333:4444 0 0")


def test_top_shows_rates_the_busiest_first(busy_front: Front) -> None:
    command = run("top", "--count", "1", "--interval", "0.1", "--api", busy_front.address)
    assert command.returncode == 0, command.stderr
    head, first, *others = command.stdout.splitlines()
    assert head.split()[:4] == ["VIP", "Protocol", "Connects/s", "Failures/s"]
    assert first.split() == [
        "web.marathon:80",
        *("tcp", "5.0", "0.5", "2", "0", "0", "1.5kB", "2B", "0.1", "<8us", "<32us"),
    ]
    assert len([line for line in others if line]) == 5
    assert all(line.split()[2:4] == ["0", "0"] for line in others if line)


def test_top_can_be_narrowed_and_shows_backends(busy_front: Front) -> None:
    command = run(
        *("top", "--backends", "--vip", "web.marathon", "--count", "2", "--interval", "0.1"),
        *("--api", busy_front.address),
    )
    assert command.returncode == 0, command.stderr
    tables = [table.splitlines() for table in command.stdout.strip().split("\n\n")]
    assert len(tables) == 2
    for _head, first, *others in tables:
        assert first.split()[2:5] == ["10.0.0.1:31001", "5.0", "0.5"]
        assert {line.split()[2] for line in others} == {"9.0.1.6:8080", "10.0.0.2:31777"}


@pytest.mark.parametrize("columns", [80, 160])
def test_top_on_a_terminal(busy_front: Front, columns: int) -> None:
    words = ["top", "--count", "1", "--interval", "0.1", "--api", busy_front.address]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (7, columns))
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen([MINUTEMAN, *words], stdout=theirs, env=environment) as shown:
        os.close(theirs)
        screen = b"".join(iter(lambda: read_terminal(ours), b"")).decode()
    os.close(ours)
    assert shown.returncode == 0
    assert "\x1b[?1049h" in screen, "the terminal's other screen"
    assert "web.marathon:80" in screen
    assert "4 of 6" in screen
    assert "1.2.3.4:53 " in screen, "a row is one line, however narrow the terminal is"


def test_top_ends_when_nobody_reads_it(busy_front: Front) -> None:
    words = ["top", "--interval", "0.1", "--api", busy_front.address]
    with subprocess.Popen(
        [MINUTEMAN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as top:
        assert top.stdout is not None
        assert top.stderr is not None
        assert top.stdout.readline().startswith("VIP")
        top.stdout.close()
        assert top.wait(DEADLINE_SECONDS) == 0
        assert top.stderr.read() == ""


def test_top_goes_on_when_the_agent_is_away_and_ends_with_ctrl_c() -> None:
    with start(USER) as front:
        front.await_listening()
        front.publish(update())
        words = ["top", "--interval", "0.1", "--api", front.address]
        with front.answering(busier_and_busier()):
            top = subprocess.Popen(
                [MINUTEMAN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            assert top.stdout is not None
            assert top.stdout.readline().startswith("VIP")
    assert top.stderr is not None
    while "no agent answers" not in (line := top.stderr.readline()):
        assert line, "it has ended"
    top.send_signal(signal.SIGINT)
    _, said = top.communicate(timeout=DEADLINE_SECONDS)
    assert top.returncode == 0
    assert "Traceback" not in said


def test_top_without_an_agent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    said = one_line(run("top", "--api", f"127.0.0.1:{port}"), os.EX_UNAVAILABLE)
    assert "no agent answers" in said


# ---- conns ---------------------------------------------------------------------------------------
def test_conns_where_nothing_is_served(tmp_path: Path) -> None:
    said = one_line(run("conns", "--bpffs", str(tmp_path)), 1)
    assert f"no program is attached from {tmp_path}/minuteman" in said


# ---- believe -------------------------------------------------------------------------------------
@pytest.fixture
def control(tmp_path: Path) -> Iterator[tuple[Path, list[bytes], list[bytes]]]:
    """A state folder with a control socket: (folder, what to answer, what was asked)."""
    replies: list[bytes] = []
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                asked.append(lines.readline())
                connection.sendall(b"".join(replies))

        agent = threading.Thread(target=answer)
        agent.start()
        yield tmp_path, replies, asked
        agent.join()


def test_believe_asks_the_agent(control: tuple[Path, list[bytes], list[bytes]]) -> None:
    folder, replies, asked = control
    replies.append(b'{"ok":true}\n')
    command = run("believe", "marathon", "--state-dir", str(folder))
    assert (command.returncode, command.stdout) == (0, "marathon is believed.\n")
    assert [json.loads(line) for line in asked] == [{"call": "believe", "source": "marathon"}]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b'{"ok":false,"reason":"there is no source nope"}\n', "there is no source nope"),
        (b"", "not this version of minuteman"),
        (b"what?\n", "not this version of minuteman"),
    ],
)
def test_believe_that_fails(
    control: tuple[Path, list[bytes], list[bytes]], reply: bytes, reason: str
) -> None:
    folder, replies, _ = control
    replies.append(reply)
    command = run("believe", "nope", MINUTEMAN_STATE_DIR=str(folder))
    assert reason in one_line(command, os.EX_UNAVAILABLE)


def test_believe_without_an_agent(tmp_path: Path) -> None:
    said = one_line(run("believe", "marathon", "--state-dir", str(tmp_path)), os.EX_UNAVAILABLE)
    assert f"no agent answers at {tmp_path}/control.sock" in said


# ---- cgroup --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("command", "said"),
    [("skip", "mesh/sidecar is left alone.\n"), ("serve", "mesh/sidecar is served.\n")],
)
def test_cgroup_asks_the_agent(
    control: tuple[Path, list[bytes], list[bytes]], command: str, said: str
) -> None:
    folder, replies, asked = control
    replies.append(b'{"ok":true}\n')
    done = run("cgroup", command, "mesh/sidecar", MINUTEMAN_STATE_DIR=str(folder))
    assert (done.returncode, done.stdout) == (0, said)
    assert [json.loads(line) for line in asked] == [{"call": command, "path": "mesh/sidecar"}]


def test_cgroup_that_fails(control: tuple[Path, list[bytes], list[bytes]]) -> None:
    folder, replies, _ = control
    replies.append(b'{"ok":false,"reason":"there is none"}\n')
    done = run("cgroup", "skip", "mesh/nobody", MINUTEMAN_STATE_DIR=str(folder))
    assert one_line(done, os.EX_UNAVAILABLE) == "minuteman: there is none\n"


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    done = run("cgroup", "skip", os.fsdecode(b"mesh/\xff"), "--state-dir", str(tmp_path))
    assert "this is no text: 'mesh/\\udcff'" in one_line(done, os.EX_DATAERR)


SKIPPED = [
    {"path": "/sys/fs/cgroup/mesh", "id": 4711, "wanted_by": "settings"},
    {"path": "/sys/fs/cgroup/mesh/sidecar", "id": None, "wanted_by": "root"},
]


def test_skipped_cgroups_are_a_table(control: tuple[Path, list[bytes], list[bytes]]) -> None:
    folder, replies, asked = control
    replies.append(json.dumps({"ok": True, "cgroups": SKIPPED}).encode() + b"\n")
    assert rows(run("cgroup", "list", "--state-dir", str(folder))) == [
        "/sys/fs/cgroup/mesh 4711 settings",
        "/sys/fs/cgroup/mesh/sidecar gone root",
    ]
    assert [json.loads(line) for line in asked] == [{"call": "skipped"}]


def test_skipped_cgroups_as_json(control: tuple[Path, list[bytes], list[bytes]]) -> None:
    folder, replies, _ = control
    replies.append(json.dumps({"ok": True, "cgroups": SKIPPED}).encode() + b"\n")
    done = run("cgroup", "list", "--json", "--state-dir", str(folder))
    assert json.loads(done.stdout) == SKIPPED


def test_no_skipped_cgroup(control: tuple[Path, list[bytes], list[bytes]]) -> None:
    folder, replies, _ = control
    replies.append(b'{"ok":true}\n')
    done = run("cgroup", "list", "--state-dir", str(folder))
    assert (done.returncode, done.stdout) == (0, "No cgroup is left alone.\n")


# ---- doctor --------------------------------------------------------------------------------------
def test_doctor_says_what_is_missing(tmp_path: Path) -> None:
    command = run("doctor", "--cgroup", str(tmp_path / "nowhere"), "--api", "127.0.0.1:0")
    assert command.returncode == 1
    found = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in body(command))
    assert found["cgroup v2"].startswith("missing")
    assert "No such file or directory" in found["cgroup v2"]
    assert found["REST port"].startswith("ok")
    assert found["ZooKeeper"].startswith("unknown")


# ---- settings ------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["agent", "doctor", "detach"])
def test_a_settings_file_that_is_not_there(command: str) -> None:
    said = one_line(run(command, "--config", "/nowhere.toml"), os.EX_CONFIG)
    assert "there is no file /nowhere.toml" in said


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--resync-seconds", "0", "resync_seconds: "),
        ("--log-level", "loud", "log_level: "),
        ("--vip-allow", "10.0.0.0/33", "vip_allow"),
        ("--source", "consul", "source: "),
    ],
)
def test_a_setting_that_cannot_be(option: str, value: str, reason: str) -> None:
    assert reason in one_line(run("agent", option, value), os.EX_CONFIG)


# ---- help ----------------------------------------------------------------------------------------
COMMANDS = (
    "agent",
    "vips",
    "vip",
    "top",
    "events",
    "conns",
    "problems",
    "believe",
    "cgroup",
    "doctor",
    "detach",
)


def test_help_lists_every_command() -> None:
    shown = run("--help").stdout
    for command in COMMANDS:
        assert f"  {command} " in shown
    assert "Example: minuteman agent" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example(command: str) -> None:
    shown = run(command, "--help")
    assert shown.returncode == 0
    assert f"Example: minuteman {command}" in shown.stdout.splitlines()[-1]


def test_version() -> None:
    assert run("--version").stdout == f"minuteman {__version__}\n"


def test_a_command_that_does_not_exist() -> None:
    command = run("vipz")
    assert command.returncode == 2
    assert "No such command 'vipz'" in command.stderr
    assert "Traceback" not in command.stderr
