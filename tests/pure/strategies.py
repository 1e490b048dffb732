"""Values of the model for hypothesis, from a world so small that they meet."""

from ipaddress import IPv4Address, IPv6Address
from itertools import chain

from hypothesis import strategies as st

from minuteman.model import (
    Address,
    Problem,
    Task,
    TaskPort,
    Transport,
    Unit,
    UnitId,
    VipClaim,
    VipKey,
    VipName,
)

ports = st.integers(1, 65_535)
transports: st.SearchStrategy[Transport] = st.sampled_from(("tcp", "udp"))

_labels = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
_dotted = st.lists(_labels, min_size=1, max_size=4).map(".".join)


def vip_names() -> st.SearchStrategy[VipName]:
    """Any normalised name that fits into DNS."""
    return st.builds(VipName, _dotted, _labels)


literal_addresses: st.SearchStrategy[Address] = st.ip_addresses().filter(
    lambda address: address.version == 4 or address.ipv4_mapped is None
)


# ---- a small world ------------------------------------------------------------------------------
AGENTS: tuple[Address, ...] = (
    IPv4Address("10.0.0.1"),
    IPv4Address("10.0.0.2"),
    IPv6Address("fd00::a"),
)
CONTAINERS: tuple[Address, ...] = (IPv4Address("9.0.0.1"), IPv6Address("fd00::1"))
NAMES = (VipName("web", "marathon"), VipName("db", "kafka"))
LITERALS: tuple[Address, ...] = (IPv4Address("1.2.3.4"), IPv6Address("fd02::4"), AGENTS[1])

vip_keys = st.builds(
    VipKey, st.sampled_from((*NAMES, *LITERALS)), st.sampled_from((80, 80, 443)), st.just("tcp")
)
vip_claims = st.builds(
    VipClaim,
    vip_keys,
    weight=st.sampled_from((1, 1, 0, 7)),
    affinity_seconds=st.sampled_from((0, 9)),
)
task_ports = st.builds(
    TaskPort,
    st.sampled_from(("tcp", "tcp", "tcp", "udp")),
    st.sampled_from((8080, 31001)),
    st.sampled_from(("host", "host", "container")),
    container_port=st.sampled_from((None, 0, 8080)),
    claims=st.lists(vip_claims, max_size=2).map(tuple),
)
tasks = st.builds(
    Task,
    framework_id=st.just("f1"),
    id=st.sampled_from(("t1", "t2", "t3", "t4", "t5")),
    framework=st.sampled_from(("marathon", "kafka")),
    name=st.just("task"),
    agent_id=st.just("a1"),
    agent_ip=st.sampled_from((AGENTS[0], *AGENTS, None)),
    ips=st.lists(st.sampled_from((*CONTAINERS, AGENTS[0])), max_size=3).map(tuple),
    state=st.sampled_from(("running", "running", "starting", "killing", "unreachable")),
    healthy=st.sampled_from((None, True, False)),
    ports=st.lists(task_ports, max_size=3).map(tuple),
)
problems = st.builds(Problem, st.just("znode"), st.just("task"), st.just("field"), st.text("ab"))


def units(unit_id: UnitId) -> st.SearchStrategy[Unit]:
    """What a unit of this id may be."""
    return st.builds(
        Unit,
        id=st.just(unit_id),
        revision=st.integers(1, 9),
        tasks=st.lists(tasks, max_size=2).map(tuple),
        declares=st.lists(vip_claims, max_size=1).map(tuple),
        problems=st.lists(problems, max_size=1).map(tuple),
    )


def contenders(unit_id: UnitId) -> st.SearchStrategy[Unit]:
    """Units of at most one task, all of which claim the same few endpoints and VIPs."""
    claims = st.sampled_from(((), NAMES[:1], NAMES[:1], NAMES)).map(
        lambda names: tuple(VipClaim(VipKey(name, 80, "tcp")) for name in names)
    )
    listening = [
        st.builds(TaskPort, st.just("tcp"), st.just(number), st.just("host"), claims=claims)
        for number in (1, 2, 3)
    ]
    task = st.builds(
        Task,
        framework_id=st.just("f1"),
        id=st.just(f"task of {unit_id}"),
        framework=st.just("marathon"),
        name=st.just("task"),
        agent_id=st.just("a1"),
        agent_ip=st.just(AGENTS[0]),
        ips=st.just(()),
        state=st.sampled_from(("running", "running", "unreachable")),
        healthy=st.none(),
        ports=st.tuples(*(st.lists(one, max_size=1) for one in listening)).map(
            lambda ports: tuple(chain.from_iterable(ports))
        ),
    )
    return st.builds(
        Unit,
        id=st.just(unit_id),
        revision=st.integers(1, 9),
        tasks=st.just(()) | st.tuples(task) | st.tuples(task),
    )
