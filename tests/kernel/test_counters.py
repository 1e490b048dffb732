"""Counters that the sock_ops program keeps, and what a reused id must not inherit."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.wait import until
from minuteman.model import Endpoint, Frontend, Tier
from minuteman.reconcile.kernelstate import PutBackend, Release, SwapVip, WriteRun
from tests.kernel.churn import drop_all, hear_again, reset_on_close
from tests.kernel.conftest import (
    Backends,
    Inside,
    Kernel,
    connect,
    counted,
    endpoint_of,
    family_of,
    frontend,
    who_answers,
)
from tests.kernel.test_drift import TCP_ENDS

DEADLINE_SECONDS = 10.0
VIP = frontend("1.2.3.4", 5000)


def test_a_connection_is_active_until_it_is_closed(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    member = backends.listen()
    kernel.serve(VIP, [(member, Tier.UP)])
    with inside(cgroup):
        sock = connect("1.2.3.4", 5000)
        assert counted(kernel, member, VIP).active == 1
        # A reset ends it on both sides at once, with no TIME_WAIT between.
        reset_on_close(sock)
        sock.close()
    until(
        "end of the connection", lambda: counted(kernel, member, VIP).active == 0, DEADLINE_SECONDS
    )
    after = counted(kernel, member, VIP)
    assert (after.connecting, after.successes, after.failures) == (0, 1, 0)
    assert sum(after.connect_log2_us) == 1


def test_a_refused_connection_is_a_failure_and_a_success_clears_the_count(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    closed = backends.listen()
    backends.stop(closed)
    kernel.serve(VIP, [(closed, Tier.UP)])
    with inside(cgroup):
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                connect("1.2.3.4", 5000)
        found = counted(kernel, closed, VIP)
        assert (found.connecting, found.active, found.failures) == (0, 0, 3)
        assert found.consecutive_failures == 3
        with socket.create_server(("127.0.0.1", closed.port)):
            connect("1.2.3.4", 5000).close()
    found = counted(kernel, closed, VIP)
    assert (found.successes, found.failures, found.consecutive_failures) == (1, 3, 0)


def test_one_endpoint_behind_two_vips_is_counted_for_each(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    member = backends.listen()
    other = frontend("1.2.3.5", 80)
    kernel.serve(VIP, [(member, Tier.UP)])
    kernel.serve(other, [(member, Tier.UP)])
    with inside(cgroup):
        for _ in range(5):
            who_answers("1.2.3.4", 5000)
        who_answers("1.2.3.5", 80)
    assert counted(kernel, member, VIP).successes == 5
    assert counted(kernel, member, other).successes == 1


def test_a_socket_of_a_member_that_left_does_not_count_for_its_successor(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    leaver, successor = backends.listen(), backends.listen()
    run = kernel.serve(VIP, [(leaver, Tier.UP)])
    (backend_id,) = kernel.state.runs[run.base]
    with inside(cgroup):
        held = connect("1.2.3.4", 5000)
        other = frontend("1.2.3.5", 80)
        kernel.apply(
            SwapVip(VIP, run.vip_id, run.base, (0, 0, 0)),
            Release(((run.base, 1),), (backend_id,)),
            PutBackend(backend_id, run.vip_id + 1, successor, 1, Tier.UP),
            WriteRun(run.base, (backend_id,)),
            SwapVip(other, run.vip_id + 1, run.base, (1, 0, 0)),
        )
        with connect("1.2.3.5", 80) as mine:
            held.close()
            mine.recv(2, socket.MSG_WAITALL)
            # A leaver's close would have taken one off, to 0 or to 2**32 - 1.
            assert counted(kernel, successor, other).active == 1


def test_a_change_of_weight_keeps_the_counters(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    member = backends.listen()
    run = kernel.serve(VIP, [(member, Tier.UP)])
    (backend_id,) = kernel.state.runs[run.base]
    with inside(cgroup):
        who_answers("1.2.3.4", 5000)
    kernel.apply(PutBackend(backend_id, run.vip_id, member, 7, Tier.UP))
    assert counted(kernel, member, VIP).successes == 1
    assert kernel.dataplane.audit() == kernel.state


class Way(NamedTuple):
    """How a client gets to a VIP."""

    vip: str
    target: str
    """The same, as the client writes it."""
    host: str
    """Of the backend."""


WAYS = {
    "ipv4": Way("1.2.3.4", "1.2.3.4", "127.0.0.1"),
    "mapped": Way("1.2.3.4", "::ffff:1.2.3.4", "127.0.0.1"),
    "ipv6": Way("fd00::7", "fd00::7", "::1"),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@contextmanager
def listening(kernel: Kernel, way: Way) -> Iterator[tuple[socket.socket, Endpoint, Frontend]]:
    """A backend that the test accepts connections for, where it is, and its VIP."""
    with socket.create_server((way.host, 0), family=family_of(way.host)) as listener:
        vip = frontend(way.vip, 5000)
        kernel.serve(vip, [(endpoint_of(listener), Tier.UP)])
        yield listener, endpoint_of(listener), vip


@pytest.mark.parametrize("end", TCP_ENDS, ids=lambda end: end.__name__)
def test_what_a_connection_carried_is_counted_when_it_ends(
    way: Way,
    end: Callable[[socket.socket, socket.socket], None],
    kernel: Kernel,
    cgroup: Path,
    inside: Inside,
) -> None:
    with listening(kernel, way) as (listener, member, vip), inside(cgroup):
        client = connect(way.target, 5000)
        server, _ = listener.accept()
        with client, server:
            client.sendall(b"x" * 1000)
            assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
            server.sendall(b"y" * 300)
            assert len(client.recv(300, socket.MSG_WAITALL)) == 300
            found = counted(kernel, member, vip)
            assert (found.attempts, found.bytes_sent, found.bytes_received) == (1, 0, 0)
            end(client, server)
            until("end", lambda: not counted(kernel, member, vip).active, DEADLINE_SECONDS)
    found = counted(kernel, member, vip)
    # The SYN, each FIN, and what is sent by those who close half by half are a byte each.
    assert 1000 < found.bytes_sent <= 1002
    assert 300 <= found.bytes_received <= 302
    assert found.retransmits == 0


def test_what_had_to_be_sent_again_is_counted(
    way: Way, kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    with listening(kernel, way) as (listener, member, vip), inside(cgroup):
        client = connect(way.target, 5000)
        server, _ = listener.accept()
        with client, server:
            drop_all(server)
            client.sendall(b"x")
            until("second try", lambda: sent_again(client), DEADLINE_SECONDS)
            hear_again(server)
            assert server.recv(1) == b"x"
            again = sent_again(client)
            reset_on_close(client)
        until("end", lambda: not counted(kernel, member, vip).active, DEADLINE_SECONDS)
    assert counted(kernel, member, vip).retransmits == again


def test_a_syn_that_was_sent_again_is_counted_though_nobody_answered(
    way: Way, kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    with listening(kernel, way) as (listener, member, vip), inside(cgroup):
        drop_all(listener)
        client = socket.socket(family_of(way.target))
        client.setblocking(False)
        with client:
            with pytest.raises(BlockingIOError):
                client.connect((way.target, 5000))
            until("second try", lambda: sent_again(client), DEADLINE_SECONDS)
        found = counted(kernel, member, vip)
    assert (found.attempts, found.successes, found.retransmits) == (1, 0, 1)
    assert (found.bytes_sent, found.bytes_received) == (0, 0)


def test_every_connect_that_has_sent_a_syn_is_an_attempt(
    way: Way, kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    with listening(kernel, way) as (listener, member, vip), inside(cgroup):
        for _ in range(2):
            connect(way.target, 5000).close()
        listener.close()
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                connect(way.target, 5000)
        found = counted(kernel, member, vip)
    assert (found.attempts, found.successes, found.failures) == (5, 2, 3)


def test_every_udp_socket_that_a_backend_is_given_to_is_an_attempt(
    way: Way, kernel: Kernel, cgroup: Path, inside: Inside
) -> None:
    vip = frontend(way.vip, 53, "udp")
    with socket.socket(family_of(way.host), socket.SOCK_DGRAM) as server, inside(cgroup):
        server.bind((way.host, 0))
        member = endpoint_of(server)
        kernel.serve(vip, [(member, Tier.UP)])
        with socket.socket(family_of(way.target), socket.SOCK_DGRAM) as bound:
            bound.connect((way.target, 53))
            bound.send(b"x")
            assert counted(kernel, member, vip).attempts == 1
            bound.connect((way.target, 53))
            assert counted(kernel, member, vip).attempts == 2
        with socket.socket(family_of(way.target), socket.SOCK_DGRAM) as free:
            for _ in range(3):
                free.sendto(b"x", (way.target, 53))
        assert counted(kernel, member, vip).attempts == 3


TOTAL_RETRANS = 100
"""Where tcpi_total_retrans is in struct tcp_info."""


def sent_again(sock: socket.socket) -> int:
    """How many segments the kernel has sent once more."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TOTAL_RETRANS + 4)
    return int.from_bytes(info[TOTAL_RETRANS:], sys.byteorder)
