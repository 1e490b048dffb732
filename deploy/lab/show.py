"""The sample cluster to look at: VIPs, what is behind them, and who answers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Self

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from api import schemas
from lab import orders
from lab.cluster import Cluster, target_of
from lab.load import Load
from lab.wait import LabError
from minuteman.cli.text import host_port
from minuteman.model import VIP_DOMAIN

PAUSE_SECONDS = 0.1
"""Between two requests to one VIP."""
REMEMBERED = 100
"""Answers of a VIP that its shares are counted from."""
REFRESH_PER_SECOND = 4
SHARES_EVERY = 20
"""Without a terminal, who answered is told less often."""
BAR_WIDTH = 15
STYLES = {"up": "green", "maybe": "yellow", "draining": "magenta", "ejected": "red"}

PLAY = """\
From another terminal:
  deploy/run exec curl http://1.2.3.4:5000/
  deploy/run exec minuteman vips
  deploy/run scale web 5
  deploy/run kill web.instance-...
REST, as a client inside: http://127.0.0.1:62080/docs    Ctrl-C ends all of it"""


class Display:
    """What is shown, and the requests that give it something to show."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._loads: dict[tuple[str, str], Load] = {}
        """By VIP and protocol."""
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        for vip in self._cluster.agent.vips():
            load = Load(
                self._cluster.served,
                target_of(vip),
                pause_seconds=PAUSE_SECONDS,
                remembered=REMEMBERED,
            )
            self._loads[vip.vip, vip.protocol] = self._ending.enter_context(load)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def vips(self) -> tuple[schemas.Vip, ...]:
        """What the agent says; nothing while it does not answer."""
        try:
            return self._cluster.agent.vips()
        except LabError:
            return ()

    def health(self) -> str:
        """One line."""
        try:
            health = self._cluster.agent.health()
        except httpx.HTTPError as error:
            return f"the agent does not answer: {error}"
        reasons = f": {'; '.join(health.reasons)}" if health.reasons else ""
        problems = f", problems: {health.problems}" if health.problems else ""
        return f"{health.status}{reasons}, generation {health.generation}{problems}"

    def problems(self) -> list[str]:
        """What the agent skipped, a line each."""
        try:
            return [
                f"{problem.where}: {problem.reason}" for problem in self._cluster.agent.problems()
            ]
        except LabError:
            return []

    # ---- for a terminal -----------------------------------------------------------------------
    def __rich__(self) -> RenderableType:
        return Group(
            Text.assemble(("Minuteman: ", "bold"), self.health()),
            *(Text(f"  {problem}", "yellow") for problem in self.problems()),
            self._table(),
        )

    def _table(self) -> Table:
        table = Table(box=SIMPLE_HEAD)
        for title in ("VIP", "address", "backend", "task", "tier", "last requests"):
            table.add_column(title, no_wrap=True)
        for vip in self.vips():
            for row in self._rows(vip):
                table.add_row(*row)
        return table

    def _rows(self, vip: schemas.Vip) -> Iterator[tuple[RenderableType, ...]]:
        load = self._loads.get((vip.vip, vip.protocol))
        answers = load.answers() if load else []
        shares = Counter(answer.task_id for answer in answers)
        name = f"{vip.protocol} {vip.vip.replace(f'.{VIP_DOMAIN}', '')}"
        heads = (Text(name, "bold"), ", ".join(vip.addresses))
        if not vip.backends:
            yield *heads, "", "", Text("refuses", "red"), Text(answers[-1].error if answers else "")
        for position, backend in enumerate(vip.backends):
            yield (
                *(heads if position == 0 else ("", "")),
                host_port(backend.address, backend.port),
                short_id(backend.task_id),
                Text(state(backend), STYLES[state(backend)]),
                _bar(shares[backend.task_id], len(answers)),
            )

    # ---- for a file or a pipe -----------------------------------------------------------------
    def lines(self) -> list[str]:
        """A line for each VIP with its backends, without what changes by itself."""
        lines = [self.health(), *self.problems()]
        for vip in self.vips():
            backends = ", ".join(
                f"{short_id(backend.task_id)} {host_port(backend.address, backend.port)} "
                f"{state(backend)}"
                for backend in vip.backends
            )
            addresses = " ".join(vip.addresses)
            lines.append(f"{vip.protocol} {vip.vip} {addresses}: {backends or 'refuses'}")
        return lines

    def shares(self) -> list[str]:
        """A line for each VIP with how often each task answered of late."""
        lines = []
        for (vip, protocol), load in self._loads.items():
            counted = Counter(short_id(answer.task_id) or answer.error for answer in load.answers())
            shown = ", ".join(f"{who} {times}" for who, times in sorted(counted.items()))
            lines.append(f"{protocol} {vip} was answered by: {shown}")
        return lines


def show(cluster: Cluster) -> None:
    """Show the cluster, and follow orders, until a signal ends it."""
    cluster.agent.wait_healthy()
    console = Console()
    with Display(cluster) as display, orders.listen() as listener:
        console.print(PLAY, style="dim", highlight=False)
        shown = _on_terminal(display, console) if console.is_terminal else _as_lines(display)
        with shown:
            while True:
                orders.follow_one(listener, cluster.scheduler)


@contextmanager
def _on_terminal(display: Display, console: Console) -> Iterator[None]:
    with Live(display, console=console, refresh_per_second=REFRESH_PER_SECOND):
        yield


@contextmanager
def _as_lines(display: Display) -> Iterator[None]:
    """Print what is new, until the block ends."""
    ended = threading.Event()

    def print_news() -> None:
        shown: set[str] = set()
        for turn in count(1):
            lines = display.lines()
            news = [line for line in lines if line not in shown]
            if turn % SHARES_EVERY == 0:
                news.extend(display.shares())
            for line in news:
                print(line, flush=True)
            shown = set(lines)
            if ended.wait(1 / REFRESH_PER_SECOND):
                return

    printer = threading.Thread(target=print_news, name="show")
    printer.start()
    try:
        yield
    finally:
        ended.set()
        printer.join()


def state(backend: schemas.Backend) -> str:
    """Its tier, or `ejected`."""
    return "ejected" if backend.ejected else backend.tier


def short_id(task_id: str) -> str:
    """`web.instance-1b2c3d4e` of a task id: enough to tell tasks apart, and for `kill`."""
    before, _, uuid = task_id.partition(".instance-")
    return f"{before}.instance-{uuid.partition('-')[0]}" if uuid else task_id


def _bar(part: int, whole: int) -> str:
    share = part / whole if whole else 0
    return f"{'█' * round(BAR_WIDTH * share):<{BAR_WIDTH}} {share:>4.0%}"
