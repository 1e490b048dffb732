"""`minuteman conns`: the connections through VIPs that there are on this host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from minuteman import capabilities
from minuteman.cli.client import NotFoundError, Rest, decode
from minuteman.cli.options import Api, Bpffs, Config
from minuteman.cli.output import lines, print_lines
from minuteman.cli.text import age, duration, host_port, size
from minuteman.errors import MinutemanError, PrivilegeError
from minuteman.model import Frontend

if TYPE_CHECKING:
    from minuteman.dataplane.live import Connection, Given

COLUMNS = ("Protocol", "Client", "VIP", "Backend", "State", "Network")
NUMBERS = ("Age", "Sent", "Received", "Resent", "RTT")


class NamedVip(msgspec.Struct, frozen=True):
    """What is of use here of `api.schemas.Vip`."""

    protocol: str
    port: int
    names: tuple[str, ...]
    addresses: tuple[str, ...]


class NamedVips(msgspec.Struct, frozen=True):
    """Likewise of `api.schemas.VipList`."""

    vips: tuple[NamedVip, ...]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which connections to show, and what their VIPs are called."""

    vip: str
    backend: str
    names: Mapping[tuple[str, str, int], str] = field(default_factory=dict)
    """By protocol, address and port."""

    def wants(self, given: Given) -> bool:
        """Whether a socket that was given this is to be shown."""
        backend = host_port(str(given.backend.address), given.backend.port)
        return self.backend in backend and (
            self.vip in host_port(str(given.vip.address), given.vip.port)
            or self.vip in self.name_of(given.vip)
        )

    def name_of(self, vip: Frontend) -> str:
        """The name with its port; empty: it has none, or none is known."""
        name = self.names.get((vip.transport, str(vip.address), vip.port))
        return f"{name}:{vip.port}" if name else ""


def conns(
    config: Config = None,
    vip: Annotated[str, typer.Option(help="Only VIPs with this in their name or address.")] = "",
    backend: Annotated[str, typer.Option(help="Only backends with this in their address.")] = "",
    bpffs: Bpffs = None,
    api: Api = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List the connections through VIPs, in every network namespace of this host.

    It needs root, and no agent; one that runs tells the names of the VIPs. A UDP socket is listed
    when it is connected.
    """
    from minuteman.agent import pin_root  # here: see minuteman.cli
    from minuteman.dataplane.live import Survey
    from minuteman.dataplane.pins import serving
    from minuteman.settings import Settings

    settings = Settings.load(config, bpffs=bpffs, api=api)
    if lacking := capabilities.missing():
        raise PrivilegeError(f"run it as root; missing are {', '.join(lacking)}")
    root = pin_root(settings)
    if (where := serving(root)) is None:
        raise NotFoundError(f"no VIPs are served: no program is attached from {root}")
    shown = Filter(vip.lower(), backend.lower(), names_at(settings.api))
    survey = Survey(where, shown.wants)
    print_lines(
        json_lines(survey.connections(), shown)
        if as_json
        else table_lines(survey.connections(), shown)
    )
    if survey.unfound:
        typer.echo(
            f"{survey.unfound} more sockets were given a backend and are not connected, or out of "
            "sight: in a network that no process is in.",
            err=True,
        )


def names_at(api: str) -> dict[tuple[str, str, int], str]:
    """The names of VIPs by protocol, address and port, of the agent at `api`, if it answers."""
    try:
        found = decode(Rest(api).get("/api/vips"), NamedVips)
    except MinutemanError:
        return {}
    return {
        (vip.protocol, address, vip.port): name
        for vip in found.vips
        for name in vip.names
        for address in vip.addresses
    }


def table_lines(connections: Iterable[Connection], shown: Filter) -> Iterator[str]:
    """The connections as a table, each a line."""
    rows = (_row(connection, shown) for connection in connections)
    if (first := next(rows, None)) is None:
        yield "No connections."
    else:
        yield from lines((*COLUMNS, *NUMBERS, "Name"), chain([first], rows), NUMBERS)


def _row(connection: Connection, shown: Filter) -> tuple[str, ...]:
    traffic = connection.traffic
    return (
        connection.vip.transport,
        host_port(str(connection.client), connection.client_port),
        host_port(str(connection.vip.address), connection.vip.port),
        host_port(str(connection.backend.address), connection.backend.port),
        connection.state,
        connection.network,
        "" if connection.age_seconds is None else age(connection.age_seconds),
        size(traffic.bytes_sent) if traffic else "",
        size(traffic.bytes_received) if traffic else "",
        str(traffic.retransmits) if traffic else "",
        duration(traffic.rtt_us) if traffic and traffic.rtt_us else "",
        shown.name_of(connection.vip),
    )


def json_lines(connections: Iterable[Connection], shown: Filter) -> Iterator[str]:
    """The connections as a list, each object a line."""
    before = "["
    for connection in connections:
        yield before + msgspec.json.encode(_object(connection, shown)).decode()
        before = ","
    yield "[]" if before == "[" else "]"


def _object(connection: Connection, shown: Filter) -> dict[str, object]:
    traffic = connection.traffic
    return {
        "protocol": connection.vip.transport,
        "client": str(connection.client),
        "client_port": connection.client_port,
        "vip": str(connection.vip.address),
        "vip_port": connection.vip.port,
        "name": shown.name_of(connection.vip) or None,
        "backend": str(connection.backend.address),
        "backend_port": connection.backend.port,
        "state": connection.state,
        "network": connection.network,
        "uid": connection.uid,
        "inode": connection.inode,
        "age_seconds": connection.age_seconds,
        "bytes_sent": traffic.bytes_sent if traffic else None,
        "bytes_received": traffic.bytes_received if traffic else None,
        "retransmits": traffic.retransmits if traffic else None,
        "rtt_us": traffic.rtt_us or None if traffic else None,
    }
