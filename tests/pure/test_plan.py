"""From what the kernel has to what it should have: laws over random worlds, rules by example."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from minuteman.model import Backend, Endpoint, Frontend, Tier, Vip, VipKey, VipName
from minuteman.reconcile.kernelstate import (
    DropPrefix,
    DropVip,
    KernelState,
    Limits,
    Owner,
    PutBackend,
    PutPrefix,
    Release,
    SwapVip,
    WriteRun,
)
from minuteman.reconcile.plan import Gate, Ground, Planned, Planner, as_member, lay_out
from tests.contract.fake_dataplane import FakeDataplane, Maps, Verdict

Desired = Mapping[VipKey, Vip]
Reach = frozenset[Endpoint] | Verdict


def endpoint(address: str, port: int = 8080) -> Endpoint:
    return Endpoint(ip_address(address).packed, port, "tcp")


def only(*endpoints: Endpoint) -> frozenset[Endpoint]:
    return frozenset(endpoints)


def backend(where: Endpoint, weight: int = 1, tier: Tier = Tier.UP) -> Backend:
    return Backend(where, weight, tier, "marathon", "fw", f"task-{where.port}")


A, B, C = (endpoint(f"10.0.0.{i}") for i in (1, 2, 3))
SIX = endpoint("fd00::1")

WEB = VipKey(VipName("web", "marathon"), 80, "tcp")
API = VipKey(VipName("api", "marathon"), 80, "tcp")
LITERAL = VipKey(ip_address("10.9.9.9"), 80, "tcp")
SQUATTER = VipKey(ip_address("11.0.0.1"), 80, "tcp")
"""A literal VIP at the address of `WEB`."""
ADDRESSES = {
    WEB: ("11.0.0.1", "fd01:c::1"),
    API: ("11.0.0.2",),
    LITERAL: ("10.9.9.9",),
    SQUATTER: ("11.0.0.1",),
}
FRONTENDS = {
    key: tuple(Frontend(ip_address(a), key.port, key.transport) for a in addresses)
    for key, addresses in ADDRESSES.items()
}
WEB4, WEB6 = FRONTENDS[WEB]
(API4,) = FRONTENDS[API]


def vip(key: VipKey, *backends: Backend) -> Vip:
    ordered = sorted(backends, key=lambda b: b.endpoint)
    return Vip(key, FRONTENDS[key], tuple(ordered))


def desired(*vips: Vip) -> Desired:
    return {vip.key: vip for vip in vips}


# ---- what should come out, worked out another way ------------------------------------------------
def same_family(endpoint: Endpoint, frontend: Frontend) -> bool:
    return len(endpoint.address_packed) == len(frontend.address.packed)


def expected_reach(vip: Vip, frontend: Frontend) -> Reach:
    tiers: dict[Tier, list[Backend]] = {tier: [] for tier in Tier}
    for b in vip.backends:
        if same_family(b.endpoint, frontend):
            tiers[b.tier if b.weight else Tier.DRAINING].append(b)
    up, maybe = tiers[Tier.UP], tiers[Tier.MAYBE]
    weight_up, weight_maybe = (sum(b.weight for b in tier) for tier in (up, maybe))
    if weight_up / ((weight_up + weight_maybe) or 1) < 0.5:
        up = up + maybe
    best = up or maybe or tiers[Tier.DRAINING]
    return frozenset(b.endpoint for b in best) or Verdict.REFUSED


def owners(world: Desired) -> dict[Frontend, Vip]:
    """Who should have each frontend: a name wins over a literal address."""
    names_last = sorted(world.values(), key=lambda vip: isinstance(vip.key.host, VipName))
    return {frontend: vip for vip in names_last for frontend in vip.frontends}


def expected(world: Desired) -> dict[Frontend, Reach]:
    return {frontend: expected_reach(vip, frontend) for frontend, vip in owners(world).items()}


def reach(dataplane: FakeDataplane) -> dict[Frontend, Reach]:
    return {frontend: dataplane.reachable(frontend) for frontend in dataplane.maps.vips}


def members(state: KernelState) -> dict[Frontend, set[Endpoint]]:
    return {f: {*state.members.get(swap.vip_id, {})} for f, swap in state.frontends.items()}


def apply(planned: Planned, dataplane: FakeDataplane, state: KernelState) -> None:
    assert dataplane.apply(planned.ops, state).error is None


def converge(
    world: Desired, dataplane: FakeDataplane, state: KernelState | None = None
) -> KernelState:
    state = state or dataplane.open()
    apply(Planner().plan(world, state), dataplane, state)
    return state


# ---- random worlds -------------------------------------------------------------------------------
endpoints = st.sampled_from(
    [endpoint(f"10.0.0.{i}") for i in range(1, 6)] + [endpoint(f"fd00::{i}") for i in range(1, 4)]
)
backends = st.builds(
    backend, endpoints, st.sampled_from([0, 1, 1, 2, 3, 6, 100]), st.sampled_from(Tier)
)
vips = st.builds(
    lambda key, members: vip(key, *members),
    st.sampled_from(list(FRONTENDS)),
    st.lists(backends, max_size=6, unique_by=lambda b: b.endpoint),
)
worlds = st.lists(vips, max_size=4, unique_by=lambda v: v.key).map(lambda vips: desired(*vips))
LIMITS = Limits(vips=8, slots=4096, backends=64)


def check_consistent(state: KernelState, dataplane: FakeDataplane) -> None:
    assert state == dataplane.audit(), "the mirror differs from the maps"
    runs = sorted((v.base, v.base + v.size) for v in state.frontends.values() if v.size)
    assert all(end <= start for (_, end), (start, _) in pairwise(runs)), "runs overlap"
    used = {slot for start, end in runs for slot in range(start, end)}
    free = zip(state.free_slots.starts, state.free_slots.ends, strict=True)
    assert used == set(range(state.limits.slots)) - {s for a, b in free for s in range(a, b)}
    assert {*state.free_ids()} == set(range(1, state.limits.backends)) - state.backends.keys()


@given(st.lists(worlds, max_size=4))
def test_applied_whole_the_kernel_has_what_is_desired_and_a_second_plan_is_empty(
    history: list[Desired],
) -> None:
    dataplane, planner = FakeDataplane(LIMITS), Planner()
    state = dataplane.open()
    for world in history:
        planned = planner.plan(world, state)
        apply(planned, dataplane, state)
        assert not planned.unplaced
        assert reach(dataplane) == expected(world)
        check_consistent(state, dataplane)
        assert planner.plan(world, state).ops == ()
        assert Planner().plan(world, dataplane.audit()).ops == ()


@given(worlds, worlds, st.data())
def test_applied_up_to_any_operation_each_vip_has_its_old_or_its_new_set(
    before: Desired, after: Desired, data: st.DataObject
) -> None:
    dataplane = FakeDataplane(LIMITS)
    state = converge(before, dataplane)
    old, new = expected(before), expected(after)
    ops = Planner().plan(after, state).ops
    for done in range(data.draw(st.integers(0, len(ops)))):
        apply(Planned(ops[done : done + 1], frozenset()), dataplane, state)
        for frontend in old | new:
            now = dataplane.reachable(frontend)
            assert now in (
                old.get(frontend, Verdict.PASSED),
                new.get(frontend, Verdict.PASSED),
            )
    # Killed here, the next agent finishes it.
    state = converge(after, dataplane, dataplane.audit())
    assert reach(dataplane) == new
    check_consistent(state, dataplane)


@given(worlds, worlds)
def test_a_backend_keeps_its_id_as_long_as_it_stays_behind_its_frontend(
    before: Desired, after: Desired
) -> None:
    dataplane = FakeDataplane(LIMITS)
    state = converge(before, dataplane)

    def ids() -> dict[tuple[Frontend, Endpoint], int]:
        return {
            (frontend, where): backend_id
            for frontend, swap in state.frontends.items()
            for where, backend_id in state.members.get(swap.vip_id, {}).items()
        }

    old = ids()
    converge(after, dataplane, state)
    new = ids()
    assert all(new[member] == old[member] for member in old.keys() & new.keys())


@given(st.lists(worlds, min_size=1, max_size=5))
def test_a_plan_of_the_dirty_keys_leads_where_a_plan_of_everything_does(
    history: list[Desired],
) -> None:
    dataplane, planner = FakeDataplane(LIMITS), Planner()
    state = dataplane.open()
    apply(planner.plan({}, state), dataplane, state)
    last: Desired = {}
    for world in history:
        dirty = {k for k in last.keys() | world.keys() if last.get(k) != world.get(k)}
        apply(planner.plan(world, state, dirty), dataplane, state)
        last = world
        fresh = Planner()
        assert fresh.plan(world, state).ops == ()
        assert fresh.problems == planner.problems
        check_consistent(state, dataplane)


junk_vips = st.builds(
    SwapVip,
    st.sampled_from([WEB4, WEB6, API4]),
    st.integers(1, 3),
    st.integers(0, 9),
    st.tuples(*[st.integers(0, 3)] * 3),
)
junk_backends = st.builds(
    PutBackend,
    st.integers(1, 9),
    st.integers(1, 3),
    endpoints,
    st.integers(1, 3),
    st.sampled_from(Tier),
)


@given(
    st.lists(junk_vips),
    st.lists(st.integers(0, 9), max_size=20),
    st.lists(junk_backends),
    worlds,
)
def test_whatever_somebody_wrote_to_the_maps_is_repaired(
    written: list[SwapVip], slots: list[int], members: list[PutBackend], world: Desired
) -> None:
    dataplane = FakeDataplane(
        LIMITS,
        Maps(
            vips={swap.frontend: swap for swap in written},
            slots=dict(enumerate(slots)),
            backends={member.id: member for member in members},
        ),
    )
    state = converge(world, dataplane)
    assert reach(dataplane) == expected(world)
    check_consistent(dataplane.audit(), dataplane)
    assert Planner().plan(world, state).ops == ()


# ---- the gate ------------------------------------------------------------------------------------
@given(worlds, worlds)
def test_while_the_gate_is_shut_only_frontends_that_are_new_are_written(
    before: Desired, world: Desired
) -> None:
    dataplane = FakeDataplane(LIMITS)
    state = converge(before, dataplane)
    inherited = frozenset(state.frontends)
    planned = Planner().plan(world, state, None, Gate.SHUT, inherited)
    apply(planned, dataplane, state)
    assert reach(dataplane) == expected(world) | expected(before)
    check_consistent(state, dataplane)


@given(worlds, worlds)
def test_a_gate_for_additions_takes_nothing_away(before: Desired, world: Desired) -> None:
    dataplane, planner = FakeDataplane(LIMITS), Planner()
    state = converge(before, dataplane)
    inherited = frozenset(state.frontends)
    served = members(state)
    apply(planner.plan(world, state, None, Gate.ADDING, inherited), dataplane, state)
    for frontend, wanted in owners(world).items():
        added = {b.endpoint for b in wanted.backends if same_family(b.endpoint, frontend)}
        assert members(state)[frontend] == served.get(frontend, set()) | added
    assert inherited <= state.frontends.keys()
    assert planner.plan(world, state, None, Gate.ADDING, inherited).ops == ()
    # Open, it is a plan like any other.
    apply(planner.plan(world, state), dataplane, state)
    assert reach(dataplane) == expected(world)
    check_consistent(state, dataplane)


def test_a_frontend_that_the_gate_kept_is_dropped_when_it_opens() -> None:
    dataplane, planner = FakeDataplane(), Planner()
    state = converge(desired(vip(WEB, backend(A))), dataplane)
    inherited = frozenset(state.frontends)
    apply(planner.plan({}, state, None, Gate.ADDING, inherited), dataplane, state)
    assert dataplane.reachable(WEB4) == only(A)
    apply(planner.plan({}, state), dataplane, state)
    assert dataplane.reachable(WEB4) is Verdict.PASSED


# ---- prefixes ------------------------------------------------------------------------------------
RANGES = (ip_network("11.0.0.0/8"), ip_network("fd01:c::/64"), ip_network("192.0.2.1"))
"""The last one is of one address, as a range has at its end if that is no power of two."""
HOST_IN_RANGE = ip_address("11.0.0.2")
"""The address of `API` too."""
grounds = st.builds(
    Ground,
    st.sets(st.sampled_from(RANGES)).map(tuple),
    st.frozensets(
        st.sampled_from([HOST_IN_RANGE, *map(ip_address, ("10.9.9.9", "10.0.0.1", "192.0.2.1"))])
    ),
)


def prober(address: str) -> Frontend:
    """A port at which no VIP is."""
    return Frontend(ip_address(address), 7, "udp")


def expected_verdict(world: Desired, ground: Ground, address: str) -> Verdict:
    """Where no VIP is."""
    there = ip_address(address)
    in_range = any(there.version == r.version and there in r for r in ground.ranges)
    has_vip = any(frontend.address == there for frontend in owners(world))
    if there in ground.host or not (in_range or has_vip):
        return Verdict.PASSED
    return Verdict.REFUSED


@given(st.lists(st.tuples(worlds, grounds), min_size=1, max_size=4))
def test_what_is_no_vip_is_refused_where_addresses_are_for_vips_alone(
    history: list[tuple[Desired, Ground]],
) -> None:
    dataplane, planner = FakeDataplane(LIMITS), Planner()
    state = dataplane.open()
    for world, ground in history:
        apply(planner.plan(world, state, ground=ground), dataplane, state)
        for address in ("11.0.0.1", "11.0.0.2", "11.9.9.9", "10.9.9.9", "192.0.2.1", "fd01:c::1"):
            found = dataplane.reachable(prober(address))
            assert found is expected_verdict(world, ground, address), address
        assert planner.plan(world, state, ground=ground).ops == ()
        assert Planner().plan(world, dataplane.audit(), ground=ground).ops == ()


@given(st.lists(worlds, min_size=1, max_size=5), grounds)
def test_prefixes_of_dirty_keys_are_those_of_a_plan_of_everything(
    history: list[Desired], ground: Ground
) -> None:
    dataplane, planner = FakeDataplane(LIMITS), Planner()
    state = dataplane.open()
    apply(planner.plan({}, state, ground=ground), dataplane, state)
    last: Desired = {}
    for world in history:
        dirty = {k for k in last.keys() | world.keys() if last.get(k) != world.get(k)}
        apply(planner.plan(world, state, dirty, ground=ground), dataplane, state)
        last = world
        assert Planner().plan(world, state, ground=ground).ops == ()


@given(worlds, worlds, grounds, st.data())
def test_this_hosts_own_addresses_are_never_refused_on_the_way(
    before: Desired, after: Desired, ground: Ground, data: st.DataObject
) -> None:
    dataplane = FakeDataplane(LIMITS)
    state = dataplane.open()
    apply(Planner().plan(before, state, ground=ground), dataplane, state)
    ops = Planner().plan(after, state, ground=ground).ops
    apply(Planned(ops[: data.draw(st.integers(0, len(ops)))], frozenset()), dataplane, state)
    for address in ground.host:
        assert dataplane.reachable(prober(str(address))) is Verdict.PASSED


@given(worlds, grounds, st.sampled_from([Gate.SHUT, Gate.ADDING]))
def test_before_all_is_known_nothing_more_is_refused(
    world: Desired, ground: Ground, gate: Gate
) -> None:
    dataplane = FakeDataplane(LIMITS)
    state = dataplane.open()
    ops = Planner().plan(world, state, None, gate, ground=ground).ops
    assert not any(isinstance(op, PutPrefix) and op.owner is Owner.VIPS for op in ops)
    inherited = converge(world, FakeDataplane(LIMITS))
    ops = Planner().plan({}, inherited, None, gate, frozenset(inherited.frontends), ground).ops
    assert not any(isinstance(op, DropPrefix) for op in ops)


def test_where_there_is_no_room_for_a_prefix_the_vip_is_served_all_the_same() -> None:
    dataplane = FakeDataplane(LIMITS)
    state = dataplane.open()
    others = [ip_network((int(ip_address("10.50.0.0")) + i, 32)) for i in range(LIMITS.prefixes)]
    assert dataplane.apply([PutPrefix(o, Owner.HOST) for o in others], state).error is None
    planned = Planner().plan(desired(vip(API, backend(A))), state, {API})
    apply(planned, dataplane, state)
    assert dataplane.reachable(API4) == only(A)
    assert ip_network("11.0.0.2") not in state.prefixes


# ---- options and inner endpoints -----------------------------------------------------------------
def test_another_affinity_is_one_swap_of_the_same_run() -> None:
    dataplane, planner = FakeDataplane(), Planner()
    state = dataplane.open()
    apply(planner.plan(desired(vip(API, backend(A))), state), dataplane, state)
    before = state.frontends[API4]
    sticky = replace(vip(API, backend(A)), affinity_seconds=300)
    ops = planner.plan(desired(sticky), state, {API}).ops
    assert ops == (replace(before, affinity_seconds=300),)
    apply(Planned(ops, frozenset()), dataplane, state)
    assert planner.plan(desired(sticky), state).ops == ()


def test_an_inner_endpoint_counts_on_the_backends_own_host_only() -> None:
    inside = replace(backend(A), inner=endpoint("172.17.0.2", 80))
    here, elsewhere = Ground(host=frozenset([A.address])), Ground(host=frozenset([B.address]))
    dataplane, planner = FakeDataplane(), Planner()
    state = dataplane.open()
    for ground, inner in ((elsewhere, None), (here, inside.inner), (elsewhere, None)):
        planned = planner.plan(desired(vip(API, inside)), state, ground=ground)
        apply(planned, dataplane, state)
        (member,) = state.backends.values()
        assert (member.endpoint, member.inner) == (A, inner)
        assert Planner().plan(desired(vip(API, inside)), dataplane.audit(), ground=ground).ops == ()


# ---- layout --------------------------------------------------------------------------------------
def shares(*backends: Backend) -> tuple[dict[Endpoint, int], tuple[int, int, int]]:
    layout = lay_out([as_member(b, frozenset()) for b in backends])
    return Counter(layout.slots), layout.counts


def test_slots_are_weights_over_their_common_divisor() -> None:
    assert shares(backend(A, 20), backend(B, 30)) == ({A: 2, B: 3}, (5, 0, 0))
    assert shares(backend(A, 100), backend(B, 99)) == ({A: 100, B: 99}, (199, 0, 0))
    assert shares(backend(A, 7), backend(B, 7)) == ({A: 1, B: 1}, (2, 0, 0))


def test_each_of_a_tier_has_a_slot_before_one_has_two() -> None:
    layout = lay_out(
        [as_member(b, frozenset()) for b in (backend(A, 3), backend(B), backend(C, 2))]
    )
    assert layout.slots == (A, B, C, A, C, A)


def test_each_tier_has_a_divisor_of_its_own() -> None:
    up, maybe = backend(A, 10), backend(B, 7, Tier.MAYBE)
    assert shares(up, maybe) == ({A: 1, B: 1}, (1, 1, 0))


def test_a_draining_backend_has_one_slot_and_weight_0_is_draining() -> None:
    layout = shares(backend(A, 5), backend(B, 50, Tier.DRAINING), backend(C, 0))
    assert layout == ({A: 1, B: 1, C: 1}, (1, 0, 2))


def test_tiers_come_in_order_in_the_run() -> None:
    mixed = [backend(A, 0), backend(B, 1, Tier.MAYBE), backend(C, 2)]
    assert lay_out([as_member(b, frozenset()) for b in mixed]).slots == (C, B, A)


def test_with_half_of_the_weight_up_the_tiers_stay_apart_with_less_they_are_one() -> None:
    up, maybe = backend(A, 2), backend(B, 2, Tier.MAYBE)
    assert shares(up, maybe) == ({A: 1, B: 1}, (1, 1, 0))
    assert shares(up, replace(maybe, weight=3)) == ({A: 2, B: 3}, (5, 0, 0))
    assert shares(maybe) == ({B: 1}, (1, 0, 0))


def test_draining_weight_does_not_count_as_weight_of_the_vip() -> None:
    assert shares(backend(A), backend(B, 9, Tier.DRAINING))[1] == (1, 0, 1)


def test_connections_follow_the_weights() -> None:
    dataplane = FakeDataplane()
    converge(desired(vip(API, backend(A, 1), backend(B, 3))), dataplane)
    chance = random.Random(7)  # noqa: S311 - a fixed seed for a fixed outcome
    chosen = Counter(dataplane.choose(API4, chance) for _ in range(4000))
    assert chosen.keys() == {A, B}
    assert 2.7 < chosen[B] / chosen[A] < 3.3


# ---- operations ----------------------------------------------------------------------------------
def test_a_new_vip_is_backends_then_the_run_then_one_swap_then_its_address() -> None:
    state = KernelState()
    ops = Planner().plan(desired(vip(API, backend(A), backend(B))), state).ops
    assert ops == (
        PutBackend(1, 1, A, 1, Tier.UP),
        PutBackend(2, 1, B, 1, Tier.UP),
        WriteRun(0, (1, 2)),
        SwapVip(API4, 1, 0, (2, 0, 0)),
        PutPrefix(ip_network("11.0.0.2"), Owner.VIPS),
    )


def test_a_change_releases_what_it_replaced_at_the_very_end() -> None:
    dataplane = FakeDataplane()
    before = desired(vip(API, backend(A), backend(B)), vip(LITERAL, backend(A)))
    state = converge(before, dataplane)
    old = state.frontends[API4]
    gone = state.members[old.vip_id][A]
    ops = Planner().plan(desired(vip(API, backend(B), backend(C))), state).ops
    assert [type(op) for op in ops] == [
        PutBackend,
        WriteRun,
        SwapVip,
        DropPrefix,
        DropVip,
        Release,
    ]
    release = ops[-1]
    assert isinstance(release, Release)
    assert (old.base, old.size) in release.runs
    assert gone in release.backend_ids


def test_a_vip_without_backends_needs_no_run() -> None:
    state = KernelState()
    ground = Ground(RANGES)
    ops = Planner().plan(desired(vip(API)), state, set(desired(vip(API))), ground=ground).ops
    assert ops == (SwapVip(API4, 1, 0, (0, 0, 0)),)


def test_a_weight_that_moves_no_slot_is_one_write() -> None:
    dataplane = FakeDataplane()
    state = converge(desired(vip(API, backend(A, 2), backend(B, 2))), dataplane)
    ops = Planner().plan(desired(vip(API, backend(A, 3), backend(B, 3))), state).ops
    assert [(type(op), op.weight) for op in ops if isinstance(op, PutBackend)] == [
        (PutBackend, 3),
        (PutBackend, 3),
    ]
    assert len(ops) == 2


def test_two_frontends_of_one_vip_have_members_of_their_own_family() -> None:
    dataplane = FakeDataplane()
    converge(desired(vip(WEB, backend(A), backend(SIX))), dataplane)
    assert dataplane.reachable(WEB4) == only(A)
    assert dataplane.reachable(WEB6) == only(SIX)


def test_a_vip_that_is_gone_is_dropped_by_its_key_alone() -> None:
    dataplane, planner = FakeDataplane(), Planner()
    state = dataplane.open()
    both = desired(vip(WEB, backend(A)), vip(API, backend(B)))
    apply(planner.plan(both, state), dataplane, state)
    apply(planner.plan(desired(both[API]), state, {WEB}), dataplane, state)
    assert reach(dataplane) == {API4: only(B)}


def test_a_vip_that_moves_leaves_nothing_at_its_old_address() -> None:
    dataplane, planner = FakeDataplane(), Planner()
    state = dataplane.open()
    apply(planner.plan(desired(vip(API, backend(A))), state), dataplane, state)
    moved = Frontend(ip_address("11.0.0.77"), 80, "tcp")
    world = {API: replace(vip(API, backend(A)), frontends=(moved,))}
    apply(planner.plan(world, state, {API}), dataplane, state)
    assert reach(dataplane) == {moved: only(A)}


# ---- two VIPs at one address ---------------------------------------------------------------------
def test_a_name_has_its_address_and_the_literal_vip_there_is_a_problem() -> None:
    dataplane, planner = FakeDataplane(), Planner()
    state = dataplane.open()
    squatter, web = vip(SQUATTER, backend(C)), vip(WEB, backend(A))
    apply(planner.plan(desired(squatter), state), dataplane, state)
    assert dataplane.reachable(WEB4) == only(C)
    apply(planner.plan(desired(squatter, web), state, {WEB}), dataplane, state)
    assert dataplane.reachable(WEB4) == only(A)
    (problem,) = planner.problems[WEB4]
    assert problem.subject == str(SQUATTER)
    assert str(WEB) in problem.reason
    apply(planner.plan(desired(squatter), state, {WEB}), dataplane, state)
    assert dataplane.reachable(WEB4) == only(C)
    assert planner.problems == {}


# ---- when a map is full --------------------------------------------------------------------------
def many(count: int, first: int = 1) -> Iterable[Backend]:
    return (backend(endpoint("10.1.0.1", port)) for port in range(first, first + count))


def test_what_does_not_fit_is_a_problem_and_smaller_ones_still_fit() -> None:
    dataplane, planner = FakeDataplane(Limits(vips=8, slots=10, backends=64)), Planner()
    state = dataplane.open()
    world = desired(vip(API, *many(11)), vip(LITERAL, *many(10)))
    planned = planner.plan(world, state)
    apply(planned, dataplane, state)
    assert planned.unplaced == {API}
    (problem,) = planner.problems[API4]
    assert (problem.subject, problem.field) == (str(API), "capacity")
    assert "max_slots" in problem.reason
    assert reach(dataplane) == expected(desired(world[LITERAL]))


def test_a_set_that_does_not_fit_leaves_the_old_one() -> None:
    dataplane, planner = FakeDataplane(Limits(vips=8, slots=64, backends=6)), Planner()
    state = dataplane.open()
    apply(planner.plan(desired(vip(API, *many(3))), state), dataplane, state)
    before = reach(dataplane)
    planned = planner.plan(desired(vip(API, *many(3, first=100))), state)
    assert planned == Planned((), frozenset({API}))
    assert "max_backends" in planner.problems[API4][0].reason
    assert reach(dataplane) == before


def test_what_waits_for_room_is_planned_again_with_whatever_is_next() -> None:
    dataplane, planner = FakeDataplane(Limits(vips=1, slots=64, backends=64)), Planner()
    state = dataplane.open()
    first, second = vip(LITERAL, backend(A)), vip(API, backend(B))
    apply(planner.plan(desired(first), state), dataplane, state)
    planned = planner.plan(desired(second), state, {LITERAL, API})
    assert planned.unplaced == {API}
    assert "max_vips" in planner.problems[API4][0].reason
    apply(planned, dataplane, state)
    apply(planner.plan(desired(second), state, ()), dataplane, state)
    assert reach(dataplane) == {API4: only(B)}
    assert planner.problems == {}


@given(st.lists(st.tuples(st.sampled_from([WEB, API, LITERAL]), st.integers(0, 12)), max_size=30))
def test_no_history_of_sizes_wastes_a_slot(history: list[tuple[VipKey, int]]) -> None:
    limits = Limits(vips=8, slots=48, backends=256)  # three runs of 12, and one in the making
    dataplane, planner = FakeDataplane(limits), Planner()
    state, world = dataplane.open(), dict[VipKey, Vip]()
    for key, size in history:
        world[key] = vip(key, *many(size))
        apply(planner.plan(world, state, {key}), dataplane, state)
        apply(planner.plan(world, state, ()), dataplane, state)
        check_consistent(state, dataplane)
    used = sum(swap.size for swap in state.frontends.values())
    free = zip(state.free_slots.starts, state.free_slots.ends, strict=True)
    assert used + sum(end - start for start, end in free) == limits.slots
