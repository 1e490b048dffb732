"""The command line, as processes: against a real front process and a real control socket."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from minuteman import __version__
from minuteman.model import SourceHealth
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
        "api.hello-world.dev.marathon.l4lb.thisdcos.directory:8080 tcp 1 0 0 0 0 0 0",
        "sleepy.marathon.l4lb.thisdcos.directory:80 tcp 11.5.5.5 0 0 0 0 0 0 0",
        "web.marathon.l4lb.thisdcos.directory:80 tcp 11.0.0.37 fd01:c::25 300s 1 1 1 1 3 38 11",
        "1.2.3.4:53 udp 1.2.3.4 1 0 0 0 0 0 0",
        "1.2.3.4:5000 tcp 1.2.3.4 1 0 0 0 0 0 0",
        "[fd01:c::1]:80 tcp fd01:c::1 1 0 0 0 0 0 0",
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
        "10.0.0.1:31001 up web.1 running healthy 10.0.0.9 2 3 33 5 >=2us >=2us"
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
COMMANDS = ("agent", "vips", "vip", "problems", "believe", "cgroup", "doctor", "detach")


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
