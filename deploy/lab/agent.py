"""The agent under test: `minuteman agent` as a process, and what its REST interface says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec

from api import schemas
from lab.wait import LabError, until

API = "127.0.0.1:62080"
BPFFS = Path("/sys/fs/bpf")
MINUTEMAN = Path(sys.executable).with_name("minuteman")
READY_SECONDS = 30.0
STOP_SECONDS = 10.0
PAGE_SECONDS = 5.0
LAST_LINES = 15

T = TypeVar("T")


def environment() -> dict[str, str]:
    """Our variables without settings of the agent: its settings are the cluster's."""
    return {name: text for name, text in os.environ.items() if not name.startswith("MINUTEMAN_")}


class Agent:
    """One agent, started as often as you like, always with the same settings.

    `folder` has its state and its log, `served` is the cgroup that it serves.
    """

    def __init__(self, zookeeper: str, served: Path, folder: Path, config: Path) -> None:
        self._settings = [
            f"--zookeeper={zookeeper}",
            "--source=marathon",
            f"--cgroup={served}",
            f"--bpffs={BPFFS}",
            f"--state-dir={folder / 'state'}",
            f"--api={API}",
            f"--config={config}",
        ]
        self._log = folder / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, *options: str) -> list[str]:
        """The command line; it ends with the process that runs it."""
        agent = [str(MINUTEMAN), "agent", *self._settings, *options]
        return ["setpriv", "--pdeathsig", "KILL", *agent]

    @property
    def pid(self) -> int | None:
        """Of the running process; None: it is not started."""
        return None if self._process is None else self._process.pid

    # ---- its life -----------------------------------------------------------------------------
    def start(self, variables: Mapping[str, str] | None = None) -> None:
        """Start it, with `variables` beside ours, and return at once."""
        if self._process is not None:
            raise RuntimeError("the agent is started")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                env={**environment(), **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for whoever started it
            )

    def stop(self) -> int:
        """End it in order: its exit code. Errors: LabError when it does not end."""
        self.resume()
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would; return when its front process has followed."""
        self._end(signal.SIGKILL)
        until("end of the front process", self._is_silent, STOP_SECONDS)

    def pause(self) -> None:
        """Stop it where it stands."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def detach(self) -> subprocess.CompletedProcess[str]:
        """Run `minuteman agent --detach-all`."""
        return subprocess.run(
            self.command("--detach-all"),
            env=environment(),
            capture_output=True,
            check=False,
            text=True,
        )

    def last_lines(self) -> list[str]:
        """The end of its log."""
        if not self._log.exists():
            return []
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return text.splitlines()[-LAST_LINES:]

    def last_words(self) -> str:
        """The last line of its log."""
        return (self.last_lines() or ["it said nothing"])[-1]

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{number.name} did not end the agent in {STOP_SECONDS:g} s") from error
        finally:
            self._process.kill()
            self._process.wait()
            self._process = None

    # ---- what it says -------------------------------------------------------------------------
    def page(self, path: str) -> httpx.Response:
        """The page at `path`. Errors: httpx.HTTPError."""
        return httpx.get(f"http://{API}{path}", timeout=PAGE_SECONDS, trust_env=False)

    def vips(self) -> tuple[schemas.Vip, ...]:
        """All VIPs that the kernel has."""
        return self._read("/api/vips", schemas.VipList).vips

    def vip(self, host_port: str, protocol: schemas.Protocol = "tcp") -> schemas.Vip:
        """The VIP at `host:port`. Errors: LabError with what REST says."""
        return self._read(f"/api/vips/{protocol}/{host_port}", schemas.Vip)

    def health(self) -> schemas.Health:
        """What REST says of its health, good or bad."""
        return msgspec.json.decode(self.page("/api/health").content, type=schemas.Health)

    def problems(self) -> tuple[schemas.Problem, ...]:
        """What was skipped, with its reason."""
        return self._read("/api/problems", schemas.ProblemList).problems

    def decisions(self, reason: str) -> int:
        """How often the programs decided so. Source: /metrics."""
        start = f'minuteman_decisions_total{{reason="{reason}"}} '
        for line in self.page("/metrics").text.splitlines():
            if line.startswith(start):
                return int(float(line.removeprefix(start)))
        return 0

    def wait_healthy(self, seconds: float = READY_SECONDS) -> float:
        """Return when it has served all that it read: after how many seconds that was.

        Errors: LabError with the reasons, or the last line of its log.
        """
        started = time.monotonic()
        until("healthy agent", lambda: self._has_ended or self._is_healthy(), seconds)
        if self._has_ended:
            raise LabError(f"the agent does not run: {self.last_words()}")
        return time.monotonic() - started

    @property
    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _is_silent(self) -> bool:
        try:
            self.page("/v1/version")
        except httpx.ConnectError:
            return True
        except httpx.HTTPError:
            return False
        return False

    def _is_healthy(self) -> bool:
        try:
            health = self.health()
        except httpx.HTTPError as error:
            raise LabError(f"no answer from {API}: {self.last_words()}") from error
        if health.status != "ok":
            raise LabError("; ".join(health.reasons))
        return True

    def _read(self, path: str, shape: type[T]) -> T:
        """The page at `path` as a value. Errors: LabError when there is none."""
        try:
            page = self.page(path)
        except httpx.HTTPError as error:
            raise LabError(f"no answer from {API}") from error
        if page.status_code != httpx.codes.OK:
            problem = msgspec.json.decode(page.content, type=schemas.ProblemDetails)
            raise LabError(problem.detail)
        return msgspec.json.decode(page.content, type=shape)
