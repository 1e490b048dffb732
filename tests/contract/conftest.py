"""The real sides of some contracts."""

from tests.zookeeper.conftest import server

__all__ = ["server"]
