"""Run a command in namespaces of its own, with a loopback, a bpffs and a cgroup, and no way out.

    python -m lab.sandbox -- COMMAND [ARGUMENT ...]

Inside, the network namespace has nothing but `lo`, `ip netns` names and mounts are private,
`/sys/fs/bpf` is a bpffs of its own, and `MINUTEMAN_SANDBOX` names an empty cgroup (version 2) to
attach programs to. Nothing survives the command: namespaces and pins go with their last process,
and the cgroup is removed by a small process that notices the end even when this one is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from minuteman.dataplane.cgroup import cgroup2_mount
from minuteman.errors import UnsupportedKernelError

VARIABLE = "MINUTEMAN_SANDBOX"
NAME = "minuteman-lab-"
"""Cgroups of sandboxes begin with it."""
PR_SET_PDEATHSIG = 1


def parent_cgroup() -> Path:
    """Where cgroups of sandboxes are made: in that of the sandbox around, where there is one."""
    return Path(os.environ.get(VARIABLE) or cgroup2_mount())


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends. For `preexec_fn`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def remove_cgroup(cgroup: Path, patience_seconds: float = 5.0) -> None:
    """Remove `cgroup` and all below it, ending what still runs there."""
    deadline = time.monotonic() + patience_seconds
    while cgroup.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            _end_members(Path(folder))
            try:
                Path(folder).rmdir()
            except OSError:
                # The kernel still buries its last members; there is no event for that.
                time.sleep(0.02)


def _end_members(cgroup: Path) -> None:
    try:
        members = (cgroup / "cgroup.procs").read_text(encoding="ascii").split()
    except OSError:
        return
    for pid in members:
        # 0 stands for a process of a pid namespace that cannot be seen from here.
        if pid != "0":
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue


def _start_reaper(cgroup: Path) -> tuple[int, int]:
    """Fork a process that removes `cgroup` when we end: (its pid, our end of the pipe)."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(write_end)
        os.read(read_end, 1)
        remove_cgroup(cgroup)
        os._exit(0)
    os.close(read_end)
    return pid, write_end


def run(command: list[str]) -> int:
    """Run `command` in a sandbox of its own and return its exit code."""
    cgroup = parent_cgroup() / f"{NAME}{os.getpid()}"
    cgroup.mkdir()
    reaper, lifeline = _start_reaper(cgroup)
    try:
        inner = [sys.executable, "-m", "lab.sandbox", "--inside", *command]
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        child = subprocess.Popen(
            [*unshare, "--", *inner],
            env={**os.environ, VARIABLE: str(cgroup)},
            preexec_fn=die_with_parent,
        )
        _pass_signals_to(child.pid)
        return child.wait()
    finally:
        os.close(lifeline)
        os.waitpid(reaper, 0)


def _pass_signals_to(pid: int) -> None:
    """A terminal's Ctrl-C reaches the command itself; what is sent to us is handed on."""

    def hand_on(number: int, _frame: FrameType | None) -> None:
        try:
            # unshare(1) ignores these, so the first process inside is told.
            inside = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            for child in inside:
                os.kill(int(child), number)
        except (FileNotFoundError, ProcessLookupError):
            return

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGHUP, hand_on)


def _become_init(command: list[str]) -> int:
    """Set the namespaces up, run `command`, and bury every orphan until it ends."""
    Path("/run/netns").mkdir(exist_ok=True)
    for line in (
        "ip link set lo up",
        "mount -t tmpfs -o mode=755 tmpfs /run/netns",
        "mount -t bpf -o mode=700 bpf /sys/fs/bpf",
    ):
        subprocess.run(line.split(), check=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(
        command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    signal.signal(signal.SIGHUP, lambda number, _: child.send_signal(number))
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


def main(arguments: list[str]) -> int:
    """Entry of `python -m lab.sandbox`."""
    if os.geteuid() != 0:
        sys.exit("sandbox: must be root, to make namespaces and a cgroup")
    if arguments[:1] == ["--inside"]:
        code = _become_init(arguments[1:])
    elif arguments[:1] == ["--"] and arguments[1:]:
        try:
            code = run(arguments[1:])
        except UnsupportedKernelError as exc:
            sys.exit(f"sandbox: {exc}")
    else:
        sys.exit(__doc__)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
