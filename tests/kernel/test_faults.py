"""The kernel refuses, or the agent is killed, at any request that changes something there."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from minuteman.dataplane import bpf
from minuteman.dataplane.layout import SLOT, About, map_layouts
from minuteman.dataplane.pins import PROGRAMS, Pins, loadable
from minuteman.reconcile.kernelstate import Limits
from tests.contract.fake_dataplane import Maps
from tests.kernel.conftest import LIMITS
from tests.kernel.fault import Fault, Host, Kind, Outcome, new_host
from tests.kernel.probing import Probing, Watch
from tests.kernel.worlds import (
    answers,
    changed,
    new_chance,
    random_world,
    wished,
)

OTHER_LIMITS = Limits(vips=128, slots=2048, backends=512, conns=2048)
"""Maps of these are another layout."""

_chance = random.Random(6)  # noqa: S311 - no secret
WORLD = random_world(_chance)
OTHER = changed(changed(WORLD, _chance), _chance)
LESS = dict(list(WORLD.items())[1:])
SERVED = wished(WORLD)
NOTHING = Maps()


# ---- what an agent does -------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Deed:
    prepare: Callable[[Host], object]
    do: Callable[[Host, Fault], Outcome]
    before: Maps
    after: Maps


def forget_the_programs(host: Host) -> None:
    """Have what serves be of other sources."""
    host.complete(WORLD)
    about = bpf.open_pin(Pins.ours(host.pins, LIMITS).maps / "about")
    bpf.update(about, SLOT.pack(0), About.ours("others").pack())
    os.close(about)


DEEDS = {
    "first": Deed(Host.remove, lambda host, fault: host.serve(WORLD, fault), NOTHING, SERVED),
    "again": Deed(
        lambda host: host.complete(WORLD),
        lambda host, fault: host.serve(WORLD, fault),
        SERVED,
        SERVED,
    ),
    "reload": Deed(
        forget_the_programs, lambda host, fault: host.serve(WORLD, fault), SERVED, SERVED
    ),
    "takeover": Deed(
        lambda host: host.complete(WORLD, OTHER_LIMITS),
        lambda host, fault: host.serve(WORLD, fault),
        SERVED,
        SERVED,
    ),
    "change": Deed(
        lambda host: host.complete(WORLD),
        lambda host, fault: host.serve(OTHER, fault),
        SERVED,
        wished(OTHER),
    ),
    "drop": Deed(
        lambda host: host.complete(WORLD),
        lambda host, fault: host.serve(LESS, fault),
        SERVED,
        wished(LESS),
    ),
    "remove": Deed(
        lambda host: host.complete(WORLD), lambda host, fault: host.remove(fault), SERVED, NOTHING
    ),
}


# ---- what has to be true then -------------------------------------------------------------------
def effective(cgroup: Path) -> list[int]:
    """The programs that run for `cgroup`, of all hooks."""
    fd = os.open(cgroup, os.O_RDONLY)
    try:
        return [each for hook in PROGRAMS.values() for each in bpf.effective_programs(fd, hook)]
    finally:
        os.close(fd)


def program_id(pin: Path) -> int:
    fd = bpf.open_pin(pin)
    try:
        return bpf.program_id(fd)
    finally:
        os.close(fd)


def check_whole(host: Host) -> None:
    """Each program is attached once, and nothing is pinned but what is in use."""
    where = Pins.ours(host.pins, LIMITS)
    attached = [name for name in PROGRAMS if name in loadable()]
    assert effective(host.cgroup) == [program_id(where.programs / name) for name in attached]
    wanted = {
        *(where.maps / name for name in map_layouts(LIMITS)),
        *(where.programs / name for name in loadable()),
        *(where.links / name for name in attached),
    }
    assert {path for path in host.pins.rglob("*") if not path.is_dir()} == wanted


def check_nothing_left(host: Host) -> None:
    assert effective(host.cgroup) == []
    assert not host.pins.exists()


def suffer(host: Host, probing: Probing, deed: Deed, fault: Fault, then: Then) -> Outcome:
    """Have a fault in the midst of `deed`."""
    deed.prepare(host)
    with probing.watch(answers(deed.before)) as watch:
        watch.allow(answers(deed.before, deed.after))
        outcome = deed.do(host, fault)
        try:
            check_said_well(outcome)
            watch.settle(answers(deed.before, deed.after))
            then(host, watch, deed)
            watch.judge()
        except AssertionError as exc:
            exc.add_note(f"{fault}, at {outcome.hit}: {outcome.report and outcome.report.error}")
            raise
    return outcome


def start(host: Host, watch: Watch, deed: Deed) -> None:
    """The next agent finds its way, and serves `WORLD`."""
    watch.allow(answers(deed.before, deed.after, SERVED))
    host.complete(WORLD)
    check_whole(host)
    watch.settle(answers(SERVED))


def remove(host: Host, watch: Watch, deed: Deed) -> None:
    watch.allow(answers(deed.before, deed.after, NOTHING))
    report = host.remove().report
    assert report is not None
    assert not report.error, report.error
    check_nothing_left(host)
    watch.settle(answers(NOTHING))


def check_said_well(outcome: Outcome) -> None:
    """It was killed, or it was done, or one line says why it was not."""
    assert outcome.report is None or "\n" not in outcome.report.error


# ---- at every request ---------------------------------------------------------------------------
@pytest.fixture
def host(pin_root: Path, tmp_path: Path) -> Iterator[Host]:
    with new_host(pin_root, tmp_path) as made:
        yield made


@pytest.fixture
def probing(host: Host, tmp_path: Path) -> Probing:
    return Probing(host.cgroup, tmp_path)


pytestmark = pytest.mark.timeout(300)

KINDS = (Kind.FAIL, Kind.KILL_AFTER, Kind.KILL_ALONE)

Then = Callable[[Host, Watch, Deed], None]
"""What follows on a fault in the midst of a deed."""

ALL = range(1, 10_000)
"""More requests than there are."""


def few_and_all(**few: Iterable[int]) -> list[ParameterSet]:
    """Deeds with requests to be hit: these, and, slowly, all writes to a map and about a link.

    Of the other requests there are too many, each with a start that compiles.
    """
    slow = pytest.mark.slow, pytest.mark.timeout(3600)
    return [
        *(pytest.param(name, places, False, id=f"{name}-few") for name, places in few.items()),
        *(pytest.param(name, ALL, True, id=f"{name}-all", marks=slow) for name in few),
    ]


@pytest.mark.parametrize(
    ("name", "places", "writes_only"),
    few_and_all(
        first=(242,),
        again=range(11, 78, 11),
        reload=(202,),
        takeover=(302,),
        remove=(31, 62),
    ),
)
def test_the_next_start_serves_what_is_wished(
    name: str, places: Iterable[int], writes_only: bool, host: Host, probing: Probing
) -> None:
    suffer_all(host, probing, DEEDS[name], places, start, writes_only=writes_only)


@pytest.mark.parametrize(
    ("name", "places", "writes_only"),
    few_and_all(first=(149,), again=(37,), takeover=(310,), remove=(20, 50)),
)
def test_removal_leaves_nothing(
    name: str, places: Iterable[int], writes_only: bool, host: Host, probing: Probing
) -> None:
    suffer_all(host, probing, DEEDS[name], places, remove, writes_only=writes_only)


@pytest.mark.parametrize("kind", [Kind.FAIL, Kind.KILL_BEFORE, Kind.KILL_AFTER])
@pytest.mark.parametrize("name", ["change", "drop"])
def test_a_change_is_made_whole_by_the_next_start(
    name: str, kind: Kind, host: Host, probing: Probing
) -> None:
    host.complete(WORLD)
    first = host.serve(WORLD).requests + 1  # until then it is as in "again"
    suffer_all(host, probing, DEEDS[name], count(first), start, (kind,))


@pytest.mark.parametrize("kind", [Kind.FAIL_HALF, Kind.KILL_HALF])
@pytest.mark.parametrize(
    "name",
    ["change", "drop", *(pytest.param(n, marks=pytest.mark.slow) for n in ("first", "takeover"))],
)
def test_half_of_many_entries_is_none(name: str, kind: Kind, host: Host, probing: Probing) -> None:
    suffer_all(host, probing, DEEDS[name], count(1), start, (kind,))


def suffer_all(
    host: Host,
    probing: Probing,
    deed: Deed,
    places: Iterable[int],
    then: Then,
    kinds: Sequence[Kind] = KINDS,
    *,
    writes_only: bool = False,
) -> None:
    """Faults at these requests, each of one of `kinds`, until there is no further one."""
    chance = new_chance()
    suffered = 0
    for at in places:
        fault = Fault(chance.choice(kinds), at, errno.ENOMEM, writes_only)
        if not suffer(host, probing, deed, fault, then).hit:
            break
        suffered += 1
    assert suffered
