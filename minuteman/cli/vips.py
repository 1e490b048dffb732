"""`minuteman vips`, `minuteman vip`, `minuteman problems`: what the running agent knows."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated
from urllib.parse import quote

import typer

from api import schemas
from minuteman.cli.client import Rest, decode
from minuteman.cli.output import console, table
from minuteman.cli.text import connect_time, host_port, size

DEFAULT_API = "127.0.0.1:62080"
HEALTH = {True: "healthy", False: "not healthy", None: "not checked"}

Api = Annotated[
    str,
    typer.Option("--api", envvar="MINUTEMAN_API", help="Where the agent's REST interface listens."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer of the REST interface.")]


class Protocol(StrEnum):
    """As `--protocol` takes it."""

    TCP = "tcp"
    UDP = "udp"


def vips(
    api: Api = DEFAULT_API,
    name: Annotated[str, typer.Option(help="Only VIPs with this in their name or address.")] = "",
    protocol: Annotated[Protocol | None, typer.Option(help="Only VIPs of this protocol.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the VIPs of this host, backends and connections.

    What a TCP connection has sent and received is added when it closes.
    """
    rest = Rest(api)
    query = {"name": name} | ({"protocol": protocol.value} if protocol else {})
    body = rest.get("/api/vips", query)
    if as_json:
        typer.echo(body)
        return
    _print_vips(decode(body, schemas.VipList))
    _warn(rest.health())


def vip(
    vip: Annotated[
        str, typer.Argument(help="host:port; a name such as web.marathon:80, or an address.")
    ],
    api: Api = DEFAULT_API,
    protocol: Annotated[Protocol, typer.Option(help="Protocol of the VIP.")] = Protocol.TCP,
    as_json: AsJson = False,
) -> None:
    """Show one VIP with its backends."""
    body = Rest(api).get(f"/api/vips/{protocol.value}/{quote(vip, safe='[]:')}")
    if as_json:
        typer.echo(body)
        return
    _print_vip(decode(body, schemas.Vip))


def problems(api: Api = DEFAULT_API, as_json: AsJson = False) -> None:
    """List what was skipped or refused, and why."""
    body = Rest(api).get("/api/problems")
    if as_json:
        typer.echo(body)
        return
    shown = table("Where", "Subject", "Field", "Reason")
    for problem in decode(body, schemas.ProblemList).problems:
        shown.add_row(problem.where, problem.subject, problem.field, problem.reason)
    console().print(shown if shown.row_count else "No problems.")


def _print_vips(found: schemas.VipList) -> None:
    tiers = ("Up", "Maybe", "Draining", "Ejected")
    numbers = (*tiers, "Active", "Attempts", "OK", "Failed", "Sent", "Received")
    shown = table("VIP", "Protocol", "Addresses", "Affinity", *numbers, numbers=numbers)
    for vip in found.vips:
        members = [backend.tier for backend in vip.backends]
        counters = [backend.counters for backend in vip.backends]
        shown.add_row(
            vip.vip,
            vip.protocol,
            " ".join(vip.addresses),
            affinity(vip),
            *(str(members.count(tier)) for tier in ("up", "maybe", "draining")),
            str(sum(backend.ejected for backend in vip.backends)),
            str(sum(counted.active for counted in counters)),
            str(sum(counted.attempts for counted in counters)),
            str(sum(counted.successes for counted in counters)),
            str(sum(counted.failures for counted in counters)),
            size(sum(counted.bytes_sent for counted in counters)),
            size(sum(counted.bytes_received for counted in counters)),
        )
    console().print(shown if shown.row_count else "No VIPs.")


def _print_vip(vip: schemas.Vip) -> None:
    out = console()
    out.print(f"{vip.protocol} {vip.vip}")
    out.print(f"addresses  {' '.join(vip.addresses) or 'none'}")
    out.print(f"framework  {vip.framework or 'unknown'}")
    if vip.affinity_seconds:
        out.print(f"affinity   {affinity(vip)}")
    connects = ("Weight", "Active", "Attempts", "OK", "Failed", "p50", "p99")
    numbers = (*connects, "Sent", "Received", "Resent")
    shown = table("Backend", "Tier", "Task", "State", "Health", "Agent", *numbers, numbers=numbers)
    for backend in vip.backends:
        counted = backend.counters
        shown.add_row(
            host_port(backend.address, backend.port),
            f"{backend.tier}, ejected" if backend.ejected else backend.tier,
            backend.task_id,
            backend.task_state or "unknown",
            HEALTH[backend.healthy],
            backend.agent_address or backend.agent_id,
            str(backend.weight),
            str(counted.active),
            str(counted.attempts),
            str(counted.successes),
            str(counted.failures),
            connect_time(counted.connect_log2_us, 0.50),
            connect_time(counted.connect_log2_us, 0.99),
            size(counted.bytes_sent),
            size(counted.bytes_received),
            str(counted.retransmits),
        )
    out.print(shown if shown.row_count else "No backend: it refuses connections.")


def affinity(vip: schemas.Vip) -> str:
    """How long a client keeps its backend, `300s`; empty when it does not."""
    return f"{vip.affinity_seconds}s" if vip.affinity_seconds else ""


def _warn(health: schemas.Health) -> None:
    for reason in health.reasons:
        typer.echo(f"{health.status}: {reason}", err=True)
