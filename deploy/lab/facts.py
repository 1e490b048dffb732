"""What must hold in the sample cluster, each fact as a function.

Its name is the fact's, its docstring the claim, and it returns what was measured.  Errors: LabError
when the fact does not hold. Facts build upon the ones before: they change the cluster.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile

import httpx
import msgspec

from api import schemas
from lab import server, versions
from lab.agent import BPFFS
from lab.client import ENDLESS, Answer, Target
from lab.cluster import Cluster
from lab.docker import IMAGE, Docker
from lab.lines import Lines
from lab.load import Load, ask, program, read_answers
from lab.measure import (
    REQUESTS,
    SETTLE_SECONDS,
    await_ejection,
    counted,
    demand_answers,
    demand_refusals,
    load_on,
    ms,
    problems_of,
    reach_every_backend,
    vip_of,
)
from lab.network import BRIDGE_HOST
from lab.sandbox import remove_cgroup
from lab.wait import LabError, until

Fact = Callable[[Cluster], str]

NAMED = "web.marathon.l4lb.thisdcos.directory:80"
LITERAL = "1.2.3.4:5000"
CONTAINER = "store.marathon.l4lb.thisdcos.directory:6379"
BESIDE_TYPO = "typo.marathon.l4lb.thisdcos.directory:80"
DATAGRAMS = "clock.marathon.l4lb.thisdcos.directory:123"
IPV6 = "resolver.marathon.l4lb.thisdcos.directory:53"
STICKY = "cart.marathon.l4lb.thisdcos.directory:80"
PAGES = ("/v1/vips", "/api/vips", "/api/health", "/metrics", "/openapi.json", "/docs")

UNCLAIMED = ("11.255.0.1", "fd01:c::1")
"""For names, and no name here has them."""

GUEST = "guest.marathon.l4lb.thisdcos.directory:80"
GUEST_PORT = 8080
GUEST_APP = {
    "id": "/guest",
    "networks": [{"mode": "container/bridge"}],
    "container": {
        "type": "DOCKER",
        "docker": {"image": IMAGE},
        "portMappings": [{"containerPort": GUEST_PORT, "labels": {"VIP_0": "/guest:80"}}],
    },
}
CONTAINER_PYTHON = "/usr/bin/python3"

REFUSE_SECONDS = 1.0
"""A VIP without backends refuses this soon."""
NOTICE_SECONDS = 1.0
"""A task that is being killed gets no new connection after this."""
EJECT_FAILURES = 5
"""In a row. Source: ebpf/pick.h."""
FIND_SECONDS = 2.0
"""A backend that does not answer is found this soon, under load."""
FREE_SECONDS = 3.0
"""Who waits for a task that is gone is told this soon, and mostly sooner by far."""
SLOW_SECONDS = 0.8
"""A SYN that is lost is sent again after 1 s: a request that takes as long has met one."""
STICKY_CLIENTS = 12
"""With 3 backends all of them have the same by chance once in 100,000 times."""
STICKY_REQUESTS = 10


class Listed(msgspec.Struct, frozen=True):
    """What is of use here of an object of `minuteman conns --json`."""

    backend: str
    backend_port: int


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


def udp(cluster: Cluster) -> str:
    """Datagrams reach every backend, and answers come from the VIP."""
    loose = reach_every_backend(cluster, DATAGRAMS, "/clock", "udp")
    connected = reach_every_backend(cluster, DATAGRAMS, "/clock", "udp-connected")
    return f"{loose}; with connect() {connected}"


def ipv6(cluster: Cluster) -> str:
    """A VIP with IPv6 backends has an IPv6 address, for TCP and UDP."""
    return "; ".join(
        f"{how} {reach_every_backend(cluster, IPV6, '/resolver', how)}"
        for how in ("tcp", "udp", "udp-connected")
    )


def affinity(cluster: Cluster) -> str:
    """Where a label asks for it, each client stays at one backend."""
    vip_of(cluster, STICKY, "/cart")
    target = cluster.resolve(STICKY)
    used: set[str] = set()
    for number in range(STICKY_CLIENTS):
        client = cluster.served / f"client{number}"
        client.mkdir()
        try:
            answers = ask(client, target, count=STICKY_REQUESTS)
        finally:
            remove_cgroup(client)
        demand_answers(answers, "/cart")
        found = {answer.task_id for answer in answers}
        if len(found) > 1:
            raise LabError(f"{len(found)} backends answered one client")
        used |= found
    if len(used) == 1:
        raise LabError(f"all of {STICKY_CLIENTS} clients were answered by one backend")
    return (
        f"{STICKY_REQUESTS} requests of each of {STICKY_CLIENTS} cgroups were answered by one, "
        f"all of them by {len(used)} backends"
    )


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
    [reason] = until("problem of /typo", lambda: problems_of(cluster, "/typo"), SETTLE_SECONDS)
    reach_every_backend(cluster, BESIDE_TYPO, "/typo")
    return f'"{reason}"; the label beside it is served'


def unknown(cluster: Cluster) -> str:
    """Addresses that are for VIPs alone refuse at once where no VIP is, and nothing is sent."""
    escaped = cluster.network.packets_escaped()
    by_kernel = cluster.agent.decisions("refused_unknown")
    literal = cluster.resolve(LITERAL)
    targets = [
        replace(literal, port=literal.port + 1),
        replace(literal, how="udp"),
        *(Target(address, 80, "tcp") for address in UNCLAIMED),
        *(Target(address, 80, "udp") for address in UNCLAIMED),
        *(Target(address, 80, "udp-connected") for address in UNCLAIMED),
    ]
    answers = [answer for target in targets for answer in ask(cluster.served, target, count=10)]
    demand_refusals(answers)
    until(
        "refusals that the kernel counts as its own",
        lambda: cluster.agent.decisions("refused_unknown") >= by_kernel + len(answers),
        SETTLE_SECONDS,
    )
    if left := cluster.network.packets_escaped() - escaped:
        raise LabError(f"{left} packets left by the default route")
    slowest = max(answer.seconds for answer in answers)
    return (
        f"{len(answers)} of {len(answers)} refused at {len(targets)} places, in {ms(slowest)} at "
        "most; 0 packets left this host"
    )


def added(cluster: Cluster) -> str:
    """A task that is added gets requests."""
    with load_on(cluster, NAMED) as load:
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
    return f"the first {ms(first - written)} after ZooKeeper knew; 0 of {len(answers)} failed"


def refusing(cluster: Cluster) -> str:
    """A task that has crashed, while ZooKeeper says that it runs, costs 5 connections at most."""
    victim = min(cluster.scheduler.task_ids("/web"))
    with load_on(cluster, NAMED) as load:
        load.wait_for_more(REQUESTS)
        cluster.scheduler.crash(victim)
        await_ejection(cluster, NAMED, victim)
        load.wait_for_more(REQUESTS)
    answers = load.answers()
    errors = Counter(answer.error for answer in answers if answer.error)
    refused = errors.pop("ECONNREFUSED", 0)
    # It may have crashed with a request in its hands, of the one client.
    if refused > EJECT_FAILURES or errors.total() > 1:
        raise LabError(f"{refused} of {len(answers)} requests were refused, {counted(errors)}")
    cluster.scheduler.replace(victim)
    reach_every_backend(cluster, NAMED, "/web")
    return f"{refused} of {len(answers)} were refused, then it was ejected; its successor is served"


def silent(cluster: Cluster) -> str:
    """A task whose host drops connections to it is found within 2 s under load."""
    victim = min(cluster.scheduler.task_ids("/web"))
    with load_on(cluster, NAMED, clients=40, keep=3, pause_seconds=0.1) as load:
        load.wait_for_more(REQUESTS)
        with cluster.scheduler.muted(victim) as began:
            await_ejection(cluster, NAMED, victim)
            _wait_past(load, began + FIND_SECONDS)
    answers = load.answers()
    lost = [answer for answer in answers if answer.error or answer.seconds > SLOW_SECONDS]
    last = max((answer.started for answer in lost), default=began) - began
    if last > FIND_SECONDS:
        raise LabError(f"a request that began {ms(last)} after that was lost or slow")
    cluster.scheduler.replace(victim)
    reach_every_backend(cluster, NAMED, "/web")
    return (
        f"{len(lost)} of {len(answers)} requests were lost or slow, the last of them began "
        f"{ms(last)} after that; its successor is served"
    )


def drained(cluster: Cluster) -> str:
    """A task that is being killed keeps its connections and gets no new one."""
    victim = min(cluster.scheduler.task_ids("/web"))
    with (
        load_on(cluster, NAMED, clients=12, keep=ENDLESS, pause_seconds=0.05) as kept,
        load_on(cluster, NAMED) as load,
    ):
        for each in (kept, load):
            each.wait_for_more(REQUESTS)
        written = cluster.scheduler.drain(victim)
        for each in (kept, load):
            _wait_past(each, written + NOTICE_SECONDS)
    cluster.scheduler.kill(victim)
    demand_answers(kept.answers(), "/web")
    demand_answers(load.answers(), "/web")
    last = max((a.started for a in load.answers() if a.task_id == victim), default=written)
    if last > written + NOTICE_SECONDS:
        raise LabError(f"a connection came to it {ms(last - written)} after ZooKeeper knew")
    late = [a for a in kept.answers() if a.task_id == victim and a.started > last]
    if not late:
        raise LabError("no connection to it was kept")
    return (
        f"{len(late)} further requests on connections that it had; the last new one came "
        f"{ms(last - written)} after ZooKeeper knew; 0 of {len(load.answers())} failed"
    )


def freed(cluster: Cluster) -> str:
    """Sockets of a task that is gone are ended at once, also where its host says nothing."""
    victim = min(cluster.scheduler.task_ids("/clock"))
    with load_on(
        cluster,
        DATAGRAMS,
        "udp-connected",
        clients=8,
        keep=ENDLESS,
        pause_seconds=0.05,
        timeout_seconds=4 * FREE_SECONDS,
    ) as load:
        load.wait_for_more(REQUESTS)
        with cluster.scheduler.muted(victim):
            gone = cluster.scheduler.kill(victim)
            _wait_past(load, gone)
    answers = load.answers()
    cut = [answer for answer in answers if answer.error]
    if others := Counter(a.error for a in cut if a.error != "ECONNABORTED"):
        raise LabError(f"{others.total()} of {len(answers)} requests failed: {counted(others)}")
    if not cut:
        raise LabError("no client was connected to it")
    late = max(answer.ended for answer in cut) - gone
    if late > FREE_SECONDS:
        raise LabError(f"a client was told {ms(late)} after ZooKeeper knew")
    cluster.scheduler.scale("/clock", len(cluster.scheduler.task_ids("/clock")) + 1)
    reach_every_backend(cluster, DATAGRAMS, "/clock", "udp-connected")
    return (
        f"{len(cut)} connected UDP clients were told ECONNABORTED, the last {ms(late)} after "
        "ZooKeeper knew, and went elsewhere; its successor is served"
    )


def killed(cluster: Cluster) -> str:
    """A task that is killed costs no request."""
    with load_on(cluster, NAMED) as load:
        victim = min(cluster.scheduler.task_ids("/web"))
        load.wait_for(
            f"request to {victim}", lambda answers: answers[-1].task_id == victim, SETTLE_SECONDS
        )
        written = cluster.scheduler.kill(victim)
        load.wait_for_more(REQUESTS)
    answers = load.answers()
    demand_answers(answers, "/web")
    last = max(answer.started for answer in answers if answer.task_id == victim)
    return f"its last {ms(last - written)} after ZooKeeper knew; 0 of {len(answers)} failed"


def zero(cluster: Cluster) -> str:
    """An app without tasks refuses within a second and sends nothing to the network."""
    escaped = cluster.network.packets_escaped()
    by_kernel = cluster.agent.decisions("refused_empty")
    with load_on(cluster, NAMED) as load:
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
        raise LabError(f"still {answers[last].error or 'an answer'} after {ms(delay_seconds)}")
    if left := cluster.network.packets_escaped() - escaped:
        raise LabError(f"{left} packets left by the default route")
    return (
        f"{len(refused)} of {len(refused)} refused, all from {ms(delay_seconds)} after ZooKeeper "
        "knew; 0 packets left this host"
    )


def back(cluster: Cluster) -> str:
    """Scaled up again it answers."""
    with load_on(cluster, NAMED) as load:
        written = cluster.scheduler.scale("/web", 3)
        load.wait_for("answer", lambda answers: not answers[-1].error, SETTLE_SECONDS)
        load.wait_for_more(REQUESTS)
    answers = load.answers()
    first = next(i for i, answer in enumerate(answers) if not answer.error)
    demand_answers(answers[first:], "/web")
    reach_every_backend(cluster, NAMED, "/web")
    return f"the first answer {ms(answers[first].started - written)} after ZooKeeper knew"


def docker(cluster: Cluster) -> str:
    """A client in a container is served, also by a container that publishes its port here."""
    vips = {LITERAL: "/shop/api", NAMED: "/web", GUEST: "/guest"}
    with (
        cluster.docker() as running,
        _guest(cluster, running),
        running.run("sleep", "infinity", cgroup=cluster.served) as client,
    ):
        for host_port, app_id in vips.items():
            target = cluster.resolve(host_port)
            said = client.exec(*program(CONTAINER_PYTHON, target, f"--count={REQUESTS}"))
            demand_answers(read_answers(said), app_id, target)
        guest = cluster.resolve(GUEST)
        demand_answers(ask(cluster.served, guest, count=REQUESTS), "/guest", guest)
        where = client.address
    return (
        f"{len(vips)} x {REQUESTS} requests from {where} were answered, and {REQUESTS} of this "
        f"host's own to {guest}"
    )


def restart(cluster: Cluster) -> str:
    """The agent is killed and started again, and no request is lost."""
    with load_on(cluster, NAMED) as load:
        load.wait_for_more(REQUESTS)
        cluster.agent.kill()
        load.wait_for_more(REQUESTS)
        cluster.agent.start()
        seconds = cluster.agent.wait_healthy()
        load.wait_for_more(REQUESTS)
    answers = load.answers()
    demand_answers(answers, "/web")
    return f"0 of {len(answers)} failed; healthy again after {seconds:.1f} s"


def listed(cluster: Cluster) -> str:
    """`minuteman conns` lists the connections that there are, with their backends."""
    clients = 12
    with load_on(cluster, NAMED, clients=clients, keep=ENDLESS, pause_seconds=0.05) as kept:
        kept.wait_for_more(REQUESTS)
        shown = cluster.minuteman("conns", "--json", f"--bpffs={BPFFS}", f"--vip={NAMED}")
        connections = msgspec.json.decode(shown, type=list[Listed])
        asked = {answer.client: answer.task_id for answer in kept.answers()}
    tasks = {f"{b.address}:{b.port}": b.task_id for b in cluster.agent.vip(NAMED).backends}
    found = Counter(tasks.get(f"{c.backend}:{c.backend_port}", "nobody") for c in connections)
    if found != Counter(asked.values()):
        raise LabError(f"it lists {counted(found)}; it is {counted(Counter(asked.values()))}")
    return f"{found.total()} of {clients}, {' + '.join(map(str, found.values()))} by backend"


def told(cluster: Cluster) -> str:
    """`minuteman events` tells what becomes of each connection, and which process asked."""
    target = cluster.resolve(NAMED)
    nowhere = replace(target, port=target.port + 1)
    with cluster.events() as events:
        with load_on(cluster, LITERAL):
            events.wait_for("event", bool, SETTLE_SECONDS)
        answers = ask(cluster.served, target, count=REQUESTS)
        refusals = ask(cluster.served, nowhere, count=REQUESTS)
        by_task = Counter(answer.task_id for answer in answers)
        _await_events(events, "connected", target, by_task)
        _await_events(events, "refused_unknown", nowhere, Counter({"": len(refusals)}))
    demand_answers(answers, "/web", target)
    demand_refusals(refusals)
    return f"{len(answers)} connected, with the task of each, and {len(refusals)} refused"


def upgraded(cluster: Cluster) -> str:
    """It is upgraded to other programs and maps, and rolled back, and no request is lost."""
    version = versions.install("next", versions.NEXT, cluster.folder)
    folders = [cluster.pinned()]
    counted_before = cluster.agent.decisions("translated")
    with (
        load_on(cluster, NAMED, clients=2) as load,
        load_on(cluster, NAMED, clients=6, keep=ENDLESS, pause_seconds=0.05) as kept,
        load_on(cluster, DATAGRAMS, "udp", keep=REQUESTS) as datagrams,
    ):
        loads = {"/web": (load, kept), "/clock": (datagrams,)}
        for environment in (version.environment, None):
            cluster.agent.stop()
            cluster.agent.start(environment)
            cluster.agent.wait_healthy()
            folders.append(cluster.pinned())
            for each in (load, kept, datagrams):
                each.wait_for_more(REQUESTS)
    for app_id, each_of in loads.items():
        for each in each_of:
            demand_answers(each.answers(), app_id)
    if len(set(folders)) != 2 or folders[0] != folders[2]:
        raise LabError(f"the maps were those of {', '.join(folders)}")
    asked = len(load.answers())
    if cluster.agent.decisions("translated") < counted_before + asked:
        raise LabError("connections are not counted any more")
    total = sum(len(each.answers()) for each in (load, kept, datagrams))
    return f"{' -> '.join(folders)}: 0 of {total} failed, and all are counted"


def outside(cluster: Cluster) -> str:
    """Outside of the cgroup no way leads to a named VIP; other addresses are left alone."""
    vip, literal = vip_of(cluster, NAMED, "/web"), cluster.resolve(LITERAL)
    before = cluster.network.packets_escaped()
    told = cluster.connect_outside(vip.addresses[0], vip.port)
    left = cluster.network.packets_escaped() - before
    if told != "EHOSTUNREACH" or left:
        raise LabError(f"{told} at once, and {left} packets left by the default route")
    cluster.connect_outside(literal.address, literal.port)
    until(
        f"packet to {literal.address} at the dead end",
        lambda: cluster.network.packets_escaped() > before,
        SETTLE_SECONDS,
    )
    return f"{told} at once, no packet left this host; to {literal.address} one did"


def detached(cluster: Cluster) -> str:
    """Without the agent the VIPs are served; --detach-all takes everything away."""
    vip = vip_of(cluster, NAMED, "/web")
    if code := cluster.agent.stop():
        raise LabError(f"on SIGTERM it ended with {code}: {cluster.agent.last_words()}")
    target = Target(vip.addresses[0], vip.port)
    demand_answers(ask(cluster.served, target, count=REQUESTS), "/web", target)
    cluster.detach()
    if left := cluster.leftovers():
        raise LabError(f"left behind: {', '.join(left)}")
    return f"{REQUESTS} requests served; then no program, no pin and no route is left"


# ---- parts of facts ------------------------------------------------------------------------------
def _wait_past(load: Load, moment: float) -> None:
    """Return when each client's next request after `moment`, by time.monotonic(), is over.

    So none of them is left waiting in a request that is not among the answers.
    """

    def is_past(answers: Sequence[Answer]) -> bool:
        late = takewhile(lambda answer: answer.ended > moment, reversed(answers))
        return len({answer.client for answer in late if answer.started > moment}) == load.clients

    load.wait_for("request of each client after what was to happen", is_past, SETTLE_SECONDS)
    load.wait_for_more(REQUESTS)


def _await_events(
    events: Lines[schemas.Event], outcome: str, asked: Target, by_task: Counter[str]
) -> None:
    """Return when one process, and no other, has met an outcome so often, by task.

    Errors: LabError.
    """

    def is_told() -> bool:
        found: defaultdict[int | None, Counter[str]] = defaultdict(Counter)
        for event in events.so_far():
            if (event.outcome, event.vip) == (outcome, str(asked)):
                found[event.pid][event.task_id or ""] += 1
        if list(found.values()) != [by_task]:
            raise LabError(f"told are {dict(found)}, not {by_task}")
        return True

    until(f"{by_task.total()} events that say {outcome!r}", is_told, SETTLE_SECONDS)


@contextmanager
def _guest(cluster: Cluster, running: Docker) -> Iterator[None]:
    """An app whose only task is a container on this very host, behind a published port."""
    listening = f"{GUEST_PORT}/tcp"
    command = (CONTAINER_PYTHON, server.__file__, "guest.1", "0.0.0.0", listening)  # noqa: S104
    with running.run(*command, cgroup=cluster.served, publish=[listening]) as container:
        until("guest that listens", lambda: server.READY in container.logs(), SETTLE_SECONDS)
        cluster.marathon.publish(GUEST_APP)
        instance_id = cluster.marathon.launch(
            "/guest",
            str(BRIDGE_HOST),
            host_ports=[container.ports[listening]],
            ips=[str(container.address)],
        )
        until("guest behind its VIP", lambda: cluster.agent.vip(GUEST).backends, SETTLE_SECONDS)
        yield
        cluster.marathon.remove(instance_id)
        cluster.marathon.delete("/guest")


FACTS: Sequence[Fact] = (
    served,
    literal,
    named,
    container,
    mapped,
    udp,
    ipv6,
    affinity,
    rest,
    problems,
    unknown,
    added,
    refusing,
    silent,
    drained,
    killed,
    freed,
    zero,
    back,
    docker,
    listed,
    told,
    restart,
    upgraded,
    outside,
    detached,
)
