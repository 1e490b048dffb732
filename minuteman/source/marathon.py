"""Marathon's own state in ZooKeeper as a source: no further component is needed.

<root>/leader-curator/...               its leader; nobody there: nothing is written now
<root>/state/migration-in-progress      exists while a new version rewrites the others
<root>/state/framework-id/b/id          its framework id
<root>/state/apps/<b>/<id>              unit app/<id>
<root>/state/apps/<b>/<id>/<version>    what instances of that version run; immutable, so read once
<root>/state/instance/<b>/<id>          unit instance/<id>

An instance has the ports of the version that it runs, with the options of the newest one. So the
unit of an instance may change with the znode of its app.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Set
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address

from minuteman.decode.marathon import (
    App,
    Framework,
    Instance,
    app_of_instance,
    app_unit,
    app_unit_id,
    bucket,
    check_storage_version,
    instance_unit,
    instance_unit_id,
    read_framework_id,
    read_instance,
)
from minuteman.errors import ModelError, SourceError
from minuteman.model import Origin, Problem, Unit, UnitId
from minuteman.source.definitions import Definitions, Found, Unreadable, data_of
from minuteman.source.deployed import Deployed
from minuteman.source.hostnames import HostNames, Lookup, system_lookup
from minuteman.source.watched import WatchedSource
from minuteman.zookeeper.session import Content, Listing, Location, Session, Stat
from minuteman.zookeeper.watch import Bells, Directory

STORAGE_UNIT = UnitId("storage")
"""Problems of Marathon's state as a whole."""


class MarathonSource(WatchedSource):
    """A `Source` of one Marathon.

    Args:
        location: The ZooKeeper that Marathon writes to.
        root: The path in its `--zk`, below the chroot of `location`.
        framework_name: What it registers as; named VIPs have it in their name.
        name: Of the source.
        resync_seconds: How often everything is read again without a reason.
        jitter_seconds: At most so long is waited before everything is read after a reconnect.
        session_timeout_seconds: Of the ZooKeeper session.
        restart_seconds: Without a connection for so long, a new session is begun.
        lookup: What finds the address of an agent that is known by a DNS name.
    """

    def __init__(
        self,
        location: Location,
        *,
        root: str = "/marathon",
        framework_name: str = "marathon",
        name: str = "marathon",
        resync_seconds: float = 300.0,
        jitter_seconds: float = 1.0,
        session_timeout_seconds: float = 10.0,
        restart_seconds: float = 60.0,
        lookup: Lookup = system_lookup,
    ) -> None:
        bells = Bells()
        session = Session(
            location,
            bells.ring,
            bells.wake,
            timeout_seconds=session_timeout_seconds,
            restart_seconds=restart_seconds,
        )
        world = MarathonWorld(
            session,
            location.chroot + root.rstrip("/"),
            framework_name,
            HostNames(bells.wake, lookup),
        )
        super().__init__(
            name,
            session,
            bells,
            world,
            resync_seconds=resync_seconds,
            jitter_seconds=jitter_seconds,
        )


class MarathonWorld:
    """A `World`: what is known of one Marathon, and how it is read."""

    def __init__(self, session: Session, root: str, framework_name: str, hosts: HostNames) -> None:
        self.units: dict[UnitId, Unit] = {}
        self.origin: Origin | None = None
        self._session = session
        self._leader_path = f"{root}/leader-curator"
        self._state_path = f"{root}/state"
        self._framework_path = f"{self._state_path}/framework-id/b/id"
        self._storage_path = f"{self._state_path}/internal:storage:version"
        self._apps_path = f"{self._state_path}/apps"
        self._instances_path = f"{self._state_path}/instance"
        self._hosts = hosts
        self._touched: set[UnitId] = set()
        self._gone: set[UnitId] = set()
        """Found to be gone in the read that is under way."""
        self._incarnation = ""
        self._missing = ""
        self._migrating = False
        self._leaderless = ""
        self._apps = Directory(session, self._apps_path, depth=2)
        self._instances = Directory(session, self._instances_path, depth=2)
        self._definitions = Definitions(
            session, self._apps_path, Framework(id="", name=framework_name)
        )
        self._deployed = Deployed(self._definitions.current)
        # Paths of instances: of those that got no definition or another than they run, by encoded
        # app id; and of those whose agent has a DNS name, by that name.
        self._unsettled: defaultdict[str, set[str]] = defaultdict(set)
        self._hosted: defaultdict[str, set[str]] = defaultdict(set)

    @property
    def stale(self) -> str:
        """Why nothing new is written now, or nothing can be believed."""
        if self._missing:
            return self._missing
        if self._migrating:
            return f"a migration of {self._state_path} is in progress: removals wait for its end"
        return self._leaderless

    def read_all(self) -> None:
        """Read everything; see `World`."""
        self._session.sync(self._state_path)
        self._read_leader()
        state = self._session.children_of(self._state_path)
        if state is None:
            self._missing = f"{self._state_path} does not exist"
            return
        self._missing = ""
        self._notice_world(state)
        self._read_framework_and_storage()
        self._gone.clear()
        self._take_apps(self._apps.read())
        self._instances.doubt(self._doubtful(list(self._unsettled)))
        self._take_instances(self._instances.read())
        present = self._tidy()
        self._adjust_instances()
        self._bury(self._gone | (self.units.keys() - present))
        self.origin = self._seen(state.stat)

    def read(self, rung: Set[str]) -> None:
        """Read again what rang, and what depends on it; see `World`."""
        if not rung.isdisjoint((self._state_path, self._framework_path, self._storage_path)):
            self.read_all()
            return
        if self._leader_path in rung:
            self._read_leader()
        if self._missing or self.origin is None:
            return
        self._gone.clear()
        changed_apps = self._take_apps(self._apps.read(rung))
        doubtful = self._doubtful(changed_apps)
        self._instances.doubt(doubtful)
        self._take_instances(self._instances.read(rung | doubtful))
        self._adjust_instances()
        self._bury(self._gone)
        self.origin = self._seen()

    def forget(self) -> None:
        """Decode everything anew at the next `read_all`; see `World`."""
        self._apps = Directory(self._session, self._apps_path, depth=2)
        self._instances = Directory(self._session, self._instances_path, depth=2)
        self._definitions.clear()
        self._unsettled.clear()

    def take_touched(self) -> Collection[UnitId]:
        """Ids of the units that changed or went since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def close(self) -> None:
        """End the threads that resolve names."""
        self._hosts.close()

    # ---- the root ---------------------------------------------------------------------------
    def _read_leader(self) -> None:
        candidates = self._session.children_of(self._leader_path)
        led = candidates is not None and candidates.names
        self._leaderless = "" if led else f"no Marathon leads: {self._leader_path} is empty"

    def _notice_world(self, state: Listing) -> None:
        """Whether it is another state than before, and whether Marathon is rewriting it."""
        incarnation = _incarnation(state.stat)
        migrating = "migration-in-progress" in state.names
        # A migration rewrites znodes in place, and removals during it were passed over.
        if incarnation != self._incarnation or (self._migrating and not migrating):
            self.forget()
        self._incarnation = incarnation
        self._migrating = migrating

    def _read_framework_and_storage(self) -> None:
        """Learn the framework id. What is odd about the state as a whole becomes a unit."""
        problems: list[Problem] = []
        revision = 0
        if (content := self._session.content_of(self._framework_path)) is not None:
            revision = content.stat.mzxid
            try:
                self._follow(read_framework_id(content.data))
            except ModelError as error:
                problems.append(_problem(self._framework_path, error))
        if (content := self._session.content_of(self._storage_path)) is not None:
            revision = max(revision, content.stat.mzxid)
            try:
                if check_storage_version(content.data) == "newer":
                    reason = "It is newer than what this version of Minuteman was checked against."
                    problems.append(Problem(self._storage_path, "", "storage version", reason))
            except ModelError as error:
                problems.append(_problem(self._storage_path, error))
        if problems:
            self._put(Unit(STORAGE_UNIT, revision, problems=tuple(problems)))
        elif self.units.pop(STORAGE_UNIT, None) is not None:
            self._touched.add(STORAGE_UNIT)

    def _follow(self, framework_id: str) -> None:
        """The framework id is part of every task's identity."""
        framework = replace(self._definitions.framework, id=framework_id)
        if framework != self._definitions.framework:
            self._definitions.framework = framework
            self.forget()

    def _seen(self, state: Stat | None = None) -> Origin:
        """Origin of what was read: all of it, with `state`, or more than before."""
        positions = [self._apps.position, self._instances.position]
        if state is not None:
            positions += [state.mzxid, state.pzxid]
        elif self.origin is not None:
            positions.append(self.origin.position)
        return Origin(self._incarnation, max(positions))

    # ---- apps -------------------------------------------------------------------------------
    def _take_apps(self, found: Iterable[tuple[str, Found]]) -> list[str]:
        """Turn what was found into units, and return the encoded ids of all these apps."""
        changed: list[str] = []
        for path, content in found:
            app_id = path.rpartition("/")[2]
            changed.append(app_id)
            self._deployed.doubt(app_id)
            try:
                app = self._definitions.take(app_id, path, content)
            except (ModelError, SourceError) as error:
                self._keep(app_unit_id(app_id), path, _mzxid(content), error)
                continue
            if app is None:
                self._gone.add(app_unit_id(app_id))
            else:
                self._put(app_unit(app, _mzxid(content)))
        return changed

    # ---- instances --------------------------------------------------------------------------
    def _take_instances(self, found: Iterable[tuple[str, Found]]) -> None:
        """Turn what was found into units, those of unknown definitions last and together."""
        waiting: list[tuple[str, Instance, int]] = []
        for path, content in found:
            name = path.rpartition("/")[2]
            unit_id = instance_unit_id(name)
            if content is None:
                self._gone.add(unit_id)
                with suppress(ModelError):  # one of such a name never ran anything
                    self._deployed.leave(app_of_instance(name), unit_id)
                continue
            try:
                instance = read_instance(path, data_of(content))
            except (ModelError, SourceError) as error:
                self._keep(unit_id, path, _mzxid(content), error)
                continue
            app = self._definitions.get((instance.app_id, instance.version))
            if app is None:
                waiting.append((path, instance, _mzxid(content)))
            else:
                self._put_instance(path, instance, app, _mzxid(content))
        runs = self._definitions.find({(each.app_id, each.version) for _, each, _ in waiting})
        for path, instance, mzxid in waiting:
            self._put_instance(path, instance, runs[instance.app_id, instance.version], mzxid)

    def _put_instance(
        self, path: str, instance: Instance, app: App | Unreadable | None, mzxid: int
    ) -> None:
        if not isinstance(app, App) or app.version != instance.version:
            self._unsettled[instance.app_id].add(path)
        if _is_name(instance.host):
            self._hosts.want(instance.host)
            self._hosted[instance.host].add(path)
        unit_id = instance.unit_id
        try:
            if isinstance(app, Unreadable):
                raise app
            if app is None:
                self._deployed.leave(instance.app_id, unit_id)
            else:
                app = self._deployed.join(instance.app_id, unit_id, app)
            unit = instance_unit(
                path,
                instance,
                app,
                self._definitions.framework,
                mzxid,
                self._hosts.known,
                self.units.get(unit_id),
            )
        except (ModelError, SourceError) as error:
            self._keep(unit_id, path, mzxid, error)
            return
        self._put(unit)

    def _adjust_instances(self) -> None:
        """Read those again for which other options count now."""
        while outdated := self._deployed.outdated():
            paths = {self._instance_path(unit_id) for unit_id in outdated}
            self._instances.doubt(paths)
            self._take_instances(self._instances.read(paths))

    def _instance_path(self, unit_id: UnitId) -> str:
        name = unit_id.partition("/")[2]
        return f"{self._instances_path}/{bucket(name)}/{name}"

    def _doubtful(self, changed_apps: Iterable[str]) -> set[str]:
        """Paths of instances that may be other units now, though their znodes did not change."""
        unsettled = [self._unsettled.pop(app_id, ()) for app_id in changed_apps]
        rehosted = [self._hosted.pop(host, ()) for host in self._hosts.changed()]
        return set().union(*unsettled, *rehosted)

    # ---- units ------------------------------------------------------------------------------
    def _put(self, unit: Unit) -> None:
        if self.units.get(unit.id) != unit:
            self.units[unit.id] = unit
            self._touched.add(unit.id)

    def _keep(self, unit_id: UnitId, path: str, mzxid: int, error: Unreadable) -> None:
        """The znode cannot be read: its unit keeps the last good value, if it ever had one."""
        old = self.units.get(unit_id, Unit(unit_id, 0))
        self._put(
            replace(
                old,
                revision=max(old.revision, mzxid),
                problems=(_problem(path, error),),
                kept=bool(old.tasks or old.declares),
            )
        )

    def _bury(self, gone: Collection[UnitId]) -> None:
        """Take units away, as long as the root is the one that they were found to be gone under.

        Errors: SourceError: it is not, so their absence says nothing.
        """
        gone = [each for each in gone if each in self.units]
        if not gone or self._migrating:
            return
        root = self._session.exists(self._state_path)
        if root is None or _incarnation(root) != self._incarnation:
            raise SourceError(f"{self._state_path} vanished while it was read")
        for unit_id in gone:
            del self.units[unit_id]
        self._touched.update(gone)

    def _tidy(self) -> set[UnitId]:
        """Forget what no znode refers to any more; return the ids of all units that have one."""
        app_ids = {path.rpartition("/")[2] for path in self._apps.leaves()}
        paths = set(self._instances.leaves())
        unit_ids = {instance_unit_id(path.rpartition("/")[2]) for path in paths}
        self._deployed.retain(unit_ids)
        self._definitions.retain(app_ids, self._deployed.definitions())
        for index in (self._unsettled, self._hosted):
            for key in list(index):
                index[key] &= paths
                if not index[key]:
                    del index[key]
        self._hosts.refresh(self._hosted.keys())
        return {STORAGE_UNIT, *map(app_unit_id, app_ids), *unit_ids}


def _incarnation(root: Stat) -> str:
    return f"{root.czxid}:{root.ctime_ms}"


def _mzxid(content: Found) -> int:
    return content.stat.mzxid if isinstance(content, Content) else 0


def _problem(path: str, error: Unreadable) -> Problem:
    if isinstance(error, ModelError):
        return Problem(path, "", error.field, f"{error.value!r}: {error.reason}.")
    return Problem(path, "", "", f"{error}.")


@lru_cache(maxsize=65_536)
def _is_name(host: str) -> bool:
    """Whether it is a name to resolve: an address is not, and an unplaced instance has none."""
    try:
        ip_address(host)
    except ValueError:
        return bool(host)
    return False
