"""A real front process at the other end of a real socket pair; the test is its agent."""

from __future__ import annotations

import os
import pwd
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from minuteman.feed import COUNTERS_PLEASE, Message, Update, encode
from minuteman.model import Counters
from tests.contract import published as sample

DEADLINE_SECONDS = 20.0
USER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
"""Whom a front process becomes here: never root."""


def update(generation: int = 7) -> Update:
    """All of the sample."""
    now = sample.published(generation)
    return Update(
        generation=generation,
        whole=True,
        vips=now.vips,
        tasks=now.tasks,
        problems=now.problems,
        sources=now.sources,
        attached=now.attached,
    )


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until `holds`; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        select.select([], [], [], 0.01)


class Front:
    """A front process and the agent's end of its socket."""

    def __init__(self, process: subprocess.Popen[str], feed: socket.socket) -> None:
        self.process = process
        self.feed = feed
        self.address = ""
        self.client = httpx.Client(trust_env=False, timeout=DEADLINE_SECONDS)

    def await_listening(self) -> None:
        """Read where it listens from its log."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        assert "listening" in line, line + self.process.stderr.read()
        self.address = f"{fields['address']}:{fields['port']}"

    def send(self, message: Message) -> None:
        self.feed.sendall(encode(message))

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"http://{self.address}{path}")

    def generation(self) -> int:
        generation: int = self.get("/api/health").json()["generation"]
        return generation

    def publish(self, message: Update) -> None:
        """Send `message` and wait until it is served."""
        self.send(message)
        eventually(lambda: self.generation() == message.generation)

    @contextmanager
    def answering(
        self, counters: Callable[[], Counters] = lambda: sample.COUNTERS
    ) -> Iterator[None]:
        """Answer each question for counters."""

        def answer() -> None:
            while self.feed.recv(1) == COUNTERS_PLEASE:
                self.send(counters())

        agent = threading.Thread(target=answer)
        agent.start()
        try:
            yield
        finally:
            self.feed.shutdown(socket.SHUT_RDWR)
            agent.join()


@contextmanager
def start(
    user: str, address: str = "127.0.0.1:0", python: str = sys.executable, **environment: str
) -> Iterator[Front]:
    """A front process, as the agent starts it; it has ended when the block does."""
    ours, theirs = socket.socketpair()
    arguments = [python, "-P", "-m", "minuteman.front"]
    with theirs:
        process = subprocess.Popen(
            [*arguments, "--fd", str(theirs.fileno()), "--listen", address, "--user", user],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, **environment},
        )
    front = Front(process, ours)
    try:
        yield front
    finally:
        ours.close()
        front.client.close()
        try:
            process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            process.kill()
