"""What Marathon's instances run: definitions of apps by version, each read once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from itertools import chain

from minuteman.decode.marathon import (
    App,
    Framework,
    bucket,
    choose_version,
    encode_id,
    read_app,
)
from minuteman.errors import ModelError, SourceError
from minuteman.zookeeper.session import Content, Session

Version = tuple[str, int]
"""Encoded app id, and milliseconds since 1970: names one definition for ever."""

Found = Content | SourceError | None
"""What is at a path, as `Session.get` has it."""

Unreadable = ModelError | SourceError
"""There is something at a path, and it makes no sense, or it may not be read."""


class Definitions:
    """Definitions that are known, and how the others are found.

    Args:
        session: What they are read over.
        apps_path: Where they are: `<apps_path>/<bucket>/<id>`, and `.../<version>` below.
        framework: Whose they are. After a change of it, `clear`.
    """

    def __init__(self, session: Session, apps_path: str, framework: Framework) -> None:
        self.framework = framework
        self._session = session
        self._apps_path = apps_path
        self._known: dict[Version, App] = {}
        # By encoded app id: the last definition in the app's own znode that could be read, and why
        # the one that is there now cannot.
        self._current: dict[str, App] = {}
        self._unreadable: dict[str, Unreadable] = {}

    def get(self, version: Version) -> App | None:
        """The definition of exactly this version, if it is known."""
        return self._known.get(version)

    def current(self, app_id: str) -> App | None:
        """The last definition in the app's own znode that could be read; None: there is none."""
        return self._current.get(app_id)

    def take(self, app_id: str, path: str, found: Found) -> App | None:
        """Learn what is in an app's own znode; None: the app is deleted.

        Errors: ModelError, SourceError: it cannot be read.
        """
        self._unreadable.pop(app_id, None)
        try:
            app = self._read(path, found)
        except (ModelError, SourceError) as error:
            self._unreadable[app_id] = error
            raise
        if app is None:
            self._current.pop(app_id, None)
        else:
            self._current[app_id] = app
        return app

    def find(self, wanted: Collection[Version]) -> dict[Version, App | Unreadable | None]:
        """What instances of these versions run, or what Marathon would take for it.

        None: nothing is left of the app. An error: there is a definition, and it cannot be read.
        Errors: SourceError.
        """
        paths = self._paths(wanted)
        found = dict(self._session.get(sorted(set(paths.values())), watch=False))
        return {version: self._choose(version, paths, found) for version in wanted}

    def clear(self) -> None:
        """Read all of them again when they are wanted. The current ones stay."""
        self._known.clear()

    def retain(self, app_ids: Set[str], used: Iterable[App]) -> None:
        """Forget all but the current ones of these apps, and those in use."""
        self._current = {each: app for each, app in self._current.items() if each in app_ids}
        wanted = {id(app) for app in chain(used, self._current.values())}
        self._known = {version: app for version, app in self._known.items() if id(app) in wanted}

    def _paths(self, wanted: Collection[Version]) -> dict[Version, str]:
        """Where each definition is; a version is missing here if its app has none left."""
        app_ids = sorted({app_id for app_id, _ in wanted})
        app_paths = {each: f"{self._apps_path}/{bucket(each)}/{each}" for each in app_ids}
        listings = dict(self._session.children(app_paths.values(), watch=False))
        paths: dict[Version, str] = {}
        for app_id, version in wanted:
            app_path = app_paths[app_id]
            listing = listings[app_path]
            name = None if listing is None else choose_version(listing.names, version)
            if name is not None:
                paths[app_id, version] = f"{app_path}/{name}"
        return paths

    def _choose(
        self, version: Version, paths: Mapping[Version, str], found: Mapping[str, Found]
    ) -> App | Unreadable | None:
        path = paths.get(version, "")
        try:
            app = self._read(path, found.get(path))
        except (ModelError, SourceError) as error:
            return error
        app_id, _ = version
        return app or self._current.get(app_id) or self._unreadable.get(app_id)

    def _read(self, path: str, found: Found) -> App | None:
        """The definition at a path; None: there is none. Errors: ModelError, SourceError."""
        if found is None:
            return None
        app = read_app(path, data_of(found), self.framework)
        if app is not None:
            self._known[encode_id(app.id), app.version] = app
        return app


def data_of(found: Content | SourceError) -> bytes:
    """The data of a znode that is there. Errors: SourceError: it may not be read."""
    if isinstance(found, SourceError):
        raise found
    return found.data
