"""Versions with other maps take over from each other, wherever one is killed; no client notices."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.client import Target
from lab.versions import Version, Versions
from lab.wait import until
from lab.zookeeper import free_ports
from minuteman.dataplane.pins import serving
from minuteman.dataplane.sweep import sweep
from minuteman.model import Endpoint, Tier
from minuteman.reconcile.kernelstate import Owner, PutPrefix
from tests.crowd import Crowd, crowd, servers
from tests.inventory import all_closed_are_gone, demand_one_of_each, demand_same, everything
from tests.kernel.conftest import (
    LIMITS,
    Backends,
    Inside,
    Kernel,
    connect,
    endpoint_of,
    frontend,
    new_cgroup,
    who_answers,
)
from tests.opening import End, Opener, Report

TCP, UDP = frontend("1.2.3.4", 5000), frontend("1.2.3.4", 5000, "udp")
BROKEN = frontend("1.2.3.9", 80)
LOOPBACK = bytes((127, 0, 0, 1))
KILLS = 10
CYCLES = 100
FEW = replace(LIMITS, conns=64)
CAPACITIES = (LIMITS, FEW, replace(LIMITS, conns=2 * LIMITS.conns))
DEADLINE_SECONDS = 10.0
ENDS: Sequence[End] = ("close", "kill")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with new_cgroup() as made:
        yield made


@pytest.fixture
def kernel(cgroup: Path, pin_root: Path, tmp_path: Path) -> Iterator[Kernel]:
    """Of the version in this tree; closed by each test once it has VIPs."""
    made = Kernel(cgroup, pin_root, tmp_path)
    yield made
    made.dataplane.remove()


class Openers(NamedTuple):
    """Of each version, for one cgroup and one folder of pins."""

    this: Opener
    fix: Opener
    next: Opener


def new_chance() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    return random.Random(seed)  # noqa: S311 - no secret


@pytest.fixture
def openers(versions: Versions, cgroup: Path, pin_root: Path, tmp_path: Path) -> Iterator[Openers]:
    with ExitStack() as stack:

        def opener(version: Version) -> Opener:
            return stack.enter_context(Opener(version, cgroup, pin_root, tmp_path))

        yield Openers(opener(versions.this), opener(versions.fix), opener(versions.next))


# ---- nothing is lost -----------------------------------------------------------------------------
def fail(address: str, port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        connect(address, port)


def ask(client: socket.socket, server: socket.socket, to: tuple[str, int] | None) -> None:
    """A question and its answer, which comes from where the question went."""
    if to:
        client.sendto(b"?", to)
    else:
        client.send(b"?")
    question, sender = server.recvfrom(16)
    server.sendto(question, sender)
    assert client.recvfrom(16) == (b"?", to or client.getpeername())


@pytest.mark.timeout(180)
def test_all_that_one_version_had_the_next_one_has_and_the_one_before_has_again(
    kernel: Kernel,
    openers: Openers,
    backends: Backends,
    cgroup: Path,
    pin_root: Path,
    inside: Inside,
) -> None:
    members = [backends.listen() for _ in range(8)]
    (refusing,) = free_ports(1)
    with ExitStack() as held:
        server = held.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))
        kernel.serve(TCP, [(member, Tier.UP) for member in members], affinity_seconds=600)
        kernel.serve(frontend("fd00::7", 80), [(backends.listen("::1"), Tier.MAYBE, 3)])
        kernel.serve(UDP, [(endpoint_of(server), Tier.UP)])
        kernel.serve(BROKEN, [(Endpoint(LOOPBACK, refusing, "tcp"), Tier.UP)])
        kernel.apply(PutPrefix(ip_network("11.0.0.0/8"), Owner.VIPS))
        kernel.dataplane.close()
        held.enter_context(inside(cgroup))
        mine = who_answers("1.2.3.4", 5000)
        connections = [held.enter_context(connect("1.2.3.4", 5000)) for _ in range(70)]
        datagrams, unconnected = (
            held.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2)
        )
        for client in (datagrams, unconnected, server):
            client.settimeout(5)
        datagrams.connect(("1.2.3.4", 5000))
        for _ in range(5):
            fail("1.2.3.9", 80)
        for opener, limits in (
            (openers.fix, LIMITS),
            (openers.next, LIMITS),
            (openers.this, LIMITS),
            (openers.next, FEW),
            (openers.fix, FEW),
        ):
            ask(datagrams, server, None)
            ask(unconnected, server, ("1.2.3.4", 5000))
            fail("11.1.1.1", 80)
            until("end of the others", lambda: all_closed_are_gone(pin_root), DEADLINE_SECONDS)
            before = everything(pin_root)
            report = opener.open(limits, end="kill")
            demand_same(before, everything(pin_root))
            assert (report.error, report.detached) == ("", ())
            assert report.version == opener.version.number
            assert report.generation == kernel.state.generation
            demand_one_of_each(cgroup, pin_root)
            assert who_answers("1.2.3.4", 5000) == mine
            assert {each.getpeername() for each in connections} == {("1.2.3.4", 5000)}
            ask(datagrams, server, None)
            ask(unconnected, server, ("1.2.3.4", 5000))
        last = openers.fix.open(FEW)
    counted = last.counters[f"{TCP} 127.0.0.1:{mine}"]
    assert counted.successes == counted.attempts == 70 + 6
    assert last.counters[f"{BROKEN} 127.0.0.1:{refusing}"].failures == 5
    assert last.reasons["refused_unknown"] == 5
    assert last.reasons["ejected"] == 1
    assert last.reasons["translated"] == 70 + 6 + 5 + 2


# ---- under load ----------------------------------------------------------------------------------
@pytest.fixture
def clients(kernel: Kernel, cgroup: Path) -> Iterator[Crowd]:
    """Of two VIPs with backends; nobody has them open."""
    with servers(4) as members:
        kernel.serve(TCP, [(tcp, Tier.UP) for tcp, _ in members])
        kernel.serve(UDP, [(udp, Tier.UP) for _, udp in members])
        kernel.dataplane.close()
        with crowd(cgroup, Target("1.2.3.4", 5000), Target("1.2.3.4", 5000)) as made:
            yield made


def demand_complete(report: Report, kernel: Kernel) -> None:
    """It is open, with all that was there at first."""
    assert (report.error, report.detached) == ("", ())
    assert report.generation == kernel.state.generation
    assert set(report.ids.values()) == set(kernel.state.backends)


@pytest.mark.timeout(300)
def test_a_takeover_that_is_killed_anywhere_is_brought_to_its_end_by_either_version(
    kernel: Kernel, clients: Crowd, openers: Openers, cgroup: Path, pin_root: Path
) -> None:
    chance = new_chance()
    seconds = openers.next.open(LIMITS).seconds
    demand_complete(openers.this.open(LIMITS), kernel)
    for _ in range(KILLS):
        # Most of the time goes by before anything is shared, copied or attached.
        begin = chance.choice((0.0, 0.9 * seconds))
        report = openers.next.open(LIMITS, "kill", chance.uniform(begin, seconds))
        assert report.error == ""
        demand_complete(chance.choice((openers.this, openers.next)).open(LIMITS), kernel)
        demand_one_of_each(cgroup, pin_root)
        clients.wait_for_more(3)
    clients.demand_no_gap(swaps=2 * KILLS + 2)
    clients.demand_one_backend("held", "datagrams", "connected datagrams")


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_a_hundred_kills_upgrades_and_ways_back_fail_no_connect(
    kernel: Kernel, clients: Crowd, openers: Openers, cgroup: Path, pin_root: Path
) -> None:
    chance = new_chance()
    opener, limits, swaps = openers.this, LIMITS, 0
    for _ in range(CYCLES):
        before = serving(pin_root)
        # Most of them find their own maps and programs: these take no compiler.
        match chance.choice(("again", "again", "again", "version", "capacity")):
            case "version":
                opener = chance.choice([each for each in openers if each is not opener])
            case "capacity":
                limits = chance.choice([each for each in CAPACITIES if each != limits])
        demand_complete(opener.open(limits, chance.choice(ENDS)), kernel)
        demand_one_of_each(cgroup, pin_root)
        swaps += serving(pin_root) != before
        clients.wait_for_more(3)
    clients.stop()
    clients.demand_no_gap(swaps)
    clients.demand_one_backend("held", "datagrams", "connected datagrams")
    demand_complete(openers.this.open(LIMITS), kernel)
    sweep(kernel.where)
    counted = openers.this.open(LIMITS).counters
    assert sum(each.active + each.connecting for each in counted.values()) == 0
    connections = len(clients.answers("short")) + 1
    counted_of_tcp = [each for vip, each in counted.items() if vip.startswith(f"{TCP} ")]
    # One was under way when the clients were stopped, one may be whenever the maps change.
    assert abs(sum(each.successes for each in counted_of_tcp) - connections) <= swaps + 1
    assert sum(each.failures for each in counted_of_tcp) == 0
