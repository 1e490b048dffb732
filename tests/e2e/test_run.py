"""`deploy/run` as a person uses it, in a sandbox inside this one."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import facts
from lab.breaks import BREAKS
from lab.facts import FACTS
from lab.wait import until

RUN = Path(__file__).parents[2] / "deploy" / "run"
READY = b"Ctrl-C ends all of it"
CHECK_SECONDS = 100
END_SECONDS = 20

pytestmark = pytest.mark.timeout(120)


# ---- --check ------------------------------------------------------------------------------------
def check(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RUN, "--check", *options],
        capture_output=True,
        check=False,
        text=True,
        timeout=CHECK_SECONDS,
    )


def verdicts(output: str) -> list[tuple[str, str]]:
    """(`ok` or `FAILED`, name of the fact) of each line that has one."""
    return re.findall(r"^(ok|FAILED) +(\w+) ", output, re.MULTILINE)


def test_check_says_that_every_fact_holds() -> None:
    checked = check()
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert verdicts(checked.stdout) == [("ok", fact.__name__) for fact in FACTS]


REASONS = {
    "label": r"no VIP 1\.2\.3\.4:5000 with its backends .*VIP_0",
    "agent": r"/v1/vips: .*refused",
    "programs": r"1 of 1 requests failed: 1 ETIMEDOUT",
    "backend": r"[1-5] of 90 requests failed: [1-5] ECONNREFUSED",
    "udp": r"answers came from 10\.77\.0\.1[12]:\d+, .*not from 11\.\d+\.\d+\.\d+:123",
    "ejection": r"no ejection of web\.instance-\S+ within|\d+ of \d+ requests were refused",
    "swap": r"no request to the new task web\.instance-\S+ within",
}


SLOW_BREAKS = {"label", "agent", "swap"}
"""That a check can fail, the others show too: these are for `deploy/test --all`."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW_BREAKS else name
        for name in BREAKS
    ],
)
def test_check_names_the_fact_that_a_break_costs(name: str) -> None:
    checked = check("--break", name)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    broken = FACTS.index(BREAKS[name].fact)
    held = [("ok", fact.__name__) for fact in FACTS[:broken]]
    assert verdicts(checked.stdout) == [*held, ("FAILED", FACTS[broken].__name__)]
    [line] = [line for line in checked.stdout.splitlines() if line.startswith("FAILED")]
    assert re.search(REASONS[name], line), line


# ---- to be seen ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Traces:
    """What somebody could leave behind."""

    processes: frozenset[int]
    network_namespaces: frozenset[str]
    named_namespaces: frozenset[Path]
    mounts: str
    cgroups: frozenset[Path]


def traces(sandbox: Path) -> Traces:
    processes = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()}
    return Traces(
        processes=frozenset(processes),
        network_namespaces=frozenset(filter(None, map(network_namespace, processes))),
        named_namespaces=frozenset(Path("/run/netns").iterdir()),
        mounts=Path("/proc/mounts").read_text(encoding="utf-8"),
        cgroups=frozenset(path for path in sandbox.rglob("*") if path.is_dir()),
    )


def network_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""  # it has ended


class Terminal:
    """`deploy/run` with a terminal of its own, as soon as it shows something."""

    def __init__(self) -> None:
        self._screen, its = pty.openpty()
        # setsid runs the command itself: the process is that of deploy/run.
        self._process = subprocess.Popen(
            ["setsid", "--ctty", RUN], stdin=its, stdout=its, stderr=its
        )
        os.close(its)

    def read_until(self, text: bytes) -> None:
        """Look at the screen until `text` is there."""
        seen = b""
        while text not in seen:
            seen += os.read(self._screen, 65536)

    def press_ctrl_c(self) -> None:
        os.write(self._screen, b"\x03")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def read_to_end(self) -> int:
        """Look at the screen until nobody writes to it: the exit code."""
        with suppress(OSError):
            while os.read(self._screen, 65536):
                pass
        return self._process.wait(END_SECONDS)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._screen)


def test_ctrl_c_leaves_nothing_behind(sandbox: Path) -> None:
    before = traces(sandbox)
    with closing(Terminal()) as terminal:
        terminal.read_until(READY)
        assert traces(sandbox).cgroups > before.cgroups
        terminal.press_ctrl_c()
        assert terminal.read_to_end() == 0
    assert traces(sandbox) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_leaves_nothing_behind(sandbox: Path, number: signal.Signals) -> None:
    before = traces(sandbox)
    with closing(Terminal()) as terminal:
        terminal.read_until(READY)
        terminal.send(number)
        terminal.read_to_end()
    until("end of all traces", lambda: traces(sandbox) == before, END_SECONDS)


def visit(*words: str) -> str:
    """What `deploy/run WORDS` prints from another terminal."""
    return subprocess.run([RUN, *words], capture_output=True, check=True, text=True).stdout


def web_backends() -> int:
    [vip] = [
        vip
        for vip in json.loads(visit("exec", "minuteman", "vips", "--json"))["vips"]
        if vip["vip"] == facts.NAMED
    ]
    return len(vip["backends"])


def test_from_another_terminal() -> None:
    with closing(Terminal()) as terminal:
        terminal.read_until(READY)
        # Somebody has to look, or the terminal is full and the display waits.
        reader = threading.Thread(target=terminal.read_to_end)
        reader.start()
        assert visit("exec", "curl", "-fsS", "http://1.2.3.4:5000/").startswith("shop_api.")
        assert visit("scale", "web", "1") == "web has 1 tasks\n"
        until("single backend of web", lambda: web_backends() == 1, END_SECONDS)
        assert "has ended" in visit("kill", "web.instance-")
        until("web without a backend", lambda: web_backends() == 0, END_SECONDS)
        terminal.press_ctrl_c()
        reader.join()
