"""What the loader uses of bcc, as the distribution ships it."""

import ctypes
from collections.abc import Sequence

__version__: str
lib: ctypes.CDLL

class BPFProgType:
    SCHED_CLS: int
    SOCK_OPS: int
    CGROUP_SOCK: int
    CGROUP_SOCK_ADDR: int

class BPFAttachType:
    CGROUP_SOCK_OPS: int
    CGROUP_INET_SOCK_RELEASE: int
    CGROUP_INET4_CONNECT: int
    CGROUP_INET6_CONNECT: int
    CGROUP_UDP4_SENDMSG: int
    CGROUP_UDP6_SENDMSG: int
    CGROUP_UDP4_RECVMSG: int
    CGROUP_UDP6_RECVMSG: int
    CGROUP_INET4_GETPEERNAME: int
    CGROUP_INET6_GETPEERNAME: int

class Table:
    map_fd: int
    max_entries: int
    Key: type[ctypes.Structure]
    Leaf: type[ctypes.Structure]

class BPF:
    SCHED_CLS: int
    SOCK_OPS: int
    CGROUP_SOCK: int
    CGROUP_SOCK_ADDR: int

    class Function:
        name: bytes
        fd: int

    module: int

    def __init__(
        self,
        src_file: bytes = b"",
        hdr_file: bytes = b"",
        text: bytes | None = None,
        debug: int = 0,
        cflags: Sequence[str | bytes] = ...,
        *,
        allow_rlimit: bool = True,
    ) -> None: ...
    def load_func(
        self,
        func_name: bytes,
        prog_type: int,
        device: bytes | None = None,
        attach_type: int = -1,
    ) -> Function: ...
    def __getitem__(self, key: bytes) -> Table: ...
    def get_table(self, name: bytes) -> Table: ...
    def cleanup(self) -> None: ...
