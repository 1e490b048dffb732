"""From tasks to VIPs: which endpoints are behind each VIP, and how good each of them is.

The table is kept rather than computed: an update costs in what changed, not in what exists. After
any history it equals a new table that was fed once with the last input.

The rules:

- A task that is starting asks for its VIPs and serves none. A running one that is not unhealthy is
  up; an unreachable one, or one on a lost agent, maybe; a killing or unhealthy one is draining, and
  so is one whose label asks for weight 0. What is draining has weight 0.
- A named VIP takes endpoints of both families, a literal one those of its own.
- An endpoint belongs to one task. Where several claim it, behind a VIP or not, the address was used
  again, and all but the freshest claim are stale.
- A VIP exists as long as a task or an app definition asks for it.
- A weight is of the tasks whose label asks for it. An affinity is of the VIP: where apps ask for
  several, the longest.
- Behind a host port, a backend knows where its container listens too, if that has an address of its
  own of the same family. Nothing else follows from that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from types import MappingProxyType
from typing import Generic, TypeVar

from minuteman.model import (
    Address,
    Backend,
    Claims,
    Endpoint,
    Frontend,
    Problem,
    Snapshot,
    Task,
    TaskPort,
    Tier,
    Unit,
    UnitId,
    Vip,
    VipClaim,
    VipKey,
    VipName,
)

Identity = tuple[str, str]
"""Of a task: (framework id, task id)."""
UnitKey = tuple[str, UnitId]
"""Of a unit among those of all sources: (source, unit id)."""
Place = UnitKey | Endpoint | VipKey
"""What a problem was found in."""
Refusal = Callable[[Address], str | None]
"""Why an address cannot be a literal VIP, as a sentence; None when it can."""

K = TypeVar("K")

NO_FAMILY = ()
IPV4_ONLY = (4,)
BOTH_FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class Change:
    """What an update did.

    The mappings over everything are read-only views: they move with the next update.
    """

    vips: Mapping[VipKey, Vip]
    """The whole table. A VIP that did not change is the same object as before."""
    dirty: frozenset[VipKey]
    """VIPs that are new, changed or gone."""
    tasks: Mapping[Identity, Task]
    """All tasks, those that ask for no VIP too."""
    tasks_changed: Mapping[Identity, Task]
    """Tasks that are new or changed."""
    tasks_gone: frozenset[Identity]
    problems: Mapping[Place, tuple[Problem, ...]]
    """What the sources reported and what the table found; a place without any is absent."""
    problems_changed: bool


# ---- what one unit says -------------------------------------------------------------------------
@dataclass(slots=True, eq=False)
class _Asker:
    """An app definition or a task that asks for VIPs."""

    source: str
    unit: Unit
    framework: str
    """Raw name; empty when unknown."""
    claims: tuple[VipClaim, ...]

    @property
    def where(self) -> str:
        """Its unit, for people: `marathon/instance/web.instance-1`."""
        return f"{self.source}/{self.unit.id}"


@dataclass(slots=True, eq=False)
class _Worker(_Asker):
    """A task: where it listens, and for which VIPs."""

    task: Task
    tier: Tier
    endpoints: tuple[Endpoint, ...]
    """Where it listens, behind a VIP or not."""
    seats: tuple[tuple[VipKey, Backend], ...]
    """The VIPs that it is behind, and as what: one for each VIP and endpoint."""

    @property
    def identity(self) -> Identity:
        return self.task.framework_id, self.task.id


_Rank = tuple[bool, int, int, tuple[str, ...]]


def _age(worker: _Worker) -> _Rank:
    """Ranks what several units say of one task: the last one is believed."""
    return True, worker.unit.revision, 0, (worker.where,)


def _evidence(worker: _Worker) -> _Rank:
    """Ranks tasks that claim one endpoint: the last one is there.

    Revisions tell which claim is fresher. But a task that is given up as unreachable is rewritten
    for that, maybe long after another one took its place: what is known to run comes first.
    """
    runs = worker.task.state == "running" and worker.tier is not Tier.MAYBE
    return runs, worker.unit.revision, -worker.tier, (worker.where, *worker.identity)


@dataclass(slots=True, eq=False)
class _Reading:
    """A unit, and who asks for VIPs in it."""

    unit: Unit
    askers: tuple[_Asker, ...]


def _read_unit(
    source: str, unit: Unit, lost_agents: frozenset[Address]
) -> tuple[_Reading, tuple[Problem, ...]]:
    tasks = {(task.framework_id, task.id): task for task in unit.tasks}
    workers = tuple(_read_task(source, unit, task, lost_agents) for task in tasks.values())
    problems = [*unit.problems]
    for worker in workers:
        if worker.claims:
            problems += _misfits(worker)
    askers: tuple[_Asker, ...] = workers
    if unit.declares:
        askers = (_Asker(source, unit, "", unit.declares), *workers)
    return _Reading(unit, askers), tuple(problems)


def _read_task(source: str, unit: Unit, task: Task, lost_agents: frozenset[Address]) -> _Worker:
    claims: tuple[VipClaim, ...] = ()
    endpoints: dict[Endpoint, None] = {}
    seats: dict[tuple[VipKey, Endpoint], tuple[VipKey, Backend]] = {}
    tier = _tier(task, lost_agents)
    for port in task.ports:
        claims += port.claims
        for address in _addresses(task, port):
            endpoint = Endpoint(address.packed, port.number, port.transport)
            endpoints[endpoint] = None
            inner = _inner(task, port, address)
            for claim in port.claims:
                if _fits(claim.key, address):
                    backend = _backend(source, task, tier, claim, endpoint, inner)
                    there = seats.get((claim.key, endpoint))
                    if there is None or there[1].weight < backend.weight:
                        seats[claim.key, endpoint] = claim.key, backend
    return _Worker(
        source, unit, task.framework, claims, task, tier, tuple(endpoints), tuple(seats.values())
    )


def _tier(task: Task, lost_agents: frozenset[Address]) -> Tier:
    """How good a task is. Of an unreachable one nobody can know the health."""
    if task.state == "killing":
        return Tier.DRAINING
    if task.state == "unreachable":
        return Tier.MAYBE
    if task.healthy is False:
        return Tier.DRAINING
    return Tier.MAYBE if task.agent_ip in lost_agents else Tier.UP


def _addresses(task: Task, port: TaskPort) -> tuple[Address, ...]:
    """Where the port listens; nowhere while the task is starting."""
    if task.state == "starting":
        return ()
    if port.scope == "container":
        return task.ips
    return () if task.agent_ip is None else (task.agent_ip,)


def _fits(key: VipKey, address: Address) -> bool:
    """Whether a connection to the VIP can become one to the address."""
    return isinstance(key.host, VipName) or key.host.version == address.version


def _inner(task: Task, port: TaskPort, agent_ip: Address) -> Endpoint | None:
    """Where a container listens behind a host port; None: no address of its own is known."""
    if port.scope == "host" and port.container_port:
        for ip in task.ips:
            if ip.version == agent_ip.version and ip != agent_ip:
                return Endpoint(ip.packed, port.container_port, port.transport)
    return None


def _backend(
    source: str, task: Task, tier: Tier, claim: VipClaim, endpoint: Endpoint, inner: Endpoint | None
) -> Backend:
    if claim.weight == 0:
        tier = Tier.DRAINING
    weight = 0 if tier is Tier.DRAINING else claim.weight
    return Backend(endpoint, weight, tier, source, task.framework_id, task.id, task.agent_id, inner)


def _misfits(worker: _Worker) -> Iterator[Problem]:
    """The VIPs that a task asks for and cannot serve from any of its addresses."""
    task = worker.task
    if task.state == "starting":
        return
    for port in task.ports:
        field = "ips" if port.scope == "container" else "agent_ip"
        addresses = _addresses(task, port)
        for claim in port.claims:
            if not addresses:
                reason = "no address of it is known"
            elif not any(_fits(claim.key, address) for address in addresses):
                reason = f"{' and '.join(map(str, addresses))} is of the other address family"
            else:
                continue
            reason = f"It is not behind {claim.key}: {reason}."
            yield Problem(worker.where, task.id, field, reason)


# ---- the table ----------------------------------------------------------------------------------
class _Contest(Generic[K]):
    """Who has what, where several may claim it. The few who claim in vain are kept apart."""

    def __init__(self, rank: Callable[[_Worker], _Rank]) -> None:
        """The claimant of the highest `rank` wins."""
        self.winners: dict[K, _Worker] = {}
        self._losers: dict[K, set[_Worker]] = {}
        self._rank = rank

    def losers(self, key: K) -> Collection[_Worker]:
        """Who claims it in vain."""
        return self._losers.get(key, ())

    def enter(self, key: K, worker: _Worker) -> None:
        """`worker` claims it too; who has it is open until `settle`."""
        if key in self.winners:
            self._losers.setdefault(key, set()).add(worker)
        else:
            self.winners[key] = worker

    def leave(self, key: K, worker: _Worker) -> None:
        """`worker` claims it no more; who has it is open until `settle`."""
        losers = self._losers.get(key, set())
        if self.winners[key] is not worker:
            losers.remove(worker)
        elif losers:
            self.winners[key] = losers.pop()
        else:
            del self.winners[key]
        if not losers:
            self._losers.pop(key, None)

    def settle(self, key: K) -> _Worker | None:
        """Who has it now; None when nobody claims it."""
        winner = self.winners.get(key)
        if winner is None or not (losers := self._losers.get(key)):
            return winner
        best = max(winner, *losers, key=self._rank)
        if best is not winner:
            losers.remove(best)
            losers.add(winner)
            self.winners[key] = best
        return best


class _TaskView(Mapping[Identity, Task]):
    """The tasks that are believed, read-only."""

    def __init__(self, believed: Mapping[Identity, _Worker]) -> None:
        self._believed = believed

    def __getitem__(self, identity: Identity) -> Task:
        return self._believed[identity].task

    def __iter__(self) -> Iterator[Identity]:
        return iter(self._believed)

    def __len__(self) -> int:
        return len(self._believed)


class _Roll:
    """What a VIP is made of."""

    __slots__ = ("askers", "backends", "ipv6")

    def __init__(self) -> None:
        self.askers: dict[_Asker, int] = {}
        """Each with the affinity that it asks for, in seconds."""
        self.backends: list[Backend] = []
        """Sorted by endpoint."""
        self.ipv6 = 0
        """How many of them are at an IPv6 address."""

    def put(self, endpoint: Endpoint, backend: Backend | None) -> None:
        """Make `backend` the one at `endpoint`; None: there is none."""
        at = bisect_left(self.backends, endpoint, key=attrgetter("endpoint"))
        there = at < len(self.backends) and self.backends[at].endpoint == endpoint
        self.backends[at : at + there] = () if backend is None else (backend,)
        if len(endpoint.address_packed) == 16:
            self.ipv6 += (backend is not None) - there


class _Work:
    """What one update has touched so far."""

    def __init__(self) -> None:
        self.tasks: dict[Identity, _Worker | None] = {}
        """Tasks that a unit began or ceased to hold, with what was believed of them before."""
        self.endpoints: set[Endpoint] = set()
        """Where tasks came or went."""
        self.agents: set[Address] = set()
        """Agents that had no task before, or have none now."""
        self.vips: set[VipKey] = set()
        """To be settled."""
        self.dirty: set[VipKey] = set()
        self.tasks_changed: dict[Identity, Task] = {}
        self.tasks_gone: set[Identity] = set()
        self.problems_changed = False


class Table:
    """All VIPs. For one thread."""

    def __init__(self, refusal: Refusal) -> None:
        """`refusal` judges literal VIPs; the addresses of agents are refused in any case."""
        self._refusal = refusal
        self._judge_again = False
        self._claims = Claims()
        self._snapshots: dict[str, Snapshot] = {}
        self._readings: dict[str, dict[UnitId, _Reading]] = {}
        self._agents: Counter[Address] = Counter()
        """With the number of tasks there."""
        self._believed: _Contest[Identity] = _Contest(_age)
        self._at: _Contest[Endpoint] = _Contest(_evidence)
        """Between believed tasks."""
        self._rolls: dict[VipKey, _Roll] = {}
        self._of_host: dict[VipName | Address, set[VipKey]] = {}
        self._names: dict[VipName, tuple[int, ...]] = {}
        self._vips: dict[VipKey, Vip] = {}
        self._problems: dict[Place, tuple[Problem, ...]] = {}

    def obey(self, refusal: Refusal) -> None:
        """Replace the judge of literal VIPs, from the next update on."""
        self._refusal = refusal
        self._judge_again = True

    def names(self) -> Mapping[VipName, tuple[int, ...]]:
        """The names in use, each with the IP versions that it needs an address of.

        IPv4 always, IPv6 with a backend that has it. The same object until that changes.
        """
        return self._names

    def update(self, snapshots: Sequence[Snapshot], claims: Claims) -> Change:
        """Bring the table to what the sources say now: one snapshot of each, all of them.

        `Snapshot.touched` is used when the serial follows that of the snapshot before; otherwise
        every unit is compared, by identity.
        """
        work = _Work()
        self._read(snapshots, work)
        self._believe(work)
        self._fill(work)
        self._judge(work)
        self._address(claims, work)
        for key in work.vips:
            self._settle(key, work)
        self._count_families(work)
        return Change(
            vips=MappingProxyType(self._vips),
            dirty=frozenset(work.dirty),
            tasks=_TaskView(self._believed.winners),
            tasks_changed=work.tasks_changed,
            tasks_gone=frozenset(work.tasks_gone),
            problems=MappingProxyType(self._problems),
            problems_changed=work.problems_changed,
        )

    # Reading: units that changed.

    def _read(self, snapshots: Sequence[Snapshot], work: _Work) -> None:
        given = {snapshot.source: snapshot for snapshot in snapshots}
        gone = self._snapshots.keys() - given.keys()
        for source in gone:
            given[source] = replace(self._snapshots[source], units={}, serial=0)
        for source, snapshot in given.items():
            self._read_source(source, snapshot, work)
        for source in gone:
            del self._snapshots[source], self._readings[source]

    def _read_source(self, source: str, snapshot: Snapshot, work: _Work) -> None:
        readings = self._readings.setdefault(source, {})
        for unit_id in self._suspects(snapshot, readings):
            unit = snapshot.units.get(unit_id)
            problems: tuple[Problem, ...] = ()
            if old := readings.pop(unit_id, None):
                self._leave(old, work)
            if unit is not None:
                readings[unit_id], problems = _read_unit(source, unit, snapshot.lost_agents)
                self._enter(readings[unit_id], work)
            self._report((source, unit_id), problems, work)
        self._snapshots[source] = snapshot

    def _suspects(
        self, snapshot: Snapshot, readings: Mapping[UnitId, _Reading]
    ) -> Iterable[UnitId]:
        """The units of a source that may have to be read again, gone ones too."""
        last = self._snapshots.get(snapshot.source)
        if last is None:
            return snapshot.units.keys()
        if last is snapshot:
            return ()
        if snapshot.touched is not None and 0 < last.serial == snapshot.serial - 1:
            suspects = set(snapshot.touched)
        else:
            suspects = readings.keys() - snapshot.units.keys()
            for unit_id, unit in snapshot.units.items():
                if unit_id not in readings or readings[unit_id].unit is not unit:
                    suspects.add(unit_id)
        if flipped := last.lost_agents ^ snapshot.lost_agents:
            for unit_id, reading in readings.items():
                if any(task.agent_ip in flipped for task in reading.unit.tasks):
                    suspects.add(unit_id)
        return suspects

    def _enter(self, reading: _Reading, work: _Work) -> None:
        for asker in reading.askers:
            if not isinstance(asker, _Worker):
                self._ask(asker, work)
                continue
            identity = asker.identity
            work.tasks.setdefault(identity, self._believed.winners.get(identity))
            self._believed.enter(identity, asker)
            if (agent := asker.task.agent_ip) is not None:
                self._agents[agent] += 1
                if self._agents[agent] == 1:
                    work.agents.add(agent)

    def _leave(self, reading: _Reading, work: _Work) -> None:
        for asker in reading.askers:
            if not isinstance(asker, _Worker):
                self._ask_no_more(asker, work)
                continue
            identity = asker.identity
            work.tasks.setdefault(identity, self._believed.winners[identity])
            self._believed.leave(identity, asker)
            if (agent := asker.task.agent_ip) is not None:
                self._agents[agent] -= 1
                if self._agents[agent] == 0:
                    del self._agents[agent]
                    work.agents.add(agent)

    def _ask(self, asker: _Asker, work: _Work) -> None:
        for claim in asker.claims:
            if (roll := self._rolls.get(claim.key)) is None:
                roll = self._rolls[claim.key] = _Roll()
                self._of_host.setdefault(claim.key.host, set()).add(claim.key)
            seconds = roll.askers.get(asker, 0)
            roll.askers[asker] = max(seconds, claim.affinity_seconds)
            work.vips.add(claim.key)

    def _ask_no_more(self, asker: _Asker, work: _Work) -> None:
        for claim in asker.claims:
            self._rolls[claim.key].askers.pop(asker, None)
            work.vips.add(claim.key)

    # Believing: of each task, what the freshest unit says.

    def _believe(self, work: _Work) -> None:
        for identity, before in work.tasks.items():
            now = self._believed.settle(identity)
            if now is before:
                continue
            if before is not None:
                self._ask_no_more(before, work)
                for endpoint in before.endpoints:
                    self._at.leave(endpoint, before)
                for key, backend in before.seats:
                    self._rolls[key].put(backend.endpoint, None)
                work.endpoints.update(before.endpoints)
            if now is not None:
                self._ask(now, work)
                for endpoint in now.endpoints:
                    self._at.enter(endpoint, now)
                work.endpoints.update(now.endpoints)
            if now is None:
                work.tasks_gone.add(identity)
            elif before is None or now.task != before.task:
                work.tasks_changed[identity] = now.task

    # Filling: of each endpoint, the task that has it.

    def _fill(self, work: _Work) -> None:
        winners = {w for endpoint in work.endpoints if (w := self._at.settle(endpoint))}
        losers = {w for endpoint in work.endpoints for w in self._at.losers(endpoint)}
        evicted: defaultdict[Endpoint, set[_Worker]] = defaultdict(set)
        for worker, key, backend in _touched_seats(losers, work):
            if self._at.winners[backend.endpoint] is not worker:
                self._rolls[key].put(backend.endpoint, None)
                work.vips.add(key)
                evicted[backend.endpoint].add(worker)
        for worker, key, backend in _touched_seats(winners, work):
            if self._at.winners[backend.endpoint] is worker:
                self._rolls[key].put(backend.endpoint, backend)
                work.vips.add(key)
        for endpoint in work.endpoints:
            problems = self._evictions(endpoint, evicted.get(endpoint, ()))
            self._report(endpoint, problems, work)

    def _evictions(self, endpoint: Endpoint, evicted: Iterable[_Worker]) -> tuple[Problem, ...]:
        """What to tell of tasks that are behind a VIP at an endpoint that another one has."""
        return tuple(
            Problem(
                worker.where,
                worker.task.id,
                "ports",
                f"{endpoint} now belongs to a fresher task, {self._at.winners[endpoint].task.id}.",
            )
            for worker in sorted(evicted, key=_evidence)
        )

    # Settling: of each VIP, what the kernel is to have.

    def _judge(self, work: _Work) -> None:
        """Touch the literal VIPs whose admission may have changed."""
        for host in list(self._of_host) if self._judge_again else work.agents:
            if not isinstance(host, VipName):
                work.vips |= self._of_host.get(host, set())
        self._judge_again = False

    def _address(self, claims: Claims, work: _Work) -> None:
        """Touch the VIPs whose name has other claims than before."""
        old, self._claims = self._claims, claims
        if old is claims:
            return
        for host, keys in self._of_host.items():
            if isinstance(host, VipName) and (
                old.addresses.get(host) != claims.addresses.get(host)
                or old.waiting.get(host) != claims.waiting.get(host)
            ):
                work.vips |= keys

    def _settle(self, key: VipKey, work: _Work) -> None:
        """Make the VIP anew, and keep the old object if it is the same."""
        roll = self._rolls[key]
        vip, reason = None, None
        if not roll.askers:
            del self._rolls[key]
            self._of_host[key.host].discard(key)
            if not self._of_host[key.host]:
                del self._of_host[key.host]
        elif isinstance(key.host, VipName):
            vip, reason = self._vip(key, roll), self._claims.waiting.get(key.host)
        elif (reason := self._objection(key.host)) is None:
            vip = self._vip(key, roll)
        if vip != self._vips.get(key):
            work.dirty.add(key)
            if vip is None:
                del self._vips[key]
            else:
                self._vips[key] = vip
        problems = (_vip_problem(key, roll, reason),) if reason else ()
        self._report(key, problems, work)

    def _objection(self, address: Address) -> str | None:
        """Why there cannot be a literal VIP at `address`."""
        if address in self._agents:
            return f"{address} is the address of an agent."
        return self._refusal(address)

    def _vip(self, key: VipKey, roll: _Roll) -> Vip:
        if isinstance(key.host, VipName):
            held = self._claims.addresses.get(key.host, ())
            addresses = tuple(a for a in held if a.version == 4 or roll.ipv6)
            fallback = key.host.framework
        else:
            addresses, fallback = (key.host,), ""
        return Vip(
            key,
            tuple(Frontend(address, key.port, key.transport) for address in addresses),
            tuple(roll.backends),
            min((a.framework for a in roll.askers if a.framework), default=fallback),
            max(roll.askers.values()),
        )

    def _count_families(self, work: _Work) -> None:
        """Bring the names up to date with the VIPs that were settled."""
        changed: dict[VipName, tuple[int, ...]] = {}
        for host in {key.host for key in work.vips}:
            if isinstance(host, VipName):
                families = self._families(host)
                if families != self._names.get(host, NO_FAMILY):
                    changed[host] = families
        if changed:
            names = {**self._names, **changed}
            self._names = {name: families for name, families in names.items() if families}

    def _families(self, name: VipName) -> tuple[int, ...]:
        """The IP versions that a name needs an address of; none when it is not in use."""
        keys = self._of_host.get(name)
        if not keys:
            return NO_FAMILY
        return BOTH_FAMILIES if any(self._rolls[key].ipv6 for key in keys) else IPV4_ONLY

    def _report(self, place: Place, problems: tuple[Problem, ...], work: _Work) -> None:
        if problems == self._problems.get(place, ()):
            return
        work.problems_changed = True
        if problems:
            self._problems[place] = problems
        else:
            del self._problems[place]


def _touched_seats(
    workers: Iterable[_Worker], work: _Work
) -> Iterator[tuple[_Worker, VipKey, Backend]]:
    """Seats at endpoints where tasks came or went; of all others nothing is known to be new."""
    for worker in workers:
        for key, backend in worker.seats:
            if backend.endpoint in work.endpoints:
                yield worker, key, backend


def _vip_problem(key: VipKey, roll: _Roll, reason: str) -> Problem:
    """Told once, of the first unit that asks for the VIP."""
    return Problem(min(asker.where for asker in roll.askers), str(key), "address", reason)
