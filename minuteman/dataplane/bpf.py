"""The bpf(2) calls that the dataplane needs, through libbpf. No LLVM, no BCC.

Descriptors are plain integers that the caller closes. Every failure is a `DataplaneError` with the
call's name and errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minuteman.errors import DataplaneError, UnsupportedKernelError

# enum bpf_attach_type, linux/bpf.h
CGROUP_SOCK_OPS = 3
CGROUP_INET4_CONNECT, CGROUP_INET6_CONNECT = 10, 11
CGROUP_UDP4_SENDMSG, CGROUP_UDP6_SENDMSG = 14, 15
CGROUP_UDP4_RECVMSG, CGROUP_UDP6_RECVMSG = 19, 20
CGROUP_INET4_GETPEERNAME, CGROUP_INET6_GETPEERNAME = 29, 30
CGROUP_INET_SOCK_RELEASE = 34
# enum bpf_prog_type
PROG_SOCKET_FILTER, PROG_SCHED_CLS, PROG_CGROUP_SOCK = 1, 3, 9
PROG_SOCK_OPS, PROG_CGROUP_SOCK_ADDR = 13, 18
# enum bpf_func_id
GET_CURRENT_PID_TGID, GET_CURRENT_COMM = 14, 16
GET_SOCKET_COOKIE, GET_NETNS_COOKIE, GET_CURRENT_ANCESTOR_CGROUP_ID = 46, 122, 123
KTIME_GET_COARSE_NS, SET_RETVAL = 160, 187
QUERY_EFFECTIVE = 1
ANY = 0
ENOTSUPP = 524
"""The kernel's own, linux/errno.h: the map cannot do that."""


class _MapInfo(ctypes.Structure):
    """Start of struct bpf_map_info."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    )


class _ProgInfo(ctypes.Structure):
    """Start of struct bpf_prog_info."""

    _fields_ = (("type", c_uint32), ("id", c_uint32), ("tag", ctypes.c_uint8 * 8))


class _TestRunOptions(ctypes.Structure):
    """Start of struct bpf_test_run_opts, a struct of libbpf."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", c_char_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class _LinkInfo(ctypes.Structure):
    """Struct bpf_link_info of a cgroup link."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("cgroup_id", c_uint64),
        ("attach_type", c_uint32),
    )


_OnRecord = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, ctypes.c_size_t)
"""Of libbpf: context, record, size; a negative result ends the reading."""


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What a link holds where."""

    id: int
    prog_id: int
    cgroup_id: int
    """0: its cgroup is gone, or it was detached."""
    attach_type: int


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What a map is."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@cache
def _lib() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as exc:
        raise UnsupportedKernelError(
            "load libbpf.so.1", errno.ENOENT, "install the package libbpf1"
        ) from exc
    opts = c_void_p
    for name, arguments in {
        "bpf_obj_get": (c_char_p,),
        "bpf_obj_pin": (c_int, c_char_p),
        "bpf_obj_get_info_by_fd": (c_int, c_void_p, POINTER(c_uint32)),
        "bpf_prog_get_fd_by_id": (c_uint32,),
        "bpf_link_create": (c_int, c_int, c_int, opts),
        "bpf_link_update": (c_int, c_int, opts),
        "bpf_link_detach": (c_int,),
        "bpf_prog_load": (c_int, c_char_p, c_char_p, c_char_p, ctypes.c_size_t, opts),
        "bpf_prog_test_run_opts": (c_int, c_void_p),
        "bpf_prog_query": (c_int, c_int, c_uint32, POINTER(c_uint32), c_void_p, POINTER(c_uint32)),
        "bpf_map_update_elem": (c_int, c_char_p, c_char_p, c_uint64),
        "bpf_map_lookup_elem": (c_int, c_char_p, c_void_p),
        "bpf_map_delete_elem": (c_int, c_char_p),
        "bpf_map_get_next_key": (c_int, c_char_p, c_void_p),
        "bpf_map_update_batch": (c_int, c_char_p, c_char_p, POINTER(c_uint32), opts),
        "bpf_map_lookup_batch": (
            c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), opts,
        ),
        "libbpf_probe_bpf_helper": (c_int, c_int, opts),
        "libbpf_probe_bpf_prog_type": (c_int, opts),
        "libbpf_probe_bpf_map_type": (c_int, opts),
        "libbpf_num_possible_cpus": (),
    }.items():  # fmt: skip
        function = getattr(lib, name)
        function.argtypes = arguments
        function.restype = c_int
    lib.ring_buffer__new.argtypes = (c_int, _OnRecord, c_void_p, opts)
    lib.ring_buffer__new.restype = c_void_p
    lib.ring_buffer__consume.argtypes = (c_void_p,)
    lib.ring_buffer__consume.restype = c_int
    lib.ring_buffer__free.argtypes = (c_void_p,)
    lib.ring_buffer__free.restype = None
    lib.libbpf_set_print.argtypes = (c_void_p,)
    lib.libbpf_set_print.restype = c_void_p
    lib.libbpf_set_print(None)
    return lib


def _call(name: str, *arguments: object, what: str = "") -> int:
    """Call libbpf; a negative result is an error, and -errno."""
    result: int = getattr(_lib(), name)(*arguments)
    if result < 0:
        raise DataplaneError(f"{name} {what}".strip(), ctypes.get_errno() or -result)
    return result


# ---- pins ---------------------------------------------------------------------------------------
def open_pin(path: Path) -> int:
    """Descriptor of what is pinned at `path`."""
    return _call("bpf_obj_get", os.fsencode(path), what=str(path))


def pin(fd: int, path: Path) -> None:
    """Keep what `fd` refers to under `path`."""
    _call("bpf_obj_pin", fd, os.fsencode(path), what=str(path))


def _info(fd: int, info: ctypes.Structure, what: str) -> None:
    size = c_uint32(ctypes.sizeof(info))
    _call("bpf_obj_get_info_by_fd", fd, byref(info), byref(size), what=what)


def map_info(fd: int) -> MapInfo:
    """Type, sizes and flags of a map."""
    info = _MapInfo()
    _info(fd, info, "map")
    return MapInfo(info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)


def program_id(fd: int) -> int:
    """The kernel's number for a program."""
    info = _ProgInfo()
    _info(fd, info, "program")
    return int(info.id)


def link_info(fd: int) -> LinkInfo:
    """Which program a cgroup link attaches where."""
    info = _LinkInfo()
    _info(fd, info, "link")
    return LinkInfo(info.id, info.prog_id, info.cgroup_id, info.attach_type)


# ---- links --------------------------------------------------------------------------------------
def create_link(program: int, cgroup: int, attach_type: int) -> int:
    """Attach `program` to `cgroup`; the attachment lives as long as the link does."""
    return _call("bpf_link_create", program, cgroup, attach_type, None)


def update_link(link: int, program: int) -> None:
    """Replace the program of `link`: no connection meets neither the old nor the new one."""
    _call("bpf_link_update", link, program, None)


def detach_link(link: int) -> None:
    """End the attachment, whoever else holds the link."""
    _call("bpf_link_detach", link)


def effective_programs(cgroup: int, attach_type: int) -> tuple[int, ...]:
    """Ids of the programs that run for `cgroup`, its ancestors' included."""
    count = c_uint32(64)
    while True:
        ids = (c_uint32 * count.value)()
        flags = c_uint32()
        try:
            _call(
                "bpf_prog_query",
                cgroup,
                attach_type,
                QUERY_EFFECTIVE,
                byref(flags),
                ids,
                byref(count),
            )
        except DataplaneError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            continue  # `count` has been set to what there is
        return tuple(ids[: count.value])


def run_on(program: int, packet: bytes) -> int:
    """Run a program for packets on `packet`, at least 14 bytes, and send it nowhere: its result."""
    options = _TestRunOptions(
        sz=ctypes.sizeof(_TestRunOptions), data_in=packet, data_size_in=len(packet), repeat=1
    )
    _call("bpf_prog_test_run_opts", program, byref(options))
    return int(options.retval)


# ---- maps ---------------------------------------------------------------------------------------
def update(fd: int, key: bytes, value: bytes) -> None:
    """Write one entry. Errors: E2BIG when a hash is full."""
    _call("bpf_map_update_elem", fd, key, value, ANY)


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value under `key`, None when there is none."""
    value = ctypes.create_string_buffer(value_size)
    try:
        _call("bpf_map_lookup_elem", fd, key, value)
    except DataplaneError as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def delete(fd: int, key: bytes) -> None:
    """Remove one entry; one that is missing is fine."""
    try:
        _call("bpf_map_delete_elem", fd, key)
    except DataplaneError as exc:
        if exc.errno != errno.ENOENT:
            raise


def update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Write `count` entries, whose keys and values follow each other without a gap."""
    done = c_uint32(count)
    _call("bpf_map_update_batch", fd, keys, values, byref(done), None)


def read_hash(fd: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Every entry of a hash; when it is written meanwhile, those that are there all the time."""
    for keys, values, count in _read_batches(fd, key_size, value_size, None):
        for i in range(count):
            yield (
                keys[i * key_size : (i + 1) * key_size],
                values[i * value_size : (i + 1) * value_size],
            )


def read_raw(fd: int, key_size: int, value_size: int) -> Iterator[bytes]:
    """The bytes of every entry of a hash, in pieces: the same ones while nobody writes."""
    for keys, values, _ in _read_batches(fd, key_size, value_size, None):
        yield keys
        yield values


def read_trie(fd: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Every entry of a trie of prefixes, that nobody writes meanwhile."""
    try:
        yield from read_hash(fd, key_size, value_size)
    except DataplaneError as exc:
        if exc.errno != ENOTSUPP:
            raise
        yield from read_singly(fd, key_size, value_size)  # before Linux 5.13 it has no batches


def read_singly(fd: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Every entry of a map, one by one: at ten times the price of batches."""
    key: bytes | None = None
    while (key := _next_key(fd, key, key_size)) is not None:
        value = lookup(fd, key, value_size)
        if value is not None:
            yield key, value


def _next_key(fd: int, key: bytes | None, key_size: int) -> bytes | None:
    """The key after `key`, the first one after None; None: there is no further one."""
    following = ctypes.create_string_buffer(key_size)
    try:
        _call("bpf_map_get_next_key", fd, key, following)
    except DataplaneError as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise
    return following.raw


def read_array(fd: int, value_size: int, count: int) -> bytes:
    """The first `count` values of an array, one after the other."""
    return b"".join(values for _, values, _ in _read_batches(fd, 4, value_size, count))


def _read_batches(
    fd: int, key_size: int, value_size: int, limit: int | None, size: int = 4096
) -> Iterator[tuple[bytes, bytes, int]]:
    """Keys, values and count of one batch after the other, at most `limit` entries in all."""
    position = ctypes.create_string_buffer(max(key_size, 4))
    at: ctypes.Array[ctypes.c_char] | None = None
    read = 0
    last = False
    while not last and (limit is None or read < limit):
        want = size if limit is None else min(size, limit - read)
        keys = ctypes.create_string_buffer(key_size * want)
        values = ctypes.create_string_buffer(value_size * want)
        count = c_uint32(want)
        try:
            _call("bpf_map_lookup_batch", fd, at, position, keys, values, byref(count), None)
        except DataplaneError as exc:
            if exc.errno == errno.ENOSPC and limit is None:
                size *= 2  # a bucket of the hash holds more than a batch
                continue
            if exc.errno != errno.ENOENT:
                raise
            last = True
        at = position
        read += count.value
        yield (
            keys.raw[: count.value * key_size],
            values.raw[: count.value * value_size],
            count.value,
        )


def read_percpu(fd: int, key: bytes) -> tuple[int, ...]:
    """The 8-byte counters under `key`, one for each possible CPU."""
    cpus = _call("libbpf_num_possible_cpus")
    raw = lookup(fd, key, 8 * cpus)
    if raw is None:
        return ()
    return tuple(int.from_bytes(raw[i : i + 8], sys.byteorder) for i in range(0, len(raw), 8))


class RingBuffer:
    """What programs write to a ring buffer, in its order. It has one reader at a time.

    Errors: DataplaneError.
    """

    def __init__(self, fd: int) -> None:
        self._records: list[bytes] = []
        self._most = 0
        self._on_record = _OnRecord(self._take)  # libbpf keeps no reference to it
        self._ring = _lib().ring_buffer__new(fd, self._on_record, None, None)
        if not self._ring:
            raise DataplaneError("ring_buffer__new", ctypes.get_errno())

    def __enter__(self) -> RingBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        _lib().ring_buffer__free(self._ring)

    def read(self, most: int) -> list[bytes]:
        """The next records, `most` if there are as many. It waits for none."""
        self._most = most
        result: int = _lib().ring_buffer__consume(self._ring)
        if result < 0 and len(self._records) < most:
            raise DataplaneError("ring_buffer__consume", -result)
        records, self._records = self._records, []
        return records

    def _take(self, _context: int, record: int, size: int) -> int:
        self._records.append(ctypes.string_at(record, size))
        return -errno.ECANCELED if len(self._records) >= self._most else 0


# ---- what the kernel can do ---------------------------------------------------------------------
def has_helper(program_type: int, helper: int) -> bool | None:
    """Whether programs of a type may call a helper; None: cannot tell."""
    return _probed(_lib().libbpf_probe_bpf_helper(program_type, helper, None))


def has_program_type(program_type: int) -> bool | None:
    """Whether the kernel has a program type; None: cannot tell."""
    return _probed(_lib().libbpf_probe_bpf_prog_type(program_type, None))


def has_map_type(map_type: int) -> bool | None:
    """Whether the kernel has a map type; None: cannot tell."""
    return _probed(_lib().libbpf_probe_bpf_map_type(map_type, None))


def has_instructions(instructions: bytes) -> bool:
    """Whether the kernel takes a program of these instructions, a filter of packets."""
    loaded: int = _lib().bpf_prog_load(
        PROG_SOCKET_FILTER, b"probe", b"GPL", instructions, len(instructions) // 8, None
    )
    if loaded >= 0:
        os.close(loaded)
    return loaded >= 0


def _probed(result: int) -> bool | None:
    return None if result < 0 else bool(result)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
