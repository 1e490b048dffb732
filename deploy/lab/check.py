"""The main job without a person: a line for each fact about the sample cluster."""

from __future__ import annotations

import sys
import time

from lab.breaks import Break
from lab.cluster import Cluster
from lab.facts import FACTS, Fact
from lab.wait import LabError


def check(cluster: Cluster, broken: Break | None = None) -> bool:
    """Print a line for each fact, up to the first that does not hold: whether all of them do.

    What comes after that one builds upon it, and would say nothing new.
    """
    for position, fact in enumerate(FACTS, start=1):
        if broken and broken.fact is fact:
            broken.do(cluster)
        if not _holds(fact, cluster):
            print(f"{'':<8}{len(FACTS) - position} further facts were not tried", flush=True)
            for line in cluster.agent.last_lines():
                print(f"agent: {line}", file=sys.stderr)
            return False
    return True


def _holds(fact: Fact, cluster: Cluster) -> bool:
    """Print the line of one fact: whether it holds."""
    started = time.monotonic()
    try:
        measured, holds = fact(cluster), True
    except LabError as error:
        measured, holds = str(error), False
    seconds = time.monotonic() - started
    claim = (fact.__doc__ or "").removesuffix(".")
    verdict = "ok" if holds else "FAILED"
    print(f"{verdict:<8}{fact.__name__:<10}{claim}: {measured}  [{seconds:.1f} s]", flush=True)
    return holds
