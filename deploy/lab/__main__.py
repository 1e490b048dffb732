"""What `deploy/run` does inside the sandbox."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from lab import cgroup
from lab.breaks import BREAKS
from lab.check import check
from lab.cluster import Cluster
from lab.show import show
from lab.wait import LabError

STATE = Path("/dev/shm")  # noqa: S108 - a file system of our own, see below


def main(arguments: list[str]) -> int:
    """Run the sample cluster: its exit code."""
    parser = argparse.ArgumentParser(prog="deploy/run", description="The main job, to be seen.")
    parser.add_argument("--check", action="store_true", help="without a person: facts, exit 0 or 1")
    parser.add_argument(
        "--break", dest="broken", choices=BREAKS, help="break this; it must be seen"
    )
    options = parser.parse_args(arguments)
    if options.broken and not options.check:
        parser.error("--break is for --check")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Only this mount namespace has it, so its files end with the sandbox, however that ends.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", STATE], check=True)
    served = cgroup.prepare()
    try:
        with Cluster(STATE, served) as cluster:
            cluster.agent.start()
            if options.check:
                return 0 if check(cluster, BREAKS.get(options.broken)) else 1
            show(cluster)
    except LabError as error:
        print(f"run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0 if not options.check else 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
