"""What the dataplane uses of pyroute2."""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

class Message:
    def __getitem__(self, field: str) -> int: ...
    def get_attr(self, name: str) -> str | None: ...

class IPRoute:
    def __init__(self, *, strict_check: bool = ...) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def get_addr(self) -> Iterator[Message]: ...
    def route(
        self,
        command: str,
        *,
        family: int,
        type: int,
        proto: int,
        table: int,
        dst: str = ...,
        priority: int = ...,
        dump_filter: None = ...,
    ) -> Iterator[Message]: ...
