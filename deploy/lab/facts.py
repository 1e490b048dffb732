"""What must hold in the sample cluster, each fact as a function.

Its name is the fact's, its docstring the claim, and it returns what was measured.  Errors: LabError
when the fact does not hold. Facts build upon the ones before: they change the cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

import httpx

from api import schemas
from lab.client import Answer
from lab.cluster import Cluster
from lab.load import Load, ask
from lab.marathon import encode_id
from lab.wait import LabError, until

Fact = Callable[[Cluster], str]

NAMED = "web.marathon.l4lb.thisdcos.directory:80"
LITERAL = "1.2.3.4:5000"
CONTAINER = "store.marathon.l4lb.thisdcos.directory:6379"
BESIDE_TYPO = "typo.marathon.l4lb.thisdcos.directory:80"
PAGES = ("/v1/vips", "/api/vips", "/api/health", "/metrics", "/openapi.json", "/docs")

REQUESTS = 90
"""With 3 backends one of them is missed by chance once in 10**15 times."""
SETTLE_SECONDS = 5.0
"""How long a fact waits for what should be there at once."""
REFUSE_SECONDS = 1.0


def served(cluster: Cluster) -> str:
    """The agent serves what Marathon's znodes say."""
    seconds = cluster.agent.wait_healthy()
    vips = cluster.agent.vips()
    backends = sum(len(vip.backends) for vip in vips)
    return f"{len(vips)} VIPs, {backends} backends, {seconds:.1f} s after its start"


def literal(cluster: Cluster) -> str:
    """A literal VIP reaches every backend (bridge network)."""
    return reach_every_backend(cluster, LITERAL, "/shop/api")


def named(cluster: Cluster) -> str:
    """A named VIP reaches every backend (host network)."""
    return reach_every_backend(cluster, NAMED, "/web")


def container(cluster: Cluster) -> str:
    """A VIP reaches tasks with addresses of their own (container network)."""
    return reach_every_backend(cluster, CONTAINER, "/store")


def mapped(cluster: Cluster) -> str:
    """An AF_INET6 socket that connects to ::ffff:VIP, as a JVM's does, is served too."""
    return reach_every_backend(cluster, NAMED, "/web", mapped=True)


def rest(cluster: Cluster) -> str:
    """REST, metrics and the command line answer."""
    for path in PAGES:
        try:
            page = cluster.agent.page(path)
        except httpx.HTTPError as error:
            raise LabError(f"{path}: {error}") from error
        if page.status_code != httpx.codes.OK:
            raise LabError(f"{path}: status {page.status_code}")
    if LITERAL not in cluster.minuteman("vips", "--json"):
        raise LabError(f"`minuteman vips --json` does not show {LITERAL}")
    # Counters are up to a second old.
    translated = until(
        "count of the requests above in /metrics",
        lambda: cluster.agent.decisions("translated"),
        SETTLE_SECONDS,
    )
    return f"{len(PAGES)} pages, `minuteman vips`; {translated} connections counted"


def problems(cluster: Cluster) -> str:
    """A malformed label is shown with its reason and costs only itself."""
    [reason] = until("problem of /typo", lambda: _problems_of(cluster, "/typo"), SETTLE_SECONDS)
    reach_every_backend(cluster, BESIDE_TYPO, "/typo")
    return f'"{reason}"; the label beside it is served'


def added(cluster: Cluster) -> str:
    """A task that is added gets requests."""
    with _load(cluster, NAMED) as load:
        before = cluster.scheduler.task_ids("/web")
        written = cluster.scheduler.scale("/web", len(before) + 1)
        [new] = cluster.scheduler.task_ids("/web") - before
        load.wait_for(
            f"request to the new task {new}",
            lambda answers: answers[-1].task_id == new,
            SETTLE_SECONDS,
        )
        load.wait_for_more(REQUESTS)
    answers = load.answers()
    demand_answers(answers, "/web")
    first = next(answer.started for answer in answers if answer.task_id == new)
    return f"the first {_ms(first - written)} after ZooKeeper knew; 0 of {len(answers)} failed"


def killed(cluster: Cluster) -> str:
    """A task that is killed costs no request."""
    with _load(cluster, NAMED) as load:
        victim = min(cluster.scheduler.task_ids("/web"))
        load.wait_for(
            f"request to {victim}", lambda answers: answers[-1].task_id == victim, SETTLE_SECONDS
        )
        written = cluster.scheduler.kill(victim)
        load.wait_for_more(REQUESTS)
    answers = load.answers()
    demand_answers(answers, "/web")
    last = max(answer.started for answer in answers if answer.task_id == victim)
    return f"its last {_ms(last - written)} after ZooKeeper knew; 0 of {len(answers)} failed"


def zero(cluster: Cluster) -> str:
    """An app without tasks refuses within a second and sends nothing to the network."""
    escaped = cluster.network.packets_escaped()
    by_kernel = cluster.agent.decisions("refused_empty")
    with _load(cluster, NAMED) as load:
        load.wait_for_more(REQUESTS)
        gone = cluster.scheduler.scale("/web", 0)
        load.wait_for("refusal", lambda answers: not answers[-1].task_id, SETTLE_SECONDS)
        # A host refuses too, where a task has ended: this is about the VIP.
        until(
            "refusal that the kernel counts as its own",
            lambda: cluster.agent.decisions("refused_empty") > by_kernel,
            SETTLE_SECONDS,
        )
        load.wait_for_more(REQUESTS)
    # Before that, the last tasks ended under the hands of their clients.
    answers = load.answers()
    last = max(i for i, answer in enumerate(answers) if answer.error != "ECONNREFUSED")
    refused = answers[last + 1 :]
    delay_seconds = max(0.0, answers[last].ended - gone)
    if not refused or delay_seconds > REFUSE_SECONDS:
        raise LabError(f"still {answers[last].error or 'an answer'} after {_ms(delay_seconds)}")
    if left := cluster.network.packets_escaped() - escaped:
        raise LabError(f"{left} packets left by the default route")
    return (
        f"{len(refused)} of {len(refused)} refused, all from {_ms(delay_seconds)} after ZooKeeper "
        "knew; 0 packets left this host"
    )


def back(cluster: Cluster) -> str:
    """Scaled up again it answers."""
    with _load(cluster, NAMED) as load:
        written = cluster.scheduler.scale("/web", 3)
        load.wait_for("answer", lambda answers: not answers[-1].error, SETTLE_SECONDS)
        load.wait_for_more(REQUESTS)
    answers = load.answers()
    first = next(i for i, answer in enumerate(answers) if not answer.error)
    demand_answers(answers[first:], "/web")
    reach_every_backend(cluster, NAMED, "/web")
    return f"the first answer {_ms(answers[first].started - written)} after ZooKeeper knew"


def restart(cluster: Cluster) -> str:
    """The agent is killed and started again, and no request is lost."""
    with _load(cluster, NAMED) as load:
        load.wait_for_more(REQUESTS)
        cluster.agent.kill()
        load.wait_for_more(REQUESTS)
        cluster.agent.start()
        seconds = cluster.agent.wait_healthy()
        load.wait_for_more(REQUESTS)
    answers = load.answers()
    demand_answers(answers, "/web")
    return f"0 of {len(answers)} failed; healthy again after {seconds:.1f} s"


def outside(cluster: Cluster) -> str:
    """A process outside of the cgroup is left alone."""
    vip = vip_of(cluster, NAMED, "/web")
    before = cluster.network.packets_escaped()
    cluster.connect_outside(vip.addresses[0], vip.port)
    until(
        f"packet to {vip.addresses[0]} at the dead end",
        lambda: cluster.network.packets_escaped() > before,
        SETTLE_SECONDS,
    )
    return "its first packet was counted where nothing was before"


def detached(cluster: Cluster) -> str:
    """Without the agent the VIPs are served; --detach-all takes everything away."""
    vip = vip_of(cluster, NAMED, "/web")
    if code := cluster.agent.stop():
        raise LabError(f"on SIGTERM it ended with {code}: {cluster.agent.last_words()}")
    demand_answers(ask(cluster.served, vip.addresses[0], vip.port, count=REQUESTS), "/web")
    cluster.detach()
    if left := cluster.leftovers():
        raise LabError(f"left behind: {', '.join(left)}")
    return f"{REQUESTS} requests served; then no program and no pin is left"


FACTS: Sequence[Fact] = (
    served,
    literal,
    named,
    container,
    mapped,
    rest,
    problems,
    added,
    killed,
    zero,
    back,
    restart,
    outside,
    detached,
)


# ---- how they are measured -----------------------------------------------------------------------
def vip_of(cluster: Cluster, host_port: str, app_id: str) -> schemas.Vip:
    """The VIP, as soon as the kernel has exactly the app's tasks behind it."""
    expected = cluster.scheduler.task_ids(app_id)

    def complete() -> schemas.Vip:
        vip = cluster.agent.vip(host_port)
        up = {backend.task_id for backend in vip.backends if backend.tier == "up"}
        if up != expected:
            raise LabError(f"{len(up)} backends are up, wanted are the {len(expected)} tasks")
        return vip

    try:
        return until(f"VIP {host_port} with its backends", complete, SETTLE_SECONDS)
    except LabError as error:
        raise LabError("; ".join([str(error), *_problems_of(cluster, app_id)])) from error


def reach_every_backend(
    cluster: Cluster, host_port: str, app_id: str, *, mapped: bool = False
) -> str:
    """Send requests to a VIP: how many each backend got. Errors: LabError when one got none."""
    vip_of(cluster, host_port, app_id)
    address, port = cluster.resolve(host_port)
    answers = ask(cluster.served, address, port, count=REQUESTS, mapped=mapped)
    demand_answers(answers, app_id)
    shares = Counter(answer.task_id for answer in answers)
    if missed := cluster.scheduler.task_ids(app_id) - shares.keys():
        raise LabError(f"no request reached {', '.join(sorted(missed))}")
    if peers := {answer.peer for answer in answers} - {f"{address}:{port}"}:
        raise LabError(f"getpeername() says {', '.join(sorted(peers))}")
    shown = " + ".join(str(share) for share in sorted(shares.values(), reverse=True))
    typical_ms = median(answer.ended - answer.started for answer in answers) * 1000
    return f"{shown} requests to {address}:{port}, {typical_ms:.1f} ms each"


def demand_answers(answers: Sequence[Answer], app_id: str) -> None:
    """Each request was answered, by a task of the app. Errors: LabError."""
    errors = Counter(answer.error for answer in answers if answer.error)
    if errors:
        shown = ", ".join(f"{times} {name}" for name, times in errors.most_common())
        raise LabError(f"{errors.total()} of {len(answers)} requests failed: {shown}")
    own = encode_id(app_id) + "."
    if others := {answer.task_id for answer in answers if not answer.task_id.startswith(own)}:
        raise LabError(f"somebody else answered: {', '.join(sorted(others))}")


def _problems_of(cluster: Cluster, app_id: str) -> list[str]:
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


def _load(cluster: Cluster, host_port: str) -> Load:
    return Load(cluster.served, *cluster.resolve(host_port))


def _ms(seconds: float) -> str:
    """In milliseconds; what happened before the call returned is at once."""
    return f"{max(0.0, seconds) * 1000:.0f} ms"
