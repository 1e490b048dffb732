"""The benches still run: each in small, with nothing asserted about time."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.zookeeper import free_ports
from tests.bench import agent, connect, programs
from tests.bench.report import Section, Table, Target, document, percentile, spread
from tests.bench.stage import Seat
from tests.bench.traffic import Run, Traffic

CPUS = sorted(os.sched_getaffinity(0))
HERE = Seat(frozenset(CPUS))


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    return Traffic(tmp_path_factory.mktemp("traffic"))


@pytest.fixture
def servers(traffic: Traffic) -> Iterator[list[str]]:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    with traffic.serving(addresses, [HERE]):
        yield addresses


# ---- the load -----------------------------------------------------------------------------------
def test_a_client_reaches_every_server_and_times_each_connection(
    traffic: Traffic, servers: list[str]
) -> None:
    (run,) = traffic.load(servers, 300, [HERE])
    assert set(run.answers()) == {0, 1, 2}
    assert run.answers().total() == len(run.connect_ns) == len(run.answer_ns) == 300
    pairs = zip(run.connect_ns, run.answer_ns, strict=True)
    assert all(0 < connect_ns < answer_ns for connect_ns, answer_ns in pairs)
    assert run.seconds >= sum(run.answer_ns) / 1e9


def test_clients_run_at_once(traffic: Traffic, servers: list[str]) -> None:
    runs = traffic.load(servers[:1], 50, [HERE, HERE])
    assert [run.answers() for run in runs] == [{0: 50}, {0: 50}]


def test_a_range_is_so_many_addresses(traffic: Traffic) -> None:
    (port,) = free_ports(1)
    with traffic.serving([f"127.0.0.{i}:{port}" for i in range(1, 5)], [HERE]):
        (run,) = traffic.load([f"127.0.0.2:{port}*3"], 100, [HERE])
    assert set(run.answers()) == {1, 2, 3}


def test_a_failed_connection_fails_the_run(traffic: Traffic) -> None:
    (port,) = free_ports(1)
    with pytest.raises(subprocess.CalledProcessError):
        traffic.load([f"127.0.0.1:{port}"], 1, [HERE])


def test_a_watcher_connects_until_the_server_is_reached(traffic: Traffic) -> None:
    shared, other = (f"127.0.0.1:{port}" for port in free_ports(2))
    with (  # the kernel shares the connections out among both
        traffic.serving([shared], [HERE]),
        traffic.serving([other, shared], [HERE]),
        traffic.watching(shared, 0, HERE) as watcher,
    ):
        moments = []
        for wanted in (0, 1) * 20:
            watcher.watch_for(wanted)
            moments.append(watcher.found())
    began = [began_ns for began_ns, _ in moments]
    assert began == sorted(began)
    assert sum(tries for _, tries in moments) > len(moments)


def test_a_run_that_was_cut_short_is_none() -> None:
    with pytest.raises(ValueError, match="2 values for 1 connections"):
        Run.unpack(bytes(16) + (1).to_bytes(8, "little") + bytes(8))


# ---- what is said -------------------------------------------------------------------------------
def test_percentiles_and_spread() -> None:
    ordered = list(range(1, 101))
    assert [percentile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]
    assert spread([3.0, 1.0, 2.0]) == "2.000 (1.000, 1.000, 3.000, 3.000)"


def test_a_target_is_a_ceiling_or_a_floor() -> None:
    assert Target("p99", 50, 14.25, " ms").row() == ("p99", "<= 50 ms", "14.25 ms", "yes")
    assert Target("rate", 2, 1.5, at_least=True).row() == ("rate", ">= 2", "1.5", "no")


def test_the_document_has_the_machine_the_targets_and_every_table() -> None:
    table = Table(("", "us"), [("direct", "14.5"), ("VIP", "15.6")])
    assert table.markdown().splitlines() == [
        "|        |   us |",
        "| ------ | ---: |",
        "| direct | 14.5 |",
        "| VIP    | 15.6 |",
    ]
    text = document([Section("Connections", ["How.", table], [Target("ratio", 1.15, 1.076)])], 0.5)
    assert f"Linux {os.uname().release}" in text
    assert re.search(r"\| load before +\| +0.50 \|", text)
    assert "| ratio | <= 1.15 | 1.076 | yes |" in text
    assert text.endswith(f"## Connections\n\nHow.\n\n{table.markdown()}")


# ---- each bench in small ------------------------------------------------------------------------
@pytest.mark.kernel
def test_every_way_leads_to_every_server(tmp_path: Path) -> None:
    with connect.course(tmp_path, CPUS) as course:
        rounds = list(course.race(rounds=2, connections=200, crowd=2))
    assert [list(runs) for runs in rounds] == [list(course.ways)] * 2
    assert all(len(runs) == 2 * len(CPUS) for runs in rounds[0].values())
    assert len(connect.alone_table(rounds).rows) == len(course.ways)
    assert len(connect.crowd_table(rounds).rows) == len(course.ways)


@pytest.mark.kernel
def test_the_kernel_counts_one_run_of_connect4_for_each_connection(
    traffic: Traffic, tmp_path: Path
) -> None:
    with (
        traffic.serving(programs.SERVERS, [HERE]),
        programs.cases(tmp_path, vip_count=32) as cases,
        programs.counting(),
    ):
        times = {name: programs.run_case(traffic, cases[name], 100, CPUS[0]) for name in cases}
    assert [time["connect4"].runs for time in times.values()] == [100] * len(cases)
    assert len(programs.report([times]).targets) == 2


@pytest.mark.e2e
def test_a_change_of_a_znode_reaches_connect(traffic: Traffic, tmp_path: Path) -> None:
    with (
        agent.stand(tmp_path, apps=3, instances=2) as stand,
        stand.running("agent") as running,
    ):
        made = agent.changes(stand, traffic, 4)
        assert agent.resident_mb(running.pid) > 0
        assert agent.cpu_seconds(running.front_pid) >= 0
    assert all(c.sent_ns < c.acknowledged_ns for c in made)
    assert all(c.sent_ns < c.reached_ns for c in made)
