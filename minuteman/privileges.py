"""What a child of the agent gives up, and how it follows the agent into its end. Linux only."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import signal
from itertools import count

from minuteman.errors import ConfigError

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
# include/uapi/linux/capability.h: pid 0 is this thread, two sets of 32 capabilities each.
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def end_with_parent() -> None:
    """Get SIGTERM when the thread that started this process ends.

    A change of the user undoes it: call it after `become`.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def become(user: str) -> None:
    """Turn into `user` for good: no group, no capability, no way to get one, no core dump.

    Before the first thread: credentials belong to threads. Errors: ConfigError for a user that does
    not exist, that is root, or that this process may not become.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError as exc:
        raise ConfigError(f"front_user: there is no user {user!r} on this host") from exc
    if entry.pw_uid == 0:
        raise ConfigError("front_user: this must not be root; use nobody or a user of its own")
    if os.getresuid() != (entry.pw_uid,) * 3:
        _change_user(entry)
    _drop_capabilities()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)


def _change_user(entry: pwd.struct_passwd) -> None:
    try:
        _empty_bounding_set()
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except PermissionError as exc:
        raise ConfigError(
            f"front_user: only root can become {entry.pw_name}; run the agent as root"
        ) from exc


def _empty_bounding_set() -> None:
    for capability in count():
        try:
            _prctl(PR_CAPBSET_DROP, capability)
        except OSError as exc:
            if exc.errno == errno.EINVAL:  # one past the kernel's last
                return
            raise


def _drop_capabilities() -> None:
    header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
    nothing = (_CapabilitySets * 2)()
    _check(_libc.capset(ctypes.byref(header), nothing), "capset")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def _check(result: int, operation: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{operation}: {os.strerror(number)}")
