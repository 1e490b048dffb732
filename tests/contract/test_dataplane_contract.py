"""What the loop may count on, of the kernel's dataplane as of the fake one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from itertools import count
from pathlib import Path

import pytest

from lab.sandbox import VARIABLE, remove_cgroup
from minuteman.dataplane.base import Dataplane
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.errors import DataplaneError
from minuteman.model import Backend, Endpoint, Frontend, Tier, Transport, Vip, VipKey
from minuteman.reconcile.kernelstate import (
    DropVip,
    KernelState,
    Limits,
    Owner,
    PutBackend,
    Release,
    SwapVip,
    WriteRun,
)
from minuteman.reconcile.plan import Ground, Planner
from tests.contract.fake_dataplane import FakeDataplane, Maps

LIMITS = Limits(vips=8, slots=64, backends=32)
GROUND = Ground(
    ranges=(ip_network("10.0.0.0/15"), ip_network("fd00::/64")),
    host=frozenset(map(ip_address, ("127.0.0.1", "10.0.0.2", "10.1.0.7", "fd00::9"))),
)
_numbers = count()

New = Callable[[], Dataplane]
"""Makes a dataplane on the maps of the test, which the one before may have filled."""


def _fakes() -> Iterator[New]:
    maps = Maps()
    yield lambda: FakeDataplane(LIMITS, maps)


def _kernels(state_dir: Path) -> Iterator[New]:
    name = f"contract-{next(_numbers)}"
    cgroup = Path(os.environ[VARIABLE]) / name
    pins = Path("/sys/fs/bpf") / name
    cgroup.mkdir()
    made: list[KernelDataplane] = []

    def new() -> KernelDataplane:
        made.append(KernelDataplane(cgroup, pins, state_dir, LIMITS))
        return made[-1]

    yield new
    for dataplane in made:
        dataplane.close()
    made[-1].remove()
    remove_cgroup(cgroup)


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.kernel)])
def new(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[New]:
    yield from _fakes() if request.param == "fake" else _kernels(tmp_path)


def frontend(text: str, transport: Transport = "tcp") -> Frontend:
    return Frontend(ip_address(text), 80, transport)


def vip(address: str, *ports: int, transport: Transport = "tcp", tier: Tier = Tier.UP) -> Vip:
    """A literal VIP with backends on the loopback of its family."""
    front = frontend(address, transport)
    home = ip_address("127.0.0.1" if front.address.version == 4 else "::1").packed
    backends = (
        Backend(
            Endpoint(home, port, transport),
            port,
            tier,
            "marathon",
            "fw",
            f"task-{port}",
            inner=Endpoint(front.address.packed, port, transport) if port % 2 else None,
        )
        for port in ports
    )
    return Vip(
        VipKey(front.address, 80, transport), (front,), tuple(backends), affinity_seconds=len(ports)
    )


def serve(planner: Planner, dataplane: Dataplane, state: KernelState, *vips: Vip) -> None:
    ops = planner.plan({vip.key: vip for vip in vips}, state, ground=GROUND).ops
    applied = dataplane.apply(ops, state)
    assert applied.error is None
    assert applied.done == len(ops)


def test_at_first_the_maps_are_empty_and_the_programs_attached(new: New) -> None:
    dataplane = new()
    assert dataplane.open() == KernelState(LIMITS)
    assert dataplane.attached() == ()


def test_what_is_read_back_is_what_was_written(new: New) -> None:
    dataplane, planner = new(), Planner()
    state = dataplane.open()
    for world in (
        [vip("10.0.0.1", 1, 2), vip("fd00::1", 3), vip("10.0.0.1", 4, transport="udp")],
        [vip("10.0.0.1", 2, 3), vip("fd00::1", 3, tier=Tier.DRAINING), vip("10.0.0.2")],
        [vip("10.0.0.1", 2, 3, tier=Tier.MAYBE)],
        [],
    ):
        serve(planner, dataplane, state, *world)
        found = dataplane.audit()
        assert found == state
        assert found.generation == state.generation
        assert list(found.free_ids()) == sorted(state.free_ids())
        assert found.free_slots == state.free_slots
        assert found.frontends.keys() == {front for vip in world for front in vip.frontends}
        assert found.prefixes[ip_network("10.1.0.7")] is Owner.HOST


def test_the_next_one_finds_what_was_left(new: New) -> None:
    first = new()
    state = first.open()
    serve(Planner(), first, state, vip("10.0.0.1", 1, 2), vip("fd00::1", 3))
    first.close()
    second = new()
    found = second.open()
    assert found == state
    assert found.generation == state.generation
    assert found.members == state.members


def test_each_list_of_operations_is_a_generation_and_an_empty_one_is_none(new: New) -> None:
    dataplane = new()
    state = dataplane.open()
    before = state.generation
    dataplane.apply([SwapVip(frontend("10.0.0.1"), 1, 0, (0, 0, 0))], state)
    assert state.generation == before + 1
    dataplane.apply([], state)
    assert (state.generation, dataplane.audit().generation) == (before + 1, before + 1)


def test_an_error_says_how_far_it_got_and_the_state_went_as_far(new: New) -> None:
    dataplane = new()
    state = dataplane.open()
    ops = [
        SwapVip(frontend(f"10.0.0.{number}"), number, 0, (0, 0, 0))
        for number in range(1, LIMITS.vips + 3)
    ]
    applied = dataplane.apply(ops, state)
    assert applied.done == LIMITS.vips == len(state.frontends)
    assert isinstance(applied.error, DataplaneError)
    assert dataplane.audit() == state


def test_a_backend_id_can_be_given_to_another_member(new: New) -> None:
    dataplane = new()
    state = dataplane.open()
    here, there = (Endpoint(bytes([127, 0, 0, 1]), port, "tcp") for port in (1, 2))
    front = frontend("10.0.0.1")
    dataplane.apply(
        [
            PutBackend(1, 1, here, 1, Tier.UP),
            WriteRun(0, (1,)),
            SwapVip(front, 1, 0, (1, 0, 0)),
            DropVip(front),
            Release(((0, 1),), (1,)),
            PutBackend(1, 2, there, 1, Tier.UP),
            WriteRun(0, (1,)),
            SwapVip(front, 2, 0, (1, 0, 0)),
        ],
        state,
    )
    assert dataplane.audit() == state
    assert state.members == {2: {there: 1}}


def test_what_is_dropped_or_released_twice_is_fine(new: New) -> None:
    dataplane = new()
    state = dataplane.open()
    applied = dataplane.apply([DropVip(frontend("10.0.0.1")), Release((), (1, 2))], state)
    assert applied.error is None
    assert dataplane.audit() == KernelState(LIMITS)


def test_who_was_never_connected_to_is_not_counted(new: New) -> None:
    dataplane = new()
    state = dataplane.open()
    serve(Planner(), dataplane, state, vip("10.0.0.1", 1, 2), vip("fd00::1", 3))
    assert dataplane.counters().by_vip_backend == {}


def test_remove_leaves_nothing_for_the_next_one(new: New) -> None:
    first = new()
    serve(Planner(), first, first.open(), vip("10.0.0.1", 1))
    first.close()
    first.remove()
    second = new()
    assert second.open() == KernelState(LIMITS)
    assert second.attached() == ()


@pytest.mark.parametrize("call", ["audit", "counters"])
def test_what_is_not_open_says_so(new: New, call: str) -> None:
    dataplane = new()
    with pytest.raises(DataplaneError, match="not open"):
        getattr(dataplane, call)()
