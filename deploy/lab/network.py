"""The network of the sample cluster: hosts and containers as network namespaces.

    this namespace    the host under test: ZooKeeper (on loopback), the agent, clients
    ├─ cluster        a bridge, 10.77.0.1/24, 9.0.0.1/16 and fd01:b::1/64
    │  ├─ host1       10.77.0.11, a host of Mesos: tasks on the host and on a bridge network
    │  ├─ host2       10.77.0.12
    │  ├─ 9.0.1.2     one for each container that has an address of its own
    │  └─ fd01-b--2   the same of IPv6, here fd01:b::2
    └─ deadend        the default route: what nobody translated is counted there and goes nowhere

Nothing leaves: the far end of `deadend` lies in a namespace without a route. What is built here
lives in the network namespace of the caller, which must have no way out of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

BRIDGE = "cluster"
BRIDGE_HOST = IPv4Address("10.77.0.1")
HOST_PREFIX = 24
CONTAINER_NETWORKS: Mapping[str, IPv4Network | IPv6Network] = {
    "overlay": IPv4Network("9.0.0.0/16"),
    "overlay6": IPv6Network("fd01:b::/64"),
}
"""By the names that apps know. The first address of each is the bridge's."""
DEADEND = "deadend"
HOSTS = {"host1": IPv4Address("10.77.0.11"), "host2": IPv4Address("10.77.0.12")}


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace with one address."""

    name: str
    address: IPv4Address | IPv6Address

    def command(self, *words: str) -> list[str]:
        """`words` as a command that runs in there."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *words]


class Network:
    """Built by `open`, taken away whole by `close`."""

    def __init__(self) -> None:
        self._namespaces: list[str] = []
        self._links: list[str] = []
        self.hosts: tuple[Namespace, ...] = ()

    def open(self) -> None:
        """Build the bridge, the dead end and the hosts of Mesos."""
        if _ip("route", "show", "default"):
            raise RuntimeError("there is a way out of here: run this in deploy/lab/sandbox.py")
        self._build_deadend()
        self._add_link(f"{BRIDGE} type bridge")
        _batch(
            _add_address(BRIDGE, BRIDGE_HOST, HOST_PREFIX),
            *(
                _add_address(BRIDGE, network[1], network.prefixlen)
                for network in CONTAINER_NETWORKS.values()
            ),
            f"link set {BRIDGE} up",
            f"route add default dev {DEADEND} src {BRIDGE_HOST}",
        )
        self.hosts = tuple(
            self._plug_in(Namespace(name, address), HOST_PREFIX, BRIDGE_HOST)
            for name, address in HOSTS.items()
        )

    def add_container(self, network_name: str, offset: int) -> Namespace:
        """A namespace for one container: it has that address of the network."""
        network = CONTAINER_NETWORKS[network_name]
        address = network[offset]
        # An interface's name has at most 15 characters, and no colon among them.
        namespace = Namespace(str(address).replace(":", "-"), address)
        return self._plug_in(namespace, network.prefixlen, network[1])

    def remove(self, namespace: Namespace) -> None:
        """Take a container's namespace away, with its interface."""
        _batch(f"link delete {namespace.name}", f"netns delete {namespace.name}")
        self._links.remove(namespace.name)
        self._namespaces.remove(namespace.name)

    def packets_escaped(self) -> int:
        """How many packets took the default route so far. Source: /proc/net/dev."""
        for line in Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == DEADEND:
                return int(counts.split()[9])
        raise RuntimeError(f"there is no {DEADEND}: the network is not open")

    def close(self) -> None:
        """Take everything away; may be called twice."""
        # Links too: the kernel takes a namespace apart later, and its interfaces with it.
        _batch(
            *(f"link delete {name}" for name in self._links),
            *(f"netns delete {name}" for name in self._namespaces),
        )
        self._links.clear()
        self._namespaces.clear()
        self.hosts = ()

    def _build_deadend(self) -> None:
        self._add_namespace(DEADEND)
        self._add_link(f"{DEADEND} type veth peer name end netns {DEADEND}")
        # Without ARP a packet is sent, and counted, though nobody is there. Without IPv6 nothing
        # else is.
        _silence_ipv6(DEADEND)
        _batch(f"link set {DEADEND} arp off up")
        _batch("link set end up", namespace=DEADEND)

    def _plug_in(
        self, namespace: Namespace, prefix: int, gateway: IPv4Address | IPv6Address
    ) -> Namespace:
        """Connect a new namespace to the bridge."""
        port = namespace.name
        self._add_namespace(namespace.name)
        self._add_link(f"{port} type veth peer name eth0 netns {namespace.name}")
        _silence_ipv6(port)
        _batch(f"link set {port} master {BRIDGE} up")
        _batch(
            "link set lo up",
            _add_address("eth0", namespace.address, prefix),
            "link set eth0 up",
            f"route add default via {gateway}",
            namespace=namespace.name,
        )
        return namespace

    def _add_link(self, description: str) -> None:
        """Make an interface; `description` begins with its name."""
        _batch(f"link add {description}")
        self._links.append(description.split()[0])

    def _add_namespace(self, name: str) -> None:
        _batch(f"netns add {name}")
        self._namespaces.append(name)


def _silence_ipv6(interface: str) -> None:
    """Keep router solicitations and the like off an interface that is not up yet."""
    switch = Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6")
    if switch.exists():
        switch.write_text("1", encoding="ascii")


def _add_address(interface: str, address: IPv4Address | IPv6Address, prefix: int) -> str:
    """A line of ip(8). Without `nodad` an IPv6 address is not in use for its first second."""
    option = " nodad" if address.version == 6 else ""
    return f"address add {address}/{prefix} dev {interface}{option}"


def _batch(*lines: str, namespace: str = "") -> None:
    """Run lines of ip(8) in one process, in `namespace` or here."""
    where = ["-netns", namespace] if namespace else []
    subprocess.run(
        ["ip", *where, "-batch", "-"],
        input="".join(f"{line}\n" for line in lines),
        encoding="ascii",
        check=True,
    )


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, check=True, text=True).stdout
