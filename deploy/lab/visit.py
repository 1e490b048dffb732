"""Enter the sample cluster that runs, from another terminal: what `deploy/run exec` and such do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lab import cgroup
from lab.sandbox import NAME, parent_cgroup


def find() -> tuple[int, Path]:
    """A process of the sample cluster that was started last, and the cgroup that is served."""
    sandboxes = parent_cgroup().glob(f"{NAME}*")
    for sandbox in sorted(sandboxes, key=lambda path: path.stat().st_mtime, reverse=True):
        if pids := cgroup.members(sandbox / cgroup.CLUSTER):
            return pids[0], sandbox / cgroup.SERVED
    sys.exit("run: no sample cluster runs here; start one with deploy/run")


def main(words: list[str]) -> None:
    """Become the command, inside."""
    pid, served = find()
    enter = ["nsenter", f"--target={pid}"]
    match words:
        case ["exec", program, *arguments]:
            cgroup.join(served)
            here = Path(sys.executable).parent
            os.environ["PATH"] = f"{here}:{os.environ.get('PATH', os.defpath)}"
            namespaces = ["--mount", "--net", "--pid", f"--wdns={Path.cwd()}", "--"]
            command = [*enter, *namespaces, program, *arguments]
        case ["scale" | "kill", _, *_]:
            command = [*enter, "--net", "--", sys.executable, "-m", "lab.orders", *words]
        case _:
            sys.exit("run: exec COMMAND..., scale APP N or kill TASK")
    os.execvp(command[0], command)  # noqa: S606 - what the person asked for


if __name__ == "__main__":
    main(sys.argv[1:])
