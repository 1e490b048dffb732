"""A front process for tests: tells in a file what it was told.

    python stub_front.py OUT BEHAVIOUR --fd N

To the file OUT goes a line for each message, `update GENERATION VIPS` or `counters TAKEN`.
BEHAVIOUR is `listen`, `deaf` (it never reads), `ask` (for counters, at every message), `hang-up`
(it closes the socket and stays) or `stay` (when the agent closes it).
"""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

from minuteman.feed import COUNTERS_PLEASE, Decoder, Update
from minuteman.reader import Published


def main(out: Path, behaviour: str, feed: socket.socket) -> None:
    if behaviour == "hang-up":
        feed.close()
    if behaviour in ("deaf", "hang-up"):
        signal.pause()
    decoder, published = Decoder(), Published()
    while received := feed.recv(1 << 16):
        for message in decoder.feed(received):
            if isinstance(message, Update):
                published = message.applied_to(published)
                line = f"update {published.generation} {len(published.vips)}"
            else:
                line = f"counters {message.taken_monotonic}"
            with out.open("a") as file:
                file.write(f"{line}\n")
            if behaviour == "ask":
                feed.send(COUNTERS_PLEASE * 3)
    while behaviour == "stay":
        signal.pause()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[-1])) as end:
        main(Path(sys.argv[1]), sys.argv[2], end)
