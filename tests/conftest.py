"""Tiers: the folder of a test sets its marker, and a tier that cannot run here is skipped."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from lab.versions import Versions, install_all

TESTS = Path(__file__).parent
ZOOKEEPER_JAR = Path("/usr/share/java/zookeeper.jar")

if not os.environ.get("CI"):  # there hypothesis has a profile of its own, without deadlines too
    hypothesis.settings.register_profile("minuteman", deadline=None)
    hypothesis.settings.load_profile("minuteman")


def nothing() -> str:
    return ""


@cache
def no_zookeeper() -> str:
    """Why no real ZooKeeper can be started here, or the empty string."""
    if shutil.which("java") is None:
        return "java is missing: run deploy/setup"
    if not os.environ.get("ZOOKEEPER_PATH") and not ZOOKEEPER_JAR.exists():
        return f"{ZOOKEEPER_JAR} is missing and ZOOKEEPER_PATH is not set: run deploy/setup"
    return ""


@cache
def no_kernel() -> str:
    """Why no eBPF program can be tried here, or the empty string."""
    if os.geteuid() != 0:
        return "not root"
    if not os.environ.get("MINUTEMAN_SANDBOX"):
        return "outside the sandbox: run deploy/test"
    if importlib.util.find_spec("bcc") is None:
        return "bcc is missing: run deploy/setup"
    return ""


@cache
def no_cluster() -> str:
    """Why the whole product cannot be tried here, or the empty string."""
    return no_kernel() or no_zookeeper()


MISSING: dict[str, Callable[[], str]] = {
    "pure": nothing,
    "contract": nothing,
    "zookeeper": no_zookeeper,
    "kernel": no_kernel,
    "bench": nothing,
    "e2e": no_cluster,
}
"""Why a tier cannot run here, in the order in which the tiers run."""


def required_tiers() -> frozenset[str]:
    """The tiers that run whatever is missing: MINUTEMAN_REQUIRE, separated by commas."""
    names = os.environ.get("MINUTEMAN_REQUIRE", "").split(",")
    required = frozenset(name.strip() for name in names if name.strip())
    if unknown := required - MISSING.keys():
        raise pytest.UsageError(f"MINUTEMAN_REQUIRE: no such tier: {', '.join(sorted(unknown))}")
    return required


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier. A marker of a further tier on a test asks for that one too."""
    required = required_tiers()
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder not in MISSING:
            raise pytest.UsageError(f"{item.path}: tests live in the folder of a tier")
        item.add_marker(folder)
        for tier in MISSING.keys() - required:
            if item.get_closest_marker(tier) and (why := MISSING[tier]()):
                item.add_marker(pytest.mark.skip(reason=f"{tier}: {why}"))
    # The cluster of the last tier stays up: hypothesis does not bear its threads, which use
    # `random`, and one sandbox has one agent.
    tiers = list(MISSING)
    items.sort(key=lambda item: tiers.index(item.path.relative_to(TESTS).parts[0]))


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """What is in this tree, and what may come after it, installed."""
    return install_all(tmp_path_factory.mktemp("versions"))
