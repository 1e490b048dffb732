"""Connections while the VIPs change under them: real sockets, real backends."""

from __future__ import annotations

import subprocess
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from minuteman.model import Endpoint, Tier
from tests.kernel.conftest import Backends, Inside, Kernel, frontend, ports, who_answers

VIP = "1.2.3.4"
PORT = 5000


@pytest.mark.parametrize(
    ("address", "vip", "host"),
    [(VIP, VIP, "127.0.0.1"), (f"::ffff:{VIP}", VIP, "127.0.0.1"), ("fd00::7", "fd00::7", "::1")],
)
def test_every_backend_is_reached(
    address: str,
    vip: str,
    host: str,
    kernel: Kernel,
    backends: Backends,
    cgroup: Path,
    inside: Inside,
) -> None:
    members = [backends.listen(host) for _ in range(3)]
    kernel.serve(frontend(vip, PORT), [(member, Tier.UP) for member in members])
    with inside(cgroup):
        assert {who_answers(address, PORT) for _ in range(100)} == ports(members)


def test_a_swap_under_load_shows_the_old_or_the_new_set_and_nothing_else(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside
) -> None:
    old = [backends.listen() for _ in range(3)]
    new = [backends.listen() for _ in range(3)]
    other = backends.listen()
    vip, neighbour = frontend(VIP, PORT), frontend(VIP, PORT + 1)
    sets = [old, new]
    kernel.serve(vip, [(member, Tier.UP) for member in old])
    with inside(cgroup):
        for turn in range(150):
            # The neighbour takes over what the last swap has freed.
            kernel.serve(neighbour, [(other, Tier.UP)] * 3)
            wanted = sets[(turn + 1) % 2]
            kernel.serve(vip, [(member, Tier.UP) for member in wanted])
            assert who_answers(VIP, PORT) in ports(wanted)
    assert kernel.dataplane.counters().reasons["refused_torn"] == 0


def test_no_connection_fails_while_another_process_swaps(
    kernel: Kernel, backends: Backends, cgroup: Path, inside: Inside, tmp_path: Path
) -> None:
    old = [backends.listen() for _ in range(3)]
    new = [backends.listen() for _ in range(3)]
    vip = frontend(VIP, PORT)
    kernel.serve(vip, [(member, Tier.UP) for member in old])
    allowed = sorted(ports(old) | ports(new))
    prober = (
        "import socket, sys\n"
        f"allowed = set({allowed})\n"
        "print('ready', flush=True)\n"
        "for n in range(3000):\n"
        f"    with socket.create_connection(('{VIP}', {PORT}), 5) as s:\n"
        "        port = int.from_bytes(s.recv(2, socket.MSG_WAITALL), 'big')\n"
        "        assert port in allowed, port\n"
    )
    with inside(cgroup):
        child = subprocess.Popen(
            ["/usr/bin/python3", "-c", prober], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    swaps = 0
    deadline = time.monotonic() + 50
    while child.poll() is None and time.monotonic() < deadline:
        members = (new, old)[swaps % 2]
        kernel.serve(vip, [(member, Tier.UP) for member in members])
        swaps += 1
    _, errors = child.communicate()
    assert child.returncode == 0, errors.decode()
    assert swaps > 50
    assert kernel.dataplane.counters().reasons["translated"] >= 3000


def test_no_stress_of_the_maps_leads_astray(kernel: Kernel, cgroup: Path, inside: Inside) -> None:
    """Two VIPs are swapped and others come and go, all the time, while one is connected to."""
    for address in ("10.1.1.1", "10.1.1.2"):
        subprocess.run(["ip", "addr", "replace", f"{address}/32", "dev", "lo"], check=True)
    ours, theirs = (
        Endpoint(ip_address(address).packed, 9, "udp") for address in ("10.1.1.1", "10.1.1.2")
    )
    vip, neighbour = frontend("10.9.9.1", 80, "udp"), frontend("10.9.9.2", 80, "udp")
    passing = [frontend(f"10.9.8.{i}", 80, "udp") for i in range(8)]
    kernel.serve(vip, [(ours, Tier.UP)])
    kernel.serve(neighbour, [(theirs, Tier.UP)])
    prober = (
        "import socket\n"
        "print('ready', flush=True)\n"
        "for _ in range(250_000):\n"
        "    with socket.socket(type=socket.SOCK_DGRAM) as sock:\n"
        "        sock.connect(('10.9.9.1', 80))\n"
        "        assert sock.getsockname()[0] == '10.1.1.1', sock.getsockname()\n"
    )
    with inside(cgroup):
        child = subprocess.Popen(
            ["/usr/bin/python3", "-c", prober], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    changes = 0
    while child.poll() is None:
        kernel.serve(vip, [(ours, Tier.UP)])
        kernel.serve(neighbour, [(theirs, Tier.UP)])
        other = passing[changes % len(passing)]
        if other in kernel.state.frontends:
            kernel.drop(other)
        else:
            kernel.serve(other, [(theirs, Tier.UP)])
        changes += 3
    _, errors = child.communicate()
    assert child.returncode == 0, errors.decode()
    assert changes > 1000
    reasons = kernel.dataplane.counters().reasons
    assert reasons["translated"] == 250_000
    assert reasons["refused_torn"] == 0
