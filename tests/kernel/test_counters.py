"""Counters that the sock_ops program keeps, and what a reused id must not inherit."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lab.wait import until
from minuteman.model import Tier
from minuteman.reconcile.kernelstate import PutBackend, Release, SwapVip, WriteRun
from tests.kernel.churn import reset_on_close
from tests.kernel.conftest import (
    Backends,
    Inside,
    Kernel,
    connect,
    counted,
    frontend,
    who_answers,
)

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
