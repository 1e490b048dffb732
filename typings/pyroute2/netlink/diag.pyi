"""What the sweep uses of pyroute2."""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

SS_CONN: int
SS_ESTABLISHED: int
SS_SYN_RECV: int

M = TypeVar("M")

class Marshal(Protocol[M]):
    seq_map: dict[int, object]
    def parse(self, data: bytes, *_: object) -> Iterator[M]: ...
    def is_enough(self, message: M, /) -> bool: ...

class DiagSocket:
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def set_marshal(self, value: Marshal[M]) -> None: ...
    def get_sock_stats(
        self, family: int, states: int, protocol: int
    ) -> tuple[Mapping[str, Any], ...]: ...
