"""Watches as bells: a watch says which path to read again, and nothing else.

Only one-shot watches are used, which every ZooKeeper has: a read leaves one, and after it fired the
next read leaves the next. What changes in between is in that read. A lost connection takes all of
them with it, so everything is read again then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from queue import Empty, SimpleQueue

from minuteman.errors import SourceError
from minuteman.zookeeper.session import Content, Listing, Session, Stat

LONGEST_WAIT_SECONDS = 3600.0


class Bells:
    """What rang, for one thread that waits for it."""

    def __init__(self) -> None:
        self._rung: SimpleQueue[str | None] = SimpleQueue()

    def ring(self, path: str) -> None:
        """`path` is to be read again. For any thread; never blocks."""
        self._rung.put(path)

    def wake(self) -> None:
        """Look around: something else has changed. For any thread; never blocks."""
        self._rung.put(None)

    def wait(self, seconds: float) -> set[str]:
        """Everything that rang, as soon as something did; empty after `seconds` or `wake`."""
        rung: set[str] = set()
        try:
            path = self._rung.get(timeout=max(0.0, min(seconds, LONGEST_WAIT_SECONDS)))
            while True:
                if path is not None:
                    rung.add(path)
                path = self._rung.get_nowait()
        except Empty:
            return rung


class Directory:
    """The leaves of a directory of fixed depth, all of them watched.

    Depth 1 is `path/<leaf>`, depth 2 `path/<bucket>/<leaf>`. It remembers names and versions, not
    contents, and hands out what it has not handed out before. Whoever takes something from `read`
    must take all of it: after an error only a new Directory is sure to know what was missed.

    The directory may be missing: then it has no leaves, and its parent is the caller's to watch.
    """

    def __init__(self, session: Session, path: str, depth: int) -> None:
        self.path = path
        self.position = 0
        """Highest zxid at the last complete read, or since."""
        self._session = session
        self._depth = depth
        self._known: dict[str, dict[str, int]] = {}
        """Directory -> name -> mzxid of the content that was handed out; 0: none was."""

    def read(
        self, rung: Collection[str] | None = None
    ) -> Iterator[tuple[str, Content | SourceError | None]]:
        """Leaves that changed, each with its content; None: it is gone; an error is of it alone.

        Args:
            rung: Paths to read again, of whatever directory; None: all that there is.

        Errors: SourceError.
        """
        if rung is None:
            self.position = 0
        new = [self.path] if rung is None else []
        for level in range(self._depth):
            due = set(new)
            if rung is not None:
                due.update(
                    path for path in rung if path in self._known and self._level(path) == level
                )
            new = []
            for path, listing in self._session.children(sorted(due)):
                before = self._known.get(path, {})
                now = self._list(path, listing)
                new += [f"{path}/{name}" for name in now if rung is None or name not in before]
                for name in before.keys() - now.keys():
                    yield from self._vanished(f"{path}/{name}")
        due = set(new)
        if rung is not None:
            due.update(path for path in rung if self._is_leaf(path))
        for path, found in self._session.get(sorted(due)):
            if self._is_news(path, found):
                yield path, found

    def doubt(self, paths: Iterable[str]) -> None:
        """Hand out these leaves at their next read even when they are unchanged."""
        for path in paths:
            if self._is_leaf(path):
                parent, _, name = path.rpartition("/")
                self._known[parent][name] = 0

    def leaves(self) -> Iterator[str]:
        """Paths of all leaves."""
        for path, names in self._known.items():
            if self._level(path) == self._depth - 1:
                for name in names:
                    yield f"{path}/{name}"

    def _level(self, path: str) -> int:
        return path.count("/") - self.path.count("/")

    def _is_leaf(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        return name in self._known.get(parent, ()) and self._level(parent) == self._depth - 1

    def _list(self, path: str, listing: Listing | None) -> dict[str, int]:
        """Note the names of one directory and return them."""
        before = self._known.get(path, {})
        names: tuple[str, ...] = ()
        if listing is not None:
            self._saw(listing.stat)
            names = listing.names
        now = {name: before.get(name, 0) for name in names}
        self._known[path] = now
        return now

    def _vanished(self, path: str) -> Iterator[tuple[str, None]]:
        """What was below `path`, or `path` itself when it was a leaf, is gone."""
        if self._level(path) == self._depth:
            yield path, None
        for name in self._known.pop(path, ()):
            yield from self._vanished(f"{path}/{name}")

    def _is_news(self, path: str, found: Content | SourceError | None) -> bool:
        """Note what was found at a leaf; False: it was handed out before."""
        parent, _, name = path.rpartition("/")
        names = self._known[parent]
        if found is None:
            # When it comes back, its parent's listing must show it as a new name.
            names.pop(name, None)
            return True
        if isinstance(found, SourceError):
            names[name] = 0
            return True
        self._saw(found.stat)
        if names[name] == found.stat.mzxid:
            return False
        names[name] = found.stat.mzxid
        return True

    def _saw(self, stat: Stat) -> None:
        self.position = max(self.position, stat.mzxid, stat.pzxid)
