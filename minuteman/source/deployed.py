"""Which versions of an app have instances, and which options count for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field

from minuteman.decode.marathon import App, with_options
from minuteman.model import UnitId


@dataclass(slots=True)
class _Edition:
    """One version of an app, and the instances that run it."""

    app: App
    """As it was read."""
    adjusted: App
    """With the options that count."""
    instances: set[UnitId] = field(default_factory=set)


class Deployed:
    """What instances run, adjusted: with the options that count for all tasks of the app.

    During an upgrade the instances of an app run several versions of it, and their labels may say
    different things of one VIP. What counts is the definition in the app's own znode, where the
    upgrade leads; if it does not ask for the VIP, or there is none, the newest of the versions that
    have instances and do.

    Apps go by their encoded ids.

    Args:
        current: The definition in an app's own znode, if it is known. `doubt` tells of its changes.
    """

    def __init__(self, current: Callable[[str], App | None]) -> None:
        self._current = current
        self._editions: dict[str, dict[int, _Edition]] = {}
        """By app and version. None is without an instance."""
        self._doubted: set[str] = set()
        """Apps whose editions have to be adjusted again, maybe."""

    def join(self, app_id: str, instance: UnitId, app: App) -> App:
        """Note that the instance runs this version of the app; return the version, adjusted."""
        joined = self._editions.get(app_id, {}).get(app.version)
        if joined is None or instance not in joined.instances:
            self.leave(app_id, instance)
        edition = self._edition(app_id, app)
        edition.instances.add(instance)
        return edition.adjusted

    def leave(self, app_id: str, instance: UnitId) -> None:
        """Note that the instance is gone, or that nobody knows what it runs."""
        editions = self._editions.get(app_id, {})
        for version, edition in list(editions.items()):
            edition.instances.discard(instance)
            if not edition.instances:
                del editions[version]
                self.doubt(app_id)
        if not editions:
            self._editions.pop(app_id, None)

    def doubt(self, app_id: str) -> None:
        """Let the next `outdated` adjust what instances of the app run."""
        self._doubted.add(app_id)

    def outdated(self) -> set[UnitId]:
        """The instances whose version is another one, adjusted, than it was when they joined."""
        outdated: set[UnitId] = set()
        for app_id in self._doubted:
            newest = self._newest(app_id)
            for edition in self._editions.get(app_id, {}).values():
                adjusted = with_options(edition.app, newest)
                if adjusted != edition.adjusted:
                    edition.adjusted = adjusted
                    outdated |= edition.instances
        self._doubted.clear()
        return outdated

    def retain(self, instances: Set[UnitId]) -> None:
        """Forget all other instances, and doubt all that is left."""
        for app_id, editions in list(self._editions.items()):
            for edition in list(editions.values()):
                for instance in edition.instances - instances:
                    self.leave(app_id, instance)
        self._doubted.update(self._editions)

    def definitions(self) -> Iterator[App]:
        """Every version that has an instance, as it was read."""
        for editions in self._editions.values():
            for edition in editions.values():
                yield edition.app

    def _edition(self, app_id: str, app: App) -> _Edition:
        """That of this version, whether it had instances or not."""
        editions = self._editions.setdefault(app_id, {})
        edition = editions.get(app.version)
        if edition is None:
            edition = editions[app.version] = _Edition(app, app)
            edition.adjusted = with_options(app, self._newest(app_id))
            self.doubt(app_id)
        elif edition.app is not app:
            # It was read once more. That makes no difference, unless this is a restored ZooKeeper,
            # and then it is `outdated` that tells those who joined before.
            edition.app = app
            self.doubt(app_id)
        return edition

    def _newest(self, app_id: str) -> list[App]:
        """The definitions of an app, the one that counts most first."""
        editions = self._editions.get(app_id, {})
        newest = [editions[version].app for version in sorted(editions, reverse=True)]
        current = self._current(app_id)
        return newest if current is None else [current, *newest]
