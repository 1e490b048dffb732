"""Which backend a socket is given: shares, tiers, ejection, affinity. All sockets are real."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import select
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from lab.wait import until
from minuteman.dataplane import bpf, conns, layout
from minuteman.model import Endpoint, Tier
from minuteman.reconcile.kernelstate import Limits, Op, PutBackend, WriteRun
from tests.kernel.churn import drop_all, hear_again
from tests.kernel.conftest import (
    LIMITS,
    Backends,
    Inside,
    Kernel,
    connect,
    counted,
    frontend,
    new_cgroup,
    new_pins,
    reasons,
    who_answers,
)

ADDRESS, PORT = "1.2.3.4", 5000
VIP = frontend(ADDRESS, PORT)
LOOPBACK = ip_address("127.0.0.1").packed
NOBODY = 0
"""In place of the port of a backend: the connection was refused, or nobody answered."""

CLONE_NEWNET = 0x40000000
"""linux/sched.h"""

EJECT_FAILURES, EJECT_SECONDS = 5, 30
"""Source: pick.h."""
EJECTED_UNTIL_NS = 4
"""Where it is in BACKEND_STATS."""
PHASE, CONNECTING = 7, 1
"""Where it is in CONN, and one of its values. Source: maps.h."""


def try_once() -> int:
    """The port of the backend that a fresh connection reaches."""
    try:
        return who_answers(ADDRESS, PORT)
    except ConnectionRefusedError:
        return NOBODY


def tries(count: int) -> Counter[int]:
    """How often each backend answers `count` connections, one after the other."""
    return Counter(try_once() for _ in range(count))


def hold(held: ExitStack) -> int:
    """The port of the backend that a fresh connection reaches, which has it until `held` ends."""
    sock = held.enter_context(connect(ADDRESS, PORT))
    return int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")


def refusing(backends: Backends) -> Endpoint:
    """Where nobody listens. Made last: who listens from then on could get the same port."""
    endpoint = backends.listen()
    backends.stop(endpoint)
    return endpoint


def begin_to_connect(held: ExitStack) -> None:
    """Have a socket connect without waiting for it, until `held` ends."""
    sock = held.enter_context(socket.socket())
    sock.setblocking(False)
    assert sock.connect_ex((ADDRESS, PORT)) == errno.EINPROGRESS


@contextmanager
def black_hole(port: int = 0) -> Iterator[socket.socket]:
    """A listener whose packets are all dropped: SYNs are not answered until `hear_again`."""
    with socket.create_server(("127.0.0.1", port), backlog=64) as listener:
        drop_all(listener)
        yield listener


# ---- time ----------------------------------------------------------------------------------------
@contextmanager
def pinned(kernel: Kernel, name: str) -> Iterator[int]:
    """Descriptor of a map."""
    fd = bpf.open_pin(kernel.where.maps / name)
    try:
        yield fd
    finally:
        os.close(fd)


def read_stats(stats: int, backend_id: int) -> list[int]:
    """The fields of BACKEND_STATS."""
    raw = bpf.lookup(stats, layout.SLOT.pack(backend_id), layout.BACKEND_STATS.size)
    assert raw is not None
    return list(layout.BACKEND_STATS.unpack(raw))


def read_ejected_until(kernel: Kernel, endpoint: Endpoint) -> float:
    """When the ejection of a backend ends, on the monotonic clock; 0: it is not ejected."""
    backend_id = kernel.state.members[kernel.state.frontends[VIP].vip_id][endpoint]
    with pinned(kernel, "backend_stats") as stats:
        return read_stats(stats, backend_id)[EJECTED_UNTIL_NS] / 1e9


def elapse(kernel: Kernel, seconds: float) -> None:
    """Have `seconds` pass for the programs.

    They go by the kernel's clock, which no test can set, and half a minute is too long to wait. So
    what they have noted of the time is dated back: ends of ejections, when clients were here last,
    when sockets that are still connecting began to.
    """
    passed_ns = round(seconds * 1e9)
    with pinned(kernel, "backend_stats") as stats:
        await_silence(stats)
        for backend_id in kernel.state.backends:
            fields = read_stats(stats, backend_id)
            if fields[EJECTED_UNTIL_NS]:
                fields[EJECTED_UNTIL_NS] = max(1, fields[EJECTED_UNTIL_NS] - passed_ns)
                packed = layout.BACKEND_STATS.pack(*fields)
                bpf.update(stats, layout.SLOT.pack(backend_id), packed)
    with pinned(kernel, "affinities") as affinities:
        for client, raw in list(
            bpf.read_hash(affinities, layout.CLIENT.size, layout.AFFINITY.size)
        ):
            *backend, used_ns = layout.AFFINITY.unpack(raw)
            packed = layout.AFFINITY.pack(*backend, max(0, used_ns - passed_ns))
            bpf.update(affinities, client, packed)
    with conns.opened(kernel.where.maps) as given:
        for cookie, raw in given.entries().items():
            *conn, started_ms, _ = layout.CONN.unpack(raw)
            if conn[PHASE] == CONNECTING:
                earlier_ms = (started_ms - passed_ns // 1_000_000) % 2**32
                place = layout.SLOT.pack(cookie % given.size)
                bpf.update(given.places, place, layout.CONN.pack(*conn, earlier_ms, cookie))


def await_silence(stats: int) -> None:
    """Return when nothing is counted any more: what is counted during a write is lost."""
    last = b""

    def is_silent() -> bool:
        nonlocal last
        before, last = last, bpf.read_array(stats, layout.BACKEND_STATS.size, LIMITS.backends)
        return before == last

    until("silence", is_silent, 5)


# ---- shares --------------------------------------------------------------------------------------
every_weights = pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1), (100, 50, 1)], ids=str)


@every_weights
def test_case_02_backends_have_their_shares_when_idle(
    weights: Sequence[int], kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    members = [backends.listen() for _ in weights]
    kernel.serve(VIP, [(m, Tier.UP, weight) for m, weight in zip(members, weights, strict=True)])
    count = 2000
    with inside(cgroup):
        answers = tries(count)
    # Two distinct slots at random, of which the first counts when both are idle: the share in the
    # mean. Six standard deviations are 0.07 at most.
    for member, weight in zip(members, weights, strict=True):
        share = weight / sum(weights)
        assert answers[member.port] > 0
        assert abs(answers[member.port] / count - share) < min(0.07, 5 * share)
    assert answers.total() == sum(answers[member.port] for member in members)


@every_weights
def test_case_02_backends_have_their_shares_when_loaded(
    weights: Sequence[int], kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    members = [backends.listen() for _ in weights]
    kernel.serve(VIP, [(m, Tier.UP, weight) for m, weight in zip(members, weights, strict=True)])
    count = 300
    with inside(cgroup), ExitStack() as held:
        answers = Counter(hold(held) for _ in range(count))
    for member, weight in zip(members, weights, strict=True):
        wanted = count * weight / sum(weights)
        # The lightest of three has 2 in the mean, and may be met by no sample.
        assert abs(answers[member.port] - wanted) < 15


def test_case_02_a_draining_backend_has_no_share_while_there_is_another(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    """Weight 0 is the tier draining: so it is planned."""
    up, maybe, draining = backends.listen(), backends.listen(), backends.listen()
    every = [(up, Tier.UP), (maybe, Tier.MAYBE), (draining, Tier.DRAINING)]
    with inside(cgroup), ExitStack() as held:
        for start in range(3):
            kernel.serve(VIP, every[start:])
            # The best tier that has any is used alone, however much it has to do.
            assert {hold(held) for _ in range(40)} == {every[start][0].port}


def test_the_less_loaded_of_two_is_chosen(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    one, other = backends.listen(), backends.listen()
    kernel.serve(VIP, [(one, Tier.UP), (other, Tier.UP)])
    landed: Counter[int] = Counter()
    with inside(cgroup), ExitStack() as held:
        for _ in range(100):
            landed[hold(held)] += 1
            # With two backends both are always compared, so neither gets ahead by more than one.
            assert abs(landed[one.port] - landed[other.port]) <= 1


async def answer_after(listener: socket.socket, seconds: float) -> None:
    """Greet each connection with the listener's port, when the work for it is done."""
    loop = asyncio.get_running_loop()
    greeting = listener.getsockname()[1].to_bytes(2, "big")

    async def answer(connection: socket.socket) -> None:
        with connection:
            await asyncio.sleep(seconds)
            await loop.sock_sendall(connection, greeting)

    async with asyncio.TaskGroup() as answers:
        while True:
            connection, _ = await loop.sock_accept(listener)
            answers.create_task(answer(connection))


async def ask(patience_seconds: float) -> int:
    """The port of the backend that answers, NOBODY when none does in time."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(patience_seconds):
                await loop.sock_connect(sock, (ADDRESS, PORT))
                return int.from_bytes(await loop.sock_recv(sock, 2), "big")
        except TimeoutError:
            return NOBODY


async def end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_slow_backend_has_less_than_its_share(
    kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    """Three are ten times as fast as the fourth; clients ask as fast as they are answered."""
    seconds = (0.2, 0.02, 0.02, 0.02)
    clients, count = 12, 400

    async def measure(listeners: Sequence[socket.socket]) -> Counter[int]:
        servers = [
            asyncio.create_task(answer_after(listener, each))
            for listener, each in zip(listeners, seconds, strict=True)
        ]
        answers: Counter[int] = Counter()

        async def keep_asking() -> None:
            while answers.total() < count:
                answers[await ask(patience_seconds=10)] += 1

        await asyncio.gather(*(keep_asking() for _ in range(clients)))
        await end(servers)
        return answers

    with ExitStack() as opened:
        listeners = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in seconds]
        for listener in listeners:
            listener.setblocking(False)
        ports = [listener.getsockname()[1] for listener in listeners]
        kernel.serve(VIP, [(Endpoint(LOOPBACK, port, "tcp"), Tier.UP) for port in ports])
        with inside(cgroup):
            answers = asyncio.run(measure(listeners))
    slow, *fast = (answers[port] / answers.total() for port in ports)
    # A quarter each would be the share of a random choice. Measured: 0.06 and 0.31.
    assert 0 < slow < 0.12
    assert all(0.20 < share < 0.45 for share in fast)


# ---- a backend that refuses ----------------------------------------------------------------------
def eject(kernel: Kernel, *endpoints: Endpoint) -> Counter[int]:
    """Connect until all of `endpoints`, which refuse, have been ejected: what has answered."""
    answers: Counter[int] = Counter()
    while not all(counted(kernel, endpoint, VIP).ejected for endpoint in endpoints):
        answers[try_once()] += 1
        assert answers.total() < 1000
    return answers


def test_case_15_a_backend_that_refuses_five_times_in_a_row_is_ejected(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    members = [backends.listen(), backends.listen()]
    closed = refusing(backends)
    kernel.serve(VIP, [(member, Tier.UP) for member in (closed, *members)])
    with inside(cgroup):
        assert eject(kernel, closed)[NOBODY] == EJECT_FAILURES
        answers = tries(200)
    assert answers.keys() == {member.port for member in members}
    assert counted(kernel, closed, VIP).ejected
    assert counted(kernel, closed, VIP).failures == EJECT_FAILURES
    assert not any(counted(kernel, member, VIP).ejected for member in members)
    told = reasons(kernel)
    assert told["ejected"] == 1
    assert told.keys() <= {"translated", "ejected"}


def test_case_15_an_ejected_backend_is_tried_by_one_connection_after_its_time(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    member = backends.listen()
    closed = refusing(backends)
    kernel.serve(VIP, [(closed, Tier.UP), (member, Tier.UP)])
    with inside(cgroup):
        eject(kernel, closed)
        for _ in range(2):
            elapse(kernel, EJECT_SECONDS - 10)
            assert tries(100) == {member.port: 100}
            elapse(kernel, 10)
            before = time.monotonic()
            assert tries(100) == {member.port: 99, NOBODY: 1}
            # It failed: the same again.
            assert read_ejected_until(kernel, closed) > before + EJECT_SECONDS
        elapse(kernel, EJECT_SECONDS)
        assert backends.listen(port=closed.port) == closed
        # It succeeds, so all is as before at once.
        assert 25 < tries(100)[closed.port] < 75
    assert counted(kernel, closed, VIP).consecutive_failures == 0
    assert read_ejected_until(kernel, closed) == 0
    assert reasons(kernel)["ejected"] == 1


def test_case_15_a_trial_is_one_connection_as_long_as_it_lasts(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    member = backends.listen()
    closed = refusing(backends)
    kernel.serve(VIP, [(closed, Tier.UP), (member, Tier.UP)])
    with inside(cgroup):
        eject(kernel, closed)
        elapse(kernel, EJECT_SECONDS)
        with black_hole(closed.port) as hole, ExitStack() as held:
            for _ in range(50):
                begin_to_connect(held)
            assert counted(kernel, closed, VIP).connecting == 1
            assert tries(50) == {member.port: 50}
            # Its SYN is sent again after a second, and answered.
            hear_again(hole)
            until("success of the trial", lambda: not read_ejected_until(kernel, closed), 5)


def test_case_15_a_trial_is_one_connection_where_a_second_look_begins_it(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    up = refusing(backends)
    draining = refusing(backends)
    kernel.serve(VIP, [(up, Tier.UP), (draining, Tier.DRAINING)])
    with inside(cgroup):
        eject(kernel, up, draining)
        elapse(kernel, EJECT_SECONDS)
        with black_hole(up.port), black_hole(draining.port), ExitStack() as held:
            for _ in range(10):
                begin_to_connect(held)
            # One each; then the first one of the better tier is the last resort.
            assert counted(kernel, draining, VIP).connecting == 1
            assert counted(kernel, up, VIP).connecting == 9
            assert reasons(kernel)["last_resort"] == 8


def test_case_15_a_success_in_between_begins_the_count_anew(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    changing = refusing(backends)
    kernel.serve(VIP, [(changing, Tier.UP)])
    with inside(cgroup):
        assert tries(EJECT_FAILURES - 1) == {NOBODY: EJECT_FAILURES - 1}
        backends.listen(port=changing.port)
        assert tries(1) == {changing.port: 1}
        backends.stop(changing)
        assert tries(EJECT_FAILURES - 1) == {NOBODY: EJECT_FAILURES - 1}
        assert not counted(kernel, changing, VIP).ejected
        assert tries(1) == {NOBODY: 1}
        assert counted(kernel, changing, VIP).ejected


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("count", [1, 3])
def test_case_15_where_all_are_ejected_all_are_tried(
    count: int, tier: Tier, kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    members = [backends.listen() for _ in range(count)]
    for member in members:
        backends.stop(member)
    kernel.serve(VIP, [(member, tier) for member in members])
    with inside(cgroup):
        eject(kernel, *members)
        before = {member: counted(kernel, member, VIP).failures for member in members}
        assert "last_resort" not in reasons(kernel)
        assert tries(60) == {NOBODY: 60}
        # Each was refused by a backend, none by the VIP.
        assert all(counted(kernel, member, VIP).failures > before[member] for member in members)
        assert sum(counted(kernel, m, VIP).failures - before[m] for m in members) == 60
        told = reasons(kernel)
        assert told["last_resort"] == 60
        assert told["ejected"] == count
        assert told.keys() <= {"translated", "ejected", "last_resort"}
        # One that answers is found, and is then the only one.
        back = backends.listen(port=members[-1].port)
        while not try_once():
            assert counted(kernel, members[0], VIP).failures < 1000
        assert tries(50) == {back.port: 50}


@pytest.mark.parametrize("tier", [Tier.MAYBE, Tier.DRAINING])
def test_case_15_an_ejected_backend_loses_to_one_of_a_worse_tier(
    tier: Tier, kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    worse = backends.listen()
    closed = refusing(backends)
    kernel.serve(VIP, [(closed, Tier.UP), (worse, tier)])
    with inside(cgroup):
        assert tries(EJECT_FAILURES) == {NOBODY: EJECT_FAILURES}
        assert tries(50) == {worse.port: 50}
        elapse(kernel, EJECT_SECONDS)
        backends.listen(port=closed.port)
        assert tries(50) == {closed.port: 50}


def test_case_15_a_light_backend_serves_alone_while_the_heavy_one_is_ejected(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    light = backends.listen()
    heavy = refusing(backends)
    kernel.serve(VIP, [(heavy, Tier.UP, 100), (light, Tier.UP, 1)])
    with inside(cgroup):
        eject(kernel, heavy)
        assert tries(300) == {light.port: 300}


@pytest.mark.parametrize("count", [3, 12, 56])
def test_case_15_one_of_many_serves_alone_while_all_others_are_ejected(
    count: int, kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    members = [backends.listen() for _ in range(count)]
    *closed, last = members
    for member in closed:
        backends.stop(member)
    kernel.serve(VIP, [(member, Tier.UP) for member in members])
    with inside(cgroup), ExitStack() as held:
        eject(kernel, *closed)
        assert {hold(held) for _ in range(200)} == {last.port}


# ---- a backend that does not answer --------------------------------------------------------------
CLIENTS = 16


async def ask_until_ejected(kernel: Kernel, endpoint: Endpoint, patience_seconds: float) -> float:
    """Have clients ask without a pause: the seconds until the kernel ejects the backend."""

    async def keep_asking() -> None:
        while True:
            await ask(patience_seconds)

    started = time.monotonic()
    clients = [asyncio.create_task(keep_asking()) for _ in range(CLIENTS)]
    await asyncio.to_thread(until, "ejection", lambda: counted(kernel, endpoint, VIP).ejected, 10)
    # As the kernel has noted it: this process may have been kept waiting.
    ended = read_ejected_until(kernel, endpoint) - EJECT_SECONDS
    await end(clients)
    return ended - started


@contextmanager
def full_backlog() -> Iterator[socket.socket]:
    """A listener that never accepts, and has no room for one more connection: SYNs are dropped."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        yield listener


@pytest.mark.parametrize(
    ("make_hole", "patience_seconds"), [(black_hole, 0.5), (black_hole, 1), (full_backlog, 30)]
)
def test_case_16_a_black_hole_is_found_under_load(
    make_hole: Callable[[], AbstractContextManager[socket.socket]],
    patience_seconds: float,
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    inside: Inside,
) -> None:
    with make_hole() as listener, inside(cgroup):
        hole = Endpoint(LOOPBACK, listener.getsockname()[1], "tcp")
        members = [hole, backends.listen(), backends.listen()]
        kernel.serve(VIP, [(member, Tier.UP) for member in members])
        seconds = asyncio.run(ask_until_ejected(kernel, hole, patience_seconds))
        met = counted(kernel, hole, VIP).failures
        # Measured: as long as the clients wait, but at most the second until SYNs are sent again;
        # each client has met it once, and the first to give up perhaps again.
        assert seconds < 2
        assert EJECT_FAILURES <= met < CLIENTS + EJECT_FAILURES
        assert NOBODY not in tries(300)
        assert counted(kernel, hole, VIP).failures == met
        assert counted(kernel, hole, VIP).connecting == 0


@pytest.mark.parametrize(("patience_seconds", "counts"), [(0.05, False), (0.5, True)])
def test_case_16_who_gives_up_has_met_a_failure_only_after_a_while(
    patience_seconds: float, counts: bool, kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    """At once: happy eyeballs, the connection to the other family was faster."""
    with black_hole() as listener, inside(cgroup):
        hole = Endpoint(LOOPBACK, listener.getsockname()[1], "tcp")
        kernel.serve(VIP, [(hole, Tier.UP)])
        with ExitStack() as held:
            for _ in range(EJECT_FAILURES):
                begin_to_connect(held)
            elapse(kernel, patience_seconds)
            assert counted(kernel, hole, VIP).connecting == EJECT_FAILURES
            assert not counted(kernel, hole, VIP).ejected
        found = counted(kernel, hole, VIP)
    assert found.connecting == 0
    assert found.failures == found.consecutive_failures == (EJECT_FAILURES if counts else 0)
    assert found.ejected is counts


# ---- nobody knows --------------------------------------------------------------------------------
def test_case_17_where_all_may_be_up_all_are_served_from(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    """Liveness of every host was lost: it is as if that of none was."""
    members = [backends.listen() for _ in range(3)]
    swap = kernel.serve(VIP, [(member, Tier.MAYBE) for member in members])
    assert swap.counts == (0, 3, 0)
    with inside(cgroup):
        answers = tries(300)
    assert all(60 < answers[member.port] < 140 for member in members)
    assert answers.total() == sum(answers[member.port] for member in members)


# ---- affinity ------------------------------------------------------------------------------------
AFFINITY_SECONDS = 2 * EJECT_SECONDS


@pytest.fixture
def containers(cgroup: Path) -> Iterator[tuple[Path, Path]]:
    """Two cgroups below the one that is served."""
    one, two = cgroup / "one", cgroup / "two"
    one.mkdir()
    two.mkdir()
    yield one, two
    one.rmdir()
    two.rmdir()


@pytest.fixture
def pair(kernel: Kernel, backends: Backends) -> list[tuple[Endpoint, Tier]]:
    """Two members of the VIP, which has affinity.

    Of two, the one with less to do is chosen for sure. So who comes back to the one with more to do
    does so for affinity alone.
    """
    members = [(backends.listen(), Tier.UP) for _ in range(2)]
    kernel.serve(VIP, members, affinity_seconds=AFFINITY_SECONDS)
    return members


def test_case_19_a_client_keeps_its_backend(
    pair: list[tuple[Endpoint, Tier]], cgroup: Path, inside: Inside
) -> None:
    with inside(cgroup), ExitStack() as held:
        first = hold(held)
        assert {hold(held) for _ in range(20)} == {first}


def test_case_19_another_container_is_another_client(
    pair: list[tuple[Endpoint, Tier]], containers: tuple[Path, Path], inside: Inside
) -> None:
    one, two = containers
    with ExitStack() as held:
        with inside(one):
            first = hold(held)
        with inside(two):
            second = hold(held)
            assert second != first
            assert {hold(held) for _ in range(5)} == {second}
        with inside(one):
            assert {hold(held) for _ in range(10)} == {first}


def test_case_19_the_time_begins_anew_with_each_connection(
    pair: list[tuple[Endpoint, Tier]], kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    with inside(cgroup), ExitStack() as held:
        first = hold(held)
        for _ in range(3):
            elapse(kernel, AFFINITY_SECONDS - 10)
            assert hold(held) == first
        elapse(kernel, AFFINITY_SECONDS)
        second = hold(held)
        assert second != first
        assert {hold(held) for _ in range(10)} == {second}


@pytest.mark.parametrize("change", ["draining", "removed", "ejected"])
def test_case_19_a_client_moves_from_a_backend_that_is(
    change: str,
    pair: list[tuple[Endpoint, Tier]],
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    inside: Inside,
) -> None:
    def serve(*members: tuple[Endpoint, Tier]) -> None:
        kernel.serve(VIP, members, affinity_seconds=AFFINITY_SECONDS, keep_ids=True)

    with inside(cgroup), ExitStack() as held:
        first = hold(held)
        [last] = [member for member, _ in pair if member.port == first]
        [other] = [member for member, _ in pair if member.port != first]
        serve(*pair)  # a change that is none for this client
        assert hold(held) == first
        match change:
            case "draining":
                serve((last, Tier.DRAINING), (other, Tier.UP))
            case "removed":
                serve((other, Tier.UP))
            case "ejected":
                backends.stop(last)
                assert tries(EJECT_FAILURES) == {NOBODY: EJECT_FAILURES}
        assert {hold(held) for _ in range(20)} == {other.port}
        # It has moved for good, though the other one has more to do now.
        if change == "ejected":
            backends.listen(port=last.port)
            elapse(kernel, EJECT_SECONDS)
        serve(*pair)
        assert {hold(held) for _ in range(10)} == {other.port}


@pytest.mark.parametrize("tier", [Tier.MAYBE, Tier.DRAINING])
def test_case_19_a_client_keeps_a_backend_that_is_no_worse_than_all_others(
    tier: Tier,
    pair: list[tuple[Endpoint, Tier]],
    kernel: Kernel,
    cgroup: Path,
    inside: Inside,
) -> None:
    with inside(cgroup), ExitStack() as held:
        first = hold(held)
        worse = [(member, tier) for member, _ in pair]
        kernel.serve(VIP, worse, affinity_seconds=AFFINITY_SECONDS, keep_ids=True)
        assert {hold(held) for _ in range(20)} == {first}


def test_case_19_affinity_is_switched_while_it_is_used(
    pair: list[tuple[Endpoint, Tier]], kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    swap = kernel.state.frontends[VIP]
    with inside(cgroup), ExitStack() as held:
        first = hold(held)
        assert hold(held) == first
        kernel.apply(replace(swap, affinity_seconds=0))
        assert hold(held) != first
        answers = Counter(hold(held) for _ in range(21))
        assert answers.keys() == {member.port for member, _ in pair}
        assert max(answers.values()) == 11
        kernel.apply(swap)
        assert len({hold(held) for _ in range(20)}) == 1


UDP_VIP = frontend(ADDRESS, PORT, "udp")


@pytest.fixture
def receivers(kernel: Kernel) -> Iterator[list[socket.socket]]:
    """Two members of the VIP for UDP, which has affinity."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        kernel.serve(
            UDP_VIP,
            [(Endpoint(LOOPBACK, sock.getsockname()[1], "udp"), Tier.UP) for sock in sockets],
            affinity_seconds=AFFINITY_SECONDS,
        )
        yield sockets


def by_connect(held: ExitStack) -> None:
    """Send a datagram from a fresh socket, which is connected until `held` ends."""
    sock = held.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    sock.connect((ADDRESS, PORT))
    sock.send(b"?")


def by_sendto(held: ExitStack) -> None:
    """The same from one that is not."""
    sock = held.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    sock.sendto(b"?", (ADDRESS, PORT))


@pytest.mark.parametrize("send", [by_connect, by_sendto])
def test_case_19_affinity_is_for_datagrams_too(
    send: Callable[[ExitStack], None],
    kernel: Kernel,
    receivers: list[socket.socket],
    containers: tuple[Path, Path],
    inside: Inside,
) -> None:
    def receiver() -> socket.socket:
        [sock], _, _ = select.select(receivers, [], [], 5)
        sock.recv(1)
        return sock

    one, two = containers
    with ExitStack() as held:
        with inside(one):
            by_connect(held)
            first = receiver()
            for _ in range(5):
                by_connect(held)  # sockets that are not connected are no load
                assert receiver() is first
            for _ in range(5):
                send(held)
                assert receiver() is first
        with inside(two):
            send(held)
            assert receiver() is not first
        elapse(kernel, AFFINITY_SECONDS)
        with inside(one):
            send(held)
            assert receiver() is not first


def in_new_network(do: Callable[[], None]) -> None:
    """Call `do` in a network namespace that has a loopback and nothing else."""

    def enter() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        do()

    with ThreadPoolExecutor(max_workers=1) as thread:  # which alone goes there, and then ends
        thread.submit(enter).result()


def test_case_19_another_network_namespace_of_one_cgroup_is_another_client(
    kernel: Kernel, receivers: list[socket.socket], cgroup: Path, inside: Inside
) -> None:
    """Where containers have cgroups of version 1, all are in one of version 2."""
    members = kernel.state.members[kernel.state.frontends[UDP_VIP].vip_id]

    def loads() -> list[int]:
        return sorted(counted(kernel, member, UDP_VIP).active for member in members)

    with inside(cgroup), ExitStack() as held:

        def connect_times(count: int) -> None:
            for _ in range(count):
                by_connect(held)

        connect_times(3)
        assert loads() == [0, 3]
        in_new_network(lambda: connect_times(5))
        assert loads() == [3, 5]
        connect_times(4)
        assert loads() == [5, 7]


# ---- size ----------------------------------------------------------------------------------------
MANY = 16_384
TIGHT = Limits(vips=4096, slots=2 * MANY, backends=MANY + 1)
"""Room for so many backends and no more: ids run from 1."""


@pytest.fixture(scope="module")
def tight_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A dataplane whose maps can be filled."""
    with new_cgroup() as cgroup:
        made = Kernel(cgroup, new_pins(), tmp_path_factory.mktemp("tight"), TIGHT)
        yield made
        made.dataplane.remove()


@pytest.fixture
def tight(tight_plane: Kernel) -> Iterator[Kernel]:
    """It, with empty maps."""
    yield tight_plane
    tight_plane.clear()


@pytest.fixture
def crowd(tight: Kernel) -> Iterator[list[Endpoint]]:
    """As many members of the VIP as there is room for: one listener at all of their addresses.

    It greets each connection with the address that this has come to.
    """

    def greet() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # shut down
                return
            with connection, suppress(ConnectionError):
                connection.sendall(socket.inet_aton(connection.getsockname()[0]))

    with socket.create_server(("0.0.0.0", 0), backlog=1024) as listener:  # noqa: S104 - no way out
        port = listener.getsockname()[1]
        thread = threading.Thread(target=greet)
        thread.start()
        first = IPv4Address("127.1.0.0")
        members = [Endpoint((first + i).packed, port, "tcp") for i in range(MANY)]
        tight.serve(VIP, [(member, Tier.UP) for member in members])
        yield members
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def address_reached() -> bytes:
    """The address of the backend that a fresh connection reaches."""
    with connect(ADDRESS, PORT) as sock:
        return sock.recv(4, socket.MSG_WAITALL)


def test_case_21_a_vip_has_16384_backends(
    tight: Kernel, crowd: list[Endpoint], inside: Inside
) -> None:
    places = {member.address_packed: i for i, member in enumerate(crowd)}
    count, parts = 2000, 8
    with inside(tight.cgroup):
        reached = Counter(places[address_reached()] for _ in range(count))
    # 1,883 different ones in the mean.
    assert len(reached) > 1800
    by_part = Counter(place * parts // MANY for place in reached.elements())
    # Six standard deviations are 89.
    assert all(abs(by_part[part] - count / parts) < 89 for part in range(parts))


def refused_for_want_of_room(tight: Kernel, *ops: Op) -> bool:
    """Whether the first of `ops` fails so, and all is as it was before."""
    applied = tight.dataplane.apply(ops, tight.state)
    assert tight.dataplane.audit() == tight.state
    return applied.done == 0 and applied.error is not None and applied.error.errno == errno.E2BIG


def test_case_21_what_a_full_map_has_no_room_for_changes_nothing(
    tight: Kernel, crowd: list[Endpoint], inside: Inside
) -> None:
    swap = tight.state.frontends[VIP]
    one_more = Endpoint(LOOPBACK, 9, "tcp")
    assert refused_for_want_of_room(tight, PutBackend(MANY + 1, swap.vip_id, one_more, 1, Tier.UP))
    assert refused_for_want_of_room(tight, WriteRun(TIGHT.slots - 1, (1, 2)))
    with inside(tight.cgroup):
        assert address_reached() in {member.address_packed for member in crowd}


def test_case_21_one_vip_more_than_there_is_room_for_changes_nothing(
    tight: Kernel, backends: Backends, inside: Inside
) -> None:
    member = backends.listen()
    run = tight.serve(VIP, [(member, Tier.UP)])
    addresses = [str(IPv4Address("11.0.0.0") + i) for i in range(TIGHT.vips)]
    swaps = (replace(run, frontend=frontend(address, PORT)) for address in addresses)
    *fitting, one_more = swaps
    tight.apply(*fitting)
    assert refused_for_want_of_room(tight, one_more)
    with inside(tight.cgroup):
        for address in (ADDRESS, addresses[0], addresses[-2]):
            assert who_answers(address, PORT) == member.port
