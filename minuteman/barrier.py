"""Where there is no way to a named VIP, whoever looks for one is told so at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection

from minuteman.dataplane.sockets import set_unreachable
from minuteman.errors import DataplaneError
from minuteman.model import Problem
from minuteman.names.home import Network

log = logging.getLogger(__name__)


class Barrier:
    """Keeps an `unreachable` route for each of `networks`, and no other route of ours.

    For processes outside of the cgroup, and for packets that this host forwards. The programs are
    none of their business, and without a route theirs to a named VIP would leave for the internet,
    where nobody answers. Who is served never gets here: a destination is rewritten before its
    route is looked up.
    """

    def __init__(self, networks: Collection[Network]) -> None:
        self._networks = networks
        self._busy = threading.Lock()
        self._is_lifted = False
        self.problems: tuple[Problem, ...] = ()

    def keep(self) -> bool:
        """Put back what is missing. Whether `problems` have changed. From any thread."""
        before = self.problems
        with self._busy:
            if not self._is_lifted:
                self._keep()
        return self.problems != before

    def lift(self) -> None:
        """Remove the routes, for good. From any thread. Errors: DataplaneError."""
        with self._busy:
            self._is_lifted = True
            set_unreachable(())

    def _keep(self) -> None:
        try:
            set_unreachable(self._networks)
        except DataplaneError as exc:
            if not self.problems:
                log.warning("unreachable routes not set error=%s", exc)
            reason = f"{exc}; who is not served waits in vain at named VIPs. It is tried again."
            self.problems = (Problem("kernel", "", "unreachable_route", reason),)
        else:
            if self.problems:
                log.info("unreachable routes set again")
            self.problems = ()
