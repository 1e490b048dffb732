"""A front process for tests: tells in a file what it was told.

    python stub_front.py OUT BEHAVIOUR --fd N

To the file OUT goes a line for each message, `update GENERATION VIPS`, `counters TAKEN` or `events
LINES`. BEHAVIOUR is `listen`, `deaf` (it never reads), `slow` (not before the file OUT.go is
there), `ask` (for counters, at every message), `eavesdrop` (ask for events, likewise), `hang-up`
(it closes the socket and stays) or `stay` (when the agent closes it).
"""

from __future__ import annotations

import select
import signal
import socket
import sys
from pathlib import Path

from minuteman.feed import COUNTERS_PLEASE, EVENTS_PLEASE, Decoder, Events, Update
from minuteman.reader import Published


def main(out: Path, behaviour: str, feed: socket.socket) -> None:
    if behaviour == "hang-up":
        feed.close()
    if behaviour in ("deaf", "hang-up"):
        signal.pause()
    while behaviour == "slow" and not out.with_suffix(".go").exists():
        select.select([], [], [], 0.01)
    decoder, published = Decoder(), Published()
    while received := feed.recv(1 << 16):
        for message in decoder.feed(received):
            if isinstance(message, Update):
                published = message.applied_to(published)
                line = f"update {published.generation} {len(published.vips)}"
            elif isinstance(message, Events):
                line = f"events {message.lines.decode()!r}"
            else:
                line = f"counters {message.taken_monotonic}"
            with out.open("a") as file:
                file.write(f"{line}\n")
            if behaviour == "ask":
                feed.send(COUNTERS_PLEASE * 3)
            if behaviour == "eavesdrop":
                feed.send(EVENTS_PLEASE * 3)
    while behaviour == "stay":
        signal.pause()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[-1])) as end:
        main(Path(sys.argv[1]), sys.argv[2], end)
