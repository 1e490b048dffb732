"""The benches still run: each in small, with nothing asserted about time."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.zookeeper import free_ports
from tests.bench import (
    agent,
    bulk,
    connect,
    events,
    held,
    programs,
    reap,
    size,
    stage,
    tail,
    udp,
    upgrade,
    upkeep,
)
from tests.bench.course import DIRECT, HAPROXY, NFTABLES, PASSING, SERVERS, VIP, Course, course
from tests.bench.report import Section, Table, Target, document, percentile, spread
from tests.bench.stage import Seat, sysctl
from tests.bench.traffic import Kind, Traffic

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
    assert run.answers().total() == len(run.call_ns) == len(run.answer_ns) == 300
    pairs = zip(run.call_ns, run.answer_ns, strict=True)
    assert all(0 < call_ns < answer_ns for call_ns, answer_ns in pairs)
    assert run.seconds >= sum(run.answer_ns) / 1e9


@pytest.mark.parametrize("kind", ["ask", "ask-connected"])
def test_a_client_asks_one_server_in_datagrams(
    traffic: Traffic, servers: list[str], kind: Kind
) -> None:
    runs = traffic.load(servers, 50, [HERE] * 8, kind)
    assert all(list(run.answers().values()) == [50] for run in runs)
    assert len({run.server[0] for run in runs}) > 1
    assert all(0 < a < b for r in runs for a, b in zip(r.call_ns, r.answer_ns, strict=True))


def test_clients_run_at_once(traffic: Traffic, servers: list[str]) -> None:
    runs = traffic.load(servers[:1], 50, [HERE, HERE])
    assert [run.answers() for run in runs] == [{0: 50}, {0: 50}]


def test_clients_choose_differently(traffic: Traffic, servers: list[str]) -> None:
    one, other = traffic.load(servers, 100, [HERE, HERE])
    assert one.server != other.server


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


def test_a_client_keeps_its_pace(traffic: Traffic, servers: list[str]) -> None:
    (run,) = traffic.pace(servers, 1_000, 200, [HERE])
    assert run.answers().total() == 200
    assert run.seconds >= 0.199
    assert all(0 < a < b for a, b in zip(run.call_ns, run.answer_ns, strict=True))


def test_connections_are_held_as_long_as_the_block(traffic: Traffic, servers: list[str]) -> None:
    with traffic.holding(servers, 100, [HERE, HERE]) as runs:
        counted = held.established(servers)
    assert counted == [sum(run.answers()[i] for run in runs) for i in range(3)]
    assert sum(counted) == 200
    assert held.established(servers) == [0, 0, 0]


def test_a_stream_lasts_for_its_time(traffic: Traffic, servers: list[str]) -> None:
    count, seconds = traffic.stream(servers, 0.05, HERE)
    assert count > 0
    assert seconds >= 0.05


def test_a_server_attends_to_one_connection_at_a_time(traffic: Traffic) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    with traffic.attending(addresses, [2_000, 1], HERE):
        slow = traffic.load(addresses[:1], 5, [HERE, HERE])
        (quick,) = traffic.load(addresses[1:], 5, [HERE])
    assert [run.answers() for run in (*slow, quick)] == [{0: 5}, {0: 5}, {1: 5}]
    took_ns = max(run.ended_ns for run in slow) - min(run.started_ns for run in slow)
    assert took_ns >= 10 * 2_000_000


# ---- what is said -------------------------------------------------------------------------------
def test_percentiles_and_spread() -> None:
    ordered = list(range(1, 101))
    assert [percentile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]
    assert spread([3.0, 1.0, 2.0]) == "2.000 (1.000, 1.000, 3.000, 3.000)"


def test_a_target_is_a_ceiling_or_a_floor() -> None:
    assert Target("p99", 50, 14.25, " ms").row() == ("p99", "<= 50 ms", "14.25 ms", "yes")
    assert Target("rate", 2, 1.5, at_least=True).row() == ("rate", ">= 2", "1.5", "no")
    held = Target("held", 30_000, 30_000, at_least=True)
    assert held.row() == ("held", ">= 30,000", "30,000", "yes")


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
ALL_WAYS = [DIRECT, VIP, PASSING, NFTABLES, HAPROXY]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    with course(tmp_path_factory.mktemp("course"), proxy_cpus=CPUS) as opened:
        yield opened


def first_column(table: str | Table) -> list[str]:
    assert isinstance(table, Table)
    assert all(len(row) == len(table.headings) for row in table.rows)
    return [row[0] for row in table.rows]


@pytest.mark.kernel
def test_connections_are_compared_on_every_way(here: Course) -> None:
    with here.serving(CPUS):
        rounds = connect.race(here, 2, 200, CPUS, crowd=2)
    assert all(len(load.runs) == 2 * len(CPUS) for load in rounds[0].values())
    assert all(load.cpu_us > 0 for load in rounds[0].values())
    section = connect.report(rounds, rounds, len(CPUS))
    _, alone, _, crowd = section.parts
    assert first_column(alone) == first_column(crowd) == ALL_WAYS
    assert len(section.targets) == 4


@pytest.mark.kernel
def test_a_way_that_misses_a_server_is_none(here: Course) -> None:
    with here.serving(CPUS), pytest.raises(ValueError, match="all of 10 servers"):
        connect.race(here, 1, 3, CPUS[:1])


@pytest.mark.kernel
def test_datagrams_are_compared_on_every_way(here: Course) -> None:
    with here.serving(CPUS):
        found = udp.race(here.without(HAPROXY), 1, 50, CPUS[0])
        times = udp.run_times(here, 1, 50, CPUS[0])
    assert [time[name].runs for time in times[0].values() for name in udp.PROGRAMS] == [50] * 4
    section = udp.report(found, times)
    _, alone, _, unconnected, _, connected, _, run_times = section.parts
    assert len(first_column(alone)) == 2 * (len(ALL_WAYS) - 1)
    assert first_column(unconnected) == first_column(connected) == ALL_WAYS[:-1]
    assert first_column(run_times) == [VIP, PASSING]
    assert len(section.targets) == 4


@pytest.mark.kernel
def test_streams_are_compared(here: Course) -> None:
    with here.serving(CPUS):
        rounds = bulk.race(here, 2, 0.02, CPUS[0])
    assert all(stream.cpu_per_gb > 0 for stream in rounds[0].values())
    section = bulk.report(rounds)
    assert first_column(section.parts[1]) == ALL_WAYS
    assert section.targets[0].found > 0


@pytest.mark.kernel
def test_held_connections_are_counted_at_the_servers(here: Course) -> None:
    with here.serving(CPUS):
        rounds = held.race(here, 1, clients=2, each=150)
    assert [one.count for one in rounds[0].values()] == [300] * len(ALL_WAYS)
    split = rounds[0][VIP].by_server
    assert max(split) - min(split) <= 8  # at random, ten servers differ by 16 on average
    section = held.report(rounds)
    assert first_column(section.parts[1]) == ALL_WAYS
    assert section.targets[0].found == 300


@pytest.mark.kernel
def test_dnat_ends_with_the_ports_of_the_client(here: Course) -> None:
    with here.serving(CPUS), sysctl("ipv4/ip_local_port_range", "40001 40100"):
        (found,) = held.race(here.without(HAPROXY), 1, clients=1, each=150)
    assert 0 < found[NFTABLES].count <= 100
    assert found[VIP].count == found[DIRECT].count == 150


@pytest.mark.kernel
def test_a_slow_backend_gets_less_than_its_share(here: Course) -> None:
    rounds = tail.race(here, 1, 50, CPUS)
    assert tail.slow_percent(rounds[0][VIP]) < 100 / len(SERVERS)
    section = tail.report(rounds)
    assert first_column(section.parts[1]) == ALL_WAYS
    assert len(section.targets) == 2


@pytest.mark.kernel
def test_clients_of_dead_backends_see_the_end(traffic: Traffic, tmp_path: Path) -> None:
    with stage.cgroup("reaped") as served, stage.dataplane(served, [], tmp_path) as plane:
        rounds = reap.race(traffic, plane, 2, clients=2, each=40)
    for found in rounds.values():
        for one in found:
            assert (one.idle.report.checked, one.idle.report.dead) == (80, 0)
            assert 0 < one.dead.report.ended < 80
            assert one.dead.seen_seconds > 0
    section = reap.report(rounds)
    assert len(first_column(section.parts[1])) == 4
    assert len(section.targets) == 2


@pytest.mark.kernel
def test_looks_and_starts_are_timed(tmp_path: Path) -> None:
    attached, audits = upkeep.looks(tmp_path, 3)
    assert len(attached) == len(audits) == 3
    loads, again = [upkeep.load(tmp_path)], upkeep.open_again(tmp_path, 2)
    assert loads[0].cpu_seconds > again[0].cpu_seconds > 0
    section = upkeep.report(attached, audits, loads, again)
    assert len(section.targets) == 2


@pytest.mark.kernel
def test_many_vips_and_a_large_one_are_written(traffic: Traffic, tmp_path: Path) -> None:
    with size.desk(tmp_path) as desk:
        full = size.fill(desk, vips=20, each=3, times=2)
        assert desk.plane.kernel.audit().backends == {}
        large = size.enlarge(desk, traffic, big=50, rounds=2, connections=300)
        assert len(desk.plane.state.backends) == 50 + size.SMALL
    assert all(step.ops >= 20 * 3 for step in full.fills)
    assert large.reached > 45
    section = size.report(full, large)
    _, writes, _, compared = section.parts
    assert [len(first_column(table)) for table in (writes, compared)] == [4, 2]
    assert len(section.targets) == 1


@pytest.mark.kernel
@pytest.mark.timeout(180)
def test_the_kernel_counts_one_run_of_connect4_for_each_connection(
    traffic: Traffic, tmp_path: Path
) -> None:
    with (
        traffic.serving(SERVERS, [HERE]),
        programs.cases(tmp_path, vip_count=32) as cases,
        programs.counting(),
    ):
        times = {name: programs.run_case(traffic, cases[name], 100, CPUS[0]) for name in cases}
    assert [time["connect4"].runs for time in times.values()] == [100] * len(cases)
    section = programs.report([times])
    assert first_column(section.parts[1]) == list(cases)
    assert len(section.targets) == 2


@pytest.mark.kernel
def test_listening_is_compared_with_not_listening(traffic: Traffic, tmp_path: Path) -> None:
    with traffic.serving(SERVERS, [HERE]), events.stand(tmp_path) as (plane, reader):
        rounds = events.race(traffic, plane, reader, 2, 100, CPUS[0])
    assert [turn.connect4.runs for turns in rounds for turn in turns.values()] == [100] * 4
    section = events.report(rounds)
    assert first_column(section.parts[1]) == [events.QUIET, events.HEARD]
    assert len(section.targets) == 3


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


@pytest.mark.kernel
@pytest.mark.timeout(180)
def test_agents_come_and_go_under_load(tmp_path: Path) -> None:
    with upgrade.stand(tmp_path, CPUS) as here:
        found = upgrade.legs(here, tmp_path, 0.2)
        section = upgrade.report(found, *upgrade.cycles(here, 3, 0.2))
    assert len(found[upgrade.QUIET].takeovers) == 0
    assert all(len(found[name].takeovers) > 0 for name in found if name != upgrade.QUIET)
    _, calls, _, answers, _ = section.parts
    assert first_column(calls)[:-1] == first_column(answers) == list(found)
    assert len(section.targets) == 3
