"""What a VIP is compared with: nftables' DNAT, and HAProxy in TCP mode."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.stage import Seat, set_sysctls

START_SECONDS = 10.0
TABLE = "minuteman_bench"


@contextmanager
def nftables(vip: str, servers: Sequence[str]) -> Iterator[None]:
    """A DNAT rule for TCP and UDP of this network namespace to `vip`, an ADDRESS:PORT.

    It brings connection tracking along, which every other connection would pay for as well.
    """
    address, _, port = vip.partition(":")
    choices = ", ".join(f"{i} : {server.replace(':', ' . ')}" for i, server in enumerate(servers))
    _nft(f"""
        table ip {TABLE} {{
            chain output {{
                type nat hook output priority -100
                ip daddr {address} meta l4proto {{ tcp, udp }} th dport {port} \\
                    dnat ip to numgen random mod {len(servers)} map {{ {choices} }}
            }}
        }}
        """)
    # The table of connections shall not fill up with those that ended.
    timeouts = ("close", "close_wait", "fin_wait", "last_ack", "time_wait")
    set_sysctls({f"netfilter/nf_conntrack_tcp_timeout_{state}": "1" for state in timeouts})
    # Without a route connect() fails before the rule is asked.
    _ip("route", "add", f"{address}/32", "dev", "lo", "src", "127.0.0.1")
    try:
        yield
    finally:
        _ip("route", "delete", f"{address}/32", "dev", "lo")
        _nft(f"delete table ip {TABLE}\n")


@contextmanager
def haproxy(vip: str, servers: Sequence[str], seat: Seat, folder: Path) -> Iterator[None]:
    """HAProxy listening at `vip`, an ADDRESS:PORT, with a thread for each core of `seat`."""
    config = folder / "haproxy.cfg"
    listed = "\n".join(f"    server s{i} {server}" for i, server in enumerate(servers))
    config.write_text(
        f"""\
global
    nbthread {len(seat.cpus)}
    maxconn 2000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen vip
    bind {vip}
    balance random
{listed}
""",
        encoding="ascii",
    )
    proxy = subprocess.Popen(
        ["haproxy", "-db", "-q", "-f", config], stdin=subprocess.DEVNULL, preexec_fn=seat.take
    )
    try:
        _wait_for(vip, proxy)
        yield
    finally:
        proxy.kill()
        proxy.wait()


def _wait_for(listener: str, server: subprocess.Popen[bytes]) -> None:
    """Return when `server` listens at ADDRESS:PORT. Errors: OSError."""
    address, _, port = listener.partition(":")
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((address, int(port))).close()
        except ConnectionRefusedError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
