"""Random VIPs over a few backends of the loopback, and what a connection to each may meet."""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network

from minuteman.model import Backend, Endpoint, Frontend, Tier, Vip, VipKey, VipName
from minuteman.reconcile.kernelstate import KernelState, PutBackend
from minuteman.reconcile.plan import Ground, Planner
from tests.contract.fake_dataplane import FakeDataplane, Maps, Verdict
from tests.kernel.conftest import LIMITS, frontend

log = logging.getLogger(__name__)

Desired = Mapping[VipKey, Vip]
Answers = tuple[frozenset[int], ...]
"""For each of `TARGETS` what may come of a connection: a place in `LISTENERS`, or -errno."""

PORTS = range(20_001, 20_006)
"""Below those that the kernel gives out by itself."""
MEMBERS = tuple(
    Endpoint(ip_address(home).packed, port, "tcp")
    for home in ("127.0.0.1", "::1")
    for port in PORTS
)
INNERS = tuple(Endpoint(m.address_packed, m.port + 100, "tcp") for m in MEMBERS)
"""Where each member is for processes of this host."""
LISTENERS = MEMBERS + INNERS

FRONTENDS: Mapping[VipKey, tuple[Frontend, ...]] = {
    VipKey(VipName("web", "marathon"), 80, "tcp"): (
        frontend("11.0.0.1", 80),
        frontend("fd01:c::1", 80),
    ),
    VipKey(VipName("web", "marathon"), 81, "tcp"): (frontend("11.0.0.1", 81),),
    VipKey(VipName("db", "kafka"), 80, "tcp"): (
        frontend("11.0.0.2", 80),
        frontend("fd01:c::2", 80),
    ),
    VipKey(ip_address("10.9.9.9"), 80, "tcp"): (frontend("10.9.9.9", 80),),
    VipKey(ip_address("10.9.9.9"), 81, "tcp"): (frontend("10.9.9.9", 81),),
    VipKey(ip_address("fd02::4"), 80, "tcp"): (frontend("fd02::4", 80),),
}
NEVER = (frontend("11.0.0.3", 80), frontend("10.9.9.9", 99), frontend("10.9.9.8", 80))
"""No VIP is ever there: in a range for VIPs alone, at the address of one, and neither."""
TARGETS = (*(each for frontends in FRONTENDS.values() for each in frontends), *NEVER)
GROUND = Ground(
    ranges=(ip_network("11.0.0.0/24"), ip_network("fd01:c::/64")),
    host=frozenset(map(ip_address, ("127.0.0.1", "::1"))),
)


# ---- random worlds ------------------------------------------------------------------------------
def new_chance() -> random.Random:
    """Another one each time. A test that fails shows its seed."""
    seed = random.SystemRandom().randrange(2**32)
    log.warning("seed=%d", seed)
    return random.Random(seed)  # noqa: S311 - no secret


def random_world(chance: random.Random) -> Desired:
    """Some of the VIPs, each with some of the members."""
    return {key: random_vip(key, chance) for key in FRONTENDS if chance.random() < 0.8}


def changed(world: Desired, chance: random.Random) -> Desired:
    """`world`, with one VIP or two as by chance, now and then all of them."""
    if chance.random() < 0.05:
        return random_world(chance)
    other = random_world(chance)
    at = chance.sample(list(FRONTENDS), chance.choice((1, 1, 2)))
    mixed = {key: other.get(key) if key in at else world.get(key) for key in FRONTENDS}
    return {key: vip for key, vip in mixed.items() if vip}


def random_vip(key: VipKey, chance: random.Random) -> Vip:
    """With up to six members, or none."""
    places = sorted(chance.sample(range(len(MEMBERS)), chance.randrange(7)))
    backends = tuple(
        Backend(
            MEMBERS[place],
            chance.choice((0, 1, 1, 2, 3, 6)),
            chance.choice((Tier.UP, Tier.UP, *Tier)),
            "marathon",
            "fw",
            f"task-{place}",
            inner=INNERS[place] if chance.random() < 0.25 else None,
        )
        for place in places
    )
    ordered = tuple(sorted(backends, key=lambda backend: backend.endpoint))
    return Vip(key, FRONTENDS[key], ordered, affinity_seconds=chance.choice((0, 0, 60)))


# ---- what may come of a connection --------------------------------------------------------------
def wished(world: Desired) -> Maps:
    """The maps as they are to be."""
    fake = FakeDataplane(LIMITS)
    state = fake.open()
    assert fake.apply(Planner().plan(world, state, ground=GROUND).ops, state).error is None
    return fake.maps


def found(state: KernelState) -> Maps:
    """The maps as they were read."""
    slots = {base + i: each for base, run in state.runs.items() for i, each in enumerate(run)}
    return Maps(state.frontends, slots, state.backends, state.prefixes)


def answers(*maps: Maps) -> Answers:
    """What may come of a connection when the maps are as one of these, or on the way between them.

    A member that stays may have another inner endpoint before its VIP has another set.
    """
    return tuple(_answers_of(target, maps) for target in TARGETS)


def _answers_of(target: Frontend, maps: Sequence[Maps]) -> frozenset[int]:
    found = [FakeDataplane(LIMITS, each).reachable(target) for each in maps]
    verdicts = {VERDICTS[each] for each in found if isinstance(each, Verdict)}
    reached = frozenset().union(*(each for each in found if not isinstance(each, Verdict)))
    return frozenset(
        {
            LISTENERS.index(member.inner or member.endpoint)
            for each in maps
            for member in members_of(target, each)
            if member.endpoint in reached
        }
        | verdicts
    )


def members_of(target: Frontend, maps: Maps) -> list[PutBackend]:
    """The backends behind a VIP, of every tier; none where there is no VIP."""
    vip = maps.vips.get(target)
    return [each for each in maps.backends.values() if vip and each.vip_id == vip.vip_id]


VERDICTS = {Verdict.REFUSED: -errno.ECONNREFUSED, Verdict.PASSED: -errno.ENETUNREACH}
"""There is no way out of the sandbox."""


def either(one: Answers, other: Answers) -> Answers:
    """What the one allows, or the other, each target for itself."""
    return tuple(a | b for a, b in zip(one, other, strict=True))
