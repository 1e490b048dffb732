"""The control process: it has the capabilities, and no listener but root's own socket.

One thread does everything that changes the kernel. It waits for bells of the sources, for the front
process, for root, and for time, then takes one step of the loop. The other threads only read.

    source threads ──bell──> ┌───────────────┐ <── control.sock (root)
    guard, saver, sweeper    │ Agent: select │ ──feed──> front process
    SIGTERM, SIGINT ───────> └───────────────┘ ──> kernel
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from minuteman import capabilities
from minuteman.barrier import Barrier
from minuteman.control import ControlSocket, Reply, Request
from minuteman.dataplane.cgroup import cgroup2_mount
from minuteman.dataplane.kernel import KernelDataplane
from minuteman.dataplane.pins import Pins, bpffs_mount, serving
from minuteman.dataplane.sockets import set_unreachable
from minuteman.errors import (
    ConfigError,
    ModelError,
    PrivilegeError,
    RunningError,
    SourceError,
)
from minuteman.eventschild import EventsChild
from minuteman.frontchild import FrontChild
from minuteman.guard import Guard
from minuteman.listening import EVENTS, Listening
from minuteman.model import Claims
from minuteman.names.home import HomeBook, Homes
from minuteman.policy import LiteralPolicy
from minuteman.reaper import Reaper
from minuteman.reconcile.loop import Loop
from minuteman.reconcile.plan import Ground
from minuteman.reconcile.store import Saver, Store
from minuteman.settings import Settings
from minuteman.skips import Skips
from minuteman.source.marathon import MarathonSource
from minuteman.sweeper import Sweeper
from minuteman.table import Table
from minuteman.zookeeper.session import Location, parse_url

log = logging.getLogger(__name__)

PINS = "minuteman"
LOCK = "agent.lock"
SNAPSHOT = "snapshot.jsonl"
SKIPS = "skips"
CONTROL = "control.sock"
FRONT = (sys.executable, "-P", "-m", "minuteman.front")


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; returns 0. When it ends, programs and maps stay and serve.

    Errors: MinutemanError when it cannot start; then nothing is attached that was not before.
    """
    start_logging(settings)
    check_capabilities()
    threading.excepthook = end_process
    gc.disable()  # what is read at the start is there to stay
    with ExitStack() as stack:
        stack.enter_context(locked(settings.state_dir))
        Agent(settings, stack).serve()
    log.info("agent stopped")
    return os.EX_OK


def detach_all(settings: Settings) -> None:
    """Remove every program, link, map, pin, route and socket of ours, of any version.

    Errors: RunningError while an agent runs, DataplaneError.
    """
    start_logging(settings)
    check_capabilities()
    with locked(settings.state_dir):
        try:
            kernel(settings).remove()
        finally:
            set_unreachable(())
        (settings.state_dir / CONTROL).unlink(missing_ok=True)  # of one that was killed


def start_logging(settings: Settings) -> None:
    """Lines to standard error: an event, then key=value."""
    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(level=settings.log_level.upper(), format=form)


def end_process(ended: threading.ExceptHookArgs) -> None:
    """End the agent with the thread that did: half of it would serve stale facts as fresh ones."""
    error = (ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback)
    log.critical("thread failed name=%s", ended.thread and ended.thread.name, exc_info=error)
    logging.shutdown()
    os._exit(os.EX_SOFTWARE)


def check_capabilities() -> None:
    """Errors: PrivilegeError."""
    if names := capabilities.missing():
        raise PrivilegeError(f"run it as root; missing are {', '.join(names)}")


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Own `state_dir`, made if need be. Errors: RunningError, ConfigError."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state_dir / LOCK).open("w")
    except OSError as exc:
        raise ConfigError(f"state_dir: {exc}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise RunningError(f"another agent runs with the state folder {state_dir}") from exc
        yield


class Agent:
    """Everything that runs in the control process, put together.

    `stack` is closed by the caller: it ends what was begun here, last things first.
    """

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        """Begin to read, and open the kernel. Errors: MinutemanError."""
        location = zookeeper(settings)
        policy, homes = naming(settings)
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._is_stopping = False
        self._catch_signals()
        bell = make_bell(self._selector)

        self._source = MarathonSource(
            location,
            root=settings.marathon_root,
            framework_name=settings.framework_name,
            resync_seconds=settings.resync_seconds,
        )
        stack.callback(self._source.close)
        self._source.start(bell)
        self._guard = Guard(policy, hosts(location))
        stack.callback(self._guard.close)

        self._is_successor = serving(pin_root(settings)) is not None
        """Something of ours was attached before."""
        self._has_served = False
        self._ranges = (*settings.named_range.prefixes(), *settings.named_range6.prefixes())
        self._barrier = Barrier(self._ranges if settings.unreachable_route else ())
        self._dataplane = kernel(settings)
        self._skips = Skips(
            cgroup2_mount(),
            settings.cgroup_skip,
            settings.state_dir / SKIPS,
            self._dataplane.skip,
        )
        stack.callback(self._leave_kernel)
        state = self._dataplane.open()

        store = Store(settings.state_dir / SNAPSHOT)
        memory, problems = store.load()
        saver = Saver(store)
        stack.callback(saver.close)
        self._policy = self._guard.policy
        folder = Pins.ours(pin_root(settings), settings.limits).folder
        self._reaper = Reaper(folder, settings.sweep_seconds)
        stack.callback(self._reaper.close)
        self._loop = Loop(
            sources=[self._source],
            table=Table(self._policy.refusal),
            book=HomeBook(homes, Claims(memory.addresses, frozenset(memory.addresses))),
            dataplane=self._dataplane,
            state=state,
            memory=memory,
            publish=lambda update: self._front.publish(update),
            remember=saver.offer,
            reap=self._reaper.reap,
            problems=problems,
            audit_seconds=settings.audit_seconds,
            now=time.monotonic(),
        )
        self._loop.stand_on(self._ground())
        self._front = FrontChild(
            [*FRONT, "--listen", settings.api, "--user", settings.front_user],
            self._selector,
            self._loop.whole,
            self._dataplane.counters,
            lambda: self._listening.ask(),
        )
        stack.callback(self._front.close)
        self._listening = Listening(
            self._dataplane.listen_until,
            EventsChild(
                [*EVENTS, "--pins", str(folder)],
                self._selector,
                self._front.forward,
            ),
        )
        stack.callback(self._listening.close)
        try:
            control = ControlSocket(settings.state_dir / CONTROL, self._selector, self._do)
        except OSError as exc:  # a socket's path has at most 107 octets
            raise ConfigError(
                f"state_dir: no socket at {settings.state_dir / CONTROL}: {exc}"
            ) from exc
        stack.callback(control.close)
        self._guard.start(bell, self._barrier.keep)
        self._reaper.start(bell)
        sweeper = Sweeper(folder, settings.sweep_seconds)
        stack.callback(sweeper.close)
        sweeper.start()
        self._deadline = time.monotonic() + settings.start_timeout_seconds

    def serve(self) -> None:
        """Take step after step until a signal comes.

        Errors: SourceError when there is nothing to serve and no source to learn it from,
        ConfigError when the front process cannot work as it is set.
        """
        while not self._is_stopping:
            now = time.monotonic()
            wake = min(
                self._skips.tick(now),
                self._step(now),
                self._tick_front(now),
                self._listening.tick(now),
            )
            for key, events in self._selector.select(max(0.0, wake - time.monotonic())):
                react: Callable[[int], None] = key.data
                react(events)

    def _step(self, now: float) -> float:
        """One step of the loop; returns when to take the next one."""
        if self._guard.policy is not self._policy:
            self._policy = self._guard.policy
            self._loop.obey(self._policy.refusal)
            self._loop.stand_on(self._ground())
        self._loop.report(
            self._skips.problems + self._barrier.problems + self._reaper.problems,
            self._reaper.ended,
        )
        wake = self._loop.step(now)
        if not gc.isenabled() and (self._loop.is_settled or now >= self._deadline):
            gc.freeze()  # what is there now is there to stay: it need not be looked at again
            gc.enable()
        if self._has_served:
            return wake
        self._has_served = self._loop.has_a_purpose
        if now >= self._deadline and not self._has_served:
            raise SourceError(
                f"nothing to serve: {self._source.health().reason}, and neither the kernel nor "
                "the state folder has VIPs of an earlier run"
            )
        return min(wake, self._deadline)

    def _ground(self) -> Ground:
        """Whose the addresses are at which no VIP is found."""
        return Ground(self._ranges, self._guard.local)

    def _tick_front(self, now: float) -> float:
        """Do what is due of the front process; returns when to come back. Errors: ConfigError."""
        try:
            return self._front.tick(now)
        except ConfigError:
            self._has_served = False  # not by an agent that could start
            raise

    def _do(self, request: Request) -> Reply:
        """Carry out what root asks for. Errors: MinutemanError."""
        match request.call:
            case "believe":
                self._loop.believe(request.source, time.monotonic())
            case "skip":
                self._skips.skip(request.path)
            case "serve":
                self._skips.serve(request.path)
            case "skipped":
                return Reply(True, cgroups=self._skips.found())
            case _:
                raise ModelError("call", request.call, "this agent does not know it")
        return Reply(True)

    def _leave_kernel(self) -> None:
        """Let programs and maps serve on; take them away if they never did."""
        self._dataplane.close()
        if not (self._is_successor or self._has_served):
            try:
                self._dataplane.remove()
            finally:
                self._barrier.lift()

    def _catch_signals(self) -> None:
        """Have SIGTERM and SIGINT stop the agent, and wake the selector."""
        heard, written = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(heard, selectors.EVENT_READ, lambda _: os.read(heard, 64))
        signal.set_wakeup_fd(written)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._is_stopping = True


def make_bell(selector: selectors.BaseSelector) -> Callable[[], None]:
    """What wakes `selector` from any thread. Its descriptor stays open: threads outlive a stop."""
    bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    selector.register(bell, selectors.EVENT_READ, lambda _: os.eventfd_read(bell))
    return lambda: os.eventfd_write(bell, 1)


def kernel(settings: Settings) -> KernelDataplane:
    """The dataplane, not open. Errors: UnsupportedKernelError."""
    cgroup = settings.cgroup or cgroup2_mount()
    return KernelDataplane(cgroup, pin_root(settings), settings.state_dir, settings.limits)


def pin_root(settings: Settings) -> Path:
    """The folder that is ours alone on the bpffs. Errors: UnsupportedKernelError."""
    return (settings.bpffs or bpffs_mount()) / PINS


def zookeeper(settings: Settings) -> Location:
    """Where to read. Errors: ConfigError."""
    if not settings.zookeeper:
        raise ConfigError("zookeeper: none was named, as in --zookeeper zk://10.0.0.1:2181")
    return parse_url(settings.zookeeper)


def hosts(location: Location) -> list[str]:
    """Addresses and names of the servers at `location`."""
    found = (urlsplit(f"//{host}").hostname for host in location.hosts.split(","))
    return [host for host in found if host]


def naming(settings: Settings) -> tuple[LiteralPolicy, Homes]:
    """Where literal and where named VIPs may be. Errors: ConfigError."""
    ranges = (settings.named_range, settings.named_range6)
    policy = LiteralPolicy(settings.vip_allow, named=ranges)
    try:
        return policy, Homes(*ranges, reserved=policy.reserved)
    except ModelError as exc:
        raise ConfigError(str(exc)) from exc
