"""The bytes in the architecture page are the bytes that the code writes."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from minuteman.dataplane import layout
from minuteman.model import Backend, Endpoint, Frontend, Tier, Vip, VipKey, VipName
from minuteman.names.home import AddressRange
from minuteman.reconcile.kernelstate import KernelState, PutBackend, PutPrefix, SwapVip, WriteRun
from minuteman.reconcile.plan import Ground, Planner

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
NAME = VipName("web", "marathon")
HOME = IPv4Address("11.225.36.193")
FRONTEND = Frontend(HOME, 80, "tcp")
RANGE = IPv4Network("11.0.0.0/8")
CONNECTING = 1
"""Of enum phase, ebpf/maps.h."""
BACKENDS = {"9.0.1.6": 8080, "10.0.0.1": 31001, "10.0.0.2": 31777}


def hex_after(label: str) -> bytes:
    """The bytes that the page shows behind `label`."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^\s+(?:.* )?{re.escape(label)}\s+((?:[0-9a-f]{{2,8}} ?)+)$", text, re.M)
    assert found is not None, label
    return bytes.fromhex(found[1])


def test_the_home_address_is_right() -> None:
    assert AddressRange.parse("11.0.0.0-11.255.255.255").home(NAME) == HOME
    assert f"= {HOME}" in PAGE.read_text(encoding="utf-8")


def test_the_bytes_in_the_maps_are_right() -> None:
    backends = tuple(
        Backend(Endpoint(IPv4Address(host).packed, port, "tcp"), 1, Tier.UP, "marathon", "fw", host)
        for host, port in BACKENDS.items()
    )
    key = VipKey(NAME, 80, "tcp")
    vips = {key: Vip(key, (FRONTEND,), backends)}
    ops = Planner().plan(vips, KernelState(), ground=Ground((RANGE,))).ops
    puts = [op for op in ops if isinstance(op, PutBackend)]
    (run,) = (op for op in ops if isinstance(op, WriteRun))
    (swap,) = (op for op in ops if isinstance(op, SwapVip))
    (prefix,) = (op for op in ops if isinstance(op, PutPrefix))
    assert hex_after("key") == layout.pack_frontend(FRONTEND)
    assert hex_after("value") == layout.PLACE.pack(0)
    parts = (hex_after("turn"), bytes(16), *map(hex_after, ("run", "whose", "sticky")))
    entry = layout.VIP.unpack(b"".join(parts))
    assert entry[:2] == (1, swap.vip_id)
    assert entry[6:10] == (swap.base, *swap.counts)
    assert entry[-1] == swap.affinity_seconds
    assert hex_after("whose") == layout.pack_identity(FRONTEND)
    assert hex_after("slots[0..2]") == b"".join(map(layout.SLOT.pack, run.backend_ids))
    assert puts[1].endpoint.port == 31001
    assert hex_after(f"backends[{puts[1].id}]") == layout.pack_backend(puts[1], epoch=1)
    assert prefix.prefix == RANGE
    assert hex_after("prefix") == layout.pack_prefix(prefix.prefix)
    assert hex_after("owner") == layout.OWNER.pack(prefix.owner)


def test_the_bytes_of_a_connection_are_right() -> None:
    labels = ("asked", "given", "ports", "member", "state", "netns", "since", "cookie")
    asked, given, *rest = layout.CONN.unpack(b"".join(map(hex_after, labels)))
    vip_port, backend_port, backend_id, epoch, proto, phase, *flags, netns, started_ms, cookie = (
        rest
    )
    assert cookie == 298
    assert "conns[298] " in PAGE.read_text(encoding="utf-8")
    assert (layout.unmapped(asked), vip_port) == (HOME.packed, (80).to_bytes(2, "big"))
    assert layout.unmapped(given) == IPv4Address("10.0.0.1").packed
    assert backend_port == BACKENDS["10.0.0.1"].to_bytes(2, "big")
    assert (backend_id, epoch) == (2, 1)
    assert (proto, phase, flags) == (layout.PROTOCOL["tcp"], CONNECTING, [0, 0])
    assert (netns, started_ms) == (1, 10_000)
