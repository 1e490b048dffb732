"""What a person asks of the running sample cluster, from another terminal.

    python -m lab.orders scale web 5
    python -m lab.orders kill web.instance-1b2c3d4e

Orders come over a socket that has a name in the cluster's network namespace and none in any file
system: one line each, answered by one line.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lab.scheduler import Scheduler
from lab.wait import LabError

NAME = "\0minuteman-sample-cluster"
MAX_BYTES = 4096
DONE = "done: "


@contextmanager
def listen() -> Iterator[socket.socket]:
    """The socket that orders come to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(NAME)
        listener.listen()
        yield listener


def follow_one(listener: socket.socket, scheduler: Scheduler) -> None:
    """Wait for an order, do it, answer."""
    connection, _ = listener.accept()
    with connection:
        words = connection.recv(MAX_BYTES).decode(errors="replace").split()
        try:
            answer = f"{DONE}{follow(words, scheduler)}"
        except LabError as error:
            answer = f"not done: {error}"
        with suppress(OSError):  # who asked may be gone
            connection.send(answer.encode())


def follow(words: list[str], scheduler: Scheduler) -> str:
    """Do an order: what was done. Errors: LabError."""
    match words:
        case ["scale", app, count] if count.isdecimal():
            scheduler.scale(f"/{app.lstrip('/')}", int(count))
            return f"{app} has {count} tasks"
        case ["kill", start]:
            task_id = scheduler.find(start)
            scheduler.kill(task_id)
            return f"{task_id} has ended"
        case _:
            raise LabError("an order is `scale APP COUNT` or `kill TASK`")


def main(words: list[str]) -> None:
    """Send an order and print the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(NAME)
        except OSError as error:
            sys.exit(f"the cluster takes no orders: {error}")
        connection.send(" ".join(words).encode())
        answer = connection.recv(MAX_BYTES).decode()
    if not answer.startswith(DONE):
        sys.exit(answer)
    print(answer.removeprefix(DONE))


if __name__ == "__main__":
    main(sys.argv[1:])
