"""How facts are measured: requests to a VIP, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from api import schemas
from lab.client import TIMEOUT_SECONDS, Answer, How, Target
from lab.cluster import Cluster
from lab.load import Load, ask
from lab.marathon import encode_id
from lab.wait import LabError, until

REQUESTS = 90
"""With 3 backends one of them is missed by chance once in 10**15 times."""
SETTLE_SECONDS = 5.0
"""How long a fact waits for what should be there at once."""


def vip_of(cluster: Cluster, host_port: str, app_id: str, how: How = "tcp") -> schemas.Vip:
    """The VIP, as soon as the kernel has exactly the app's tasks behind it. Errors: LabError."""
    expected = cluster.scheduler.task_ids(app_id)

    def complete() -> schemas.Vip:
        vip = cluster.agent.vip(host_port, protocol_of(how))
        up = {backend.task_id for backend in vip.backends if backend.tier == "up"}
        if up != expected:
            raise LabError(f"{len(up)} backends are up, wanted are the {len(expected)} tasks")
        return vip

    try:
        return until(f"VIP {host_port} with its backends", complete, SETTLE_SECONDS)
    except LabError as error:
        raise LabError("; ".join([str(error), *problems_of(cluster, app_id)])) from error


def reach_every_backend(
    cluster: Cluster, host_port: str, app_id: str, how: How = "tcp", *, mapped: bool = False
) -> str:
    """Send requests to a VIP: how many each backend got. Errors: LabError when one got none."""
    vip_of(cluster, host_port, app_id, how)
    target = replace(cluster.resolve(host_port, protocol_of(how)), how=how, mapped=mapped)
    answers = ask(cluster.served, target, count=REQUESTS)
    demand_answers(answers, app_id, target)
    shares = Counter(answer.task_id for answer in answers)
    if missed := cluster.scheduler.task_ids(app_id) - shares.keys():
        raise LabError(f"no request reached {', '.join(sorted(missed))}")
    shown = " + ".join(str(share) for share in sorted(shares.values(), reverse=True))
    typical_ms = median(answer.seconds for answer in answers) * 1000
    return f"{shown} requests to {target}, {typical_ms:.1f} ms each"


def protocol_of(how: How) -> schemas.Protocol:
    """What a VIP must be of for requests of that kind."""
    return "tcp" if how == "tcp" else "udp"


def demand_answers(answers: Sequence[Answer], app_id: str, target: Target | None = None) -> None:
    """Each request was answered, by a task of the app, and from `target`. Errors: LabError."""
    errors = Counter(answer.error for answer in answers if answer.error)
    if errors:
        raise LabError(f"{errors.total()} of {len(answers)} requests failed: {counted(errors)}")
    own = encode_id(app_id) + "."
    if others := {answer.task_id for answer in answers if not answer.task_id.startswith(own)}:
        raise LabError(f"somebody else answered: {', '.join(sorted(others))}")
    peers = {answer.peer for answer in answers}
    if target and (others := peers - {str(target)}):
        raise LabError(f"answers came from {', '.join(sorted(others))}, not from {target}")


def demand_refusals(answers: Sequence[Answer]) -> None:
    """No request got further than the kernel. Errors: LabError."""
    ends = Counter(answer.error or "answered" for answer in answers)
    del ends["ECONNREFUSED"]
    if ends:
        raise LabError(f"{ends.total()} of {len(answers)} were not refused: {counted(ends)}")


def counted(errors: Counter[str]) -> str:
    """`5 ECONNREFUSED, 1 ETIMEDOUT`."""
    return ", ".join(f"{times} {name}" for name, times in errors.most_common())


def problems_of(cluster: Cluster, app_id: str) -> list[str]:
    """Reasons of the problems that the agent shows for an app."""
    folder = cluster.marathon.app_path(app_id)
    try:
        return [
            f"{p.field} {p.subject}: {p.reason}"
            for p in cluster.agent.problems()
            if p.where.startswith(folder)
        ]
    except LabError:
        return []


def await_ejection(cluster: Cluster, host_port: str, task_id: str) -> None:
    """Return when REST shows that this host has ejected a backend. Errors: LabError."""

    def is_ejected() -> bool:
        backends = cluster.agent.vip(host_port).backends
        return any(backend.ejected for backend in backends if backend.task_id == task_id)

    until(f"ejection of {task_id}", is_ejected, SETTLE_SECONDS)


def load_on(
    cluster: Cluster,
    host_port: str,
    how: How = "tcp",
    *,
    clients: int = 1,
    keep: int = 1,
    pause_seconds: float = 0.0,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Load:
    """Requests to a VIP without end, for a `with` block."""
    target = replace(
        cluster.resolve(host_port, protocol_of(how)), how=how, timeout_seconds=timeout_seconds
    )
    return Load(cluster.served, target, clients=clients, keep=keep, pause_seconds=pause_seconds)


def ms(seconds: float) -> str:
    """In milliseconds; what happened before the call returned is at once."""
    return f"{max(0.0, seconds) * 1000:.0f} ms"
