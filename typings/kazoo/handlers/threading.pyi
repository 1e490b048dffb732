from collections.abc import Sequence
from socket import socket

class KazooTimeoutError(Exception): ...

class SequentialThreadingHandler:
    def __init__(self) -> None: ...
    def select(
        self,
        rlist: Sequence[socket],
        wlist: Sequence[socket],
        xlist: Sequence[socket],
        timeout: float | None = None,
    ) -> tuple[list[socket], list[socket], list[socket]]: ...
