"""The bytes in the architecture page are the bytes that the code writes."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from pathlib import Path

from minuteman.dataplane import layout
from minuteman.model import Backend, Endpoint, Frontend, Tier, Vip, VipKey, VipName
from minuteman.names.home import AddressRange
from minuteman.reconcile.kernelstate import KernelState, PutBackend, SwapVip, WriteRun
from minuteman.reconcile.plan import Planner

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
NAME = VipName("web", "marathon")
HOME = IPv4Address("11.225.36.193")
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


def test_the_bytes_are_right() -> None:
    frontend = Frontend(HOME, 80, "tcp")
    backends = tuple(
        Backend(Endpoint(IPv4Address(host).packed, port, "tcp"), 1, Tier.UP, "marathon", "fw", host)
        for host, port in BACKENDS.items()
    )
    key = VipKey(NAME, 80, "tcp")
    ops = Planner().plan({key: Vip(key, (frontend,), backends)}, KernelState()).ops
    puts = [op for op in ops if isinstance(op, PutBackend)]
    (run,) = (op for op in ops if isinstance(op, WriteRun))
    (swap,) = (op for op in ops if isinstance(op, SwapVip))
    assert hex_after("key") == layout.pack_frontend(frontend)
    assert hex_after("value") == layout.PLACE.pack(0)
    entry = hex_after("turn") + bytes(16) + hex_after("run") + hex_after("whose") + bytes(4)
    assert layout.VIP.unpack(entry)[6:10] == (swap.base, *swap.counts)
    assert layout.VIP.unpack(entry)[:2] == (1, swap.vip_id)
    assert hex_after("whose") == layout.pack_identity(frontend)
    assert hex_after("slots[0..2]") == b"".join(map(layout.SLOT.pack, run.backend_ids))
    assert puts[1].endpoint.port == 31001
    assert hex_after(f"backends[{puts[1].id}]") == layout.pack_backend(puts[1], epoch=1)
