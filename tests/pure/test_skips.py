"""Which cgroups are skipped: paths are remembered, numbers are looked up."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.control import SkippedCgroup
from minuteman.dataplane.layout import CGROUP_LEVELS, SKIPS
from minuteman.errors import ConfigError, DataplaneError, ModelError
from minuteman.skips import LOOK_SECONDS, Skips


class Kernel:
    """Has what it was told last, unless it refuses."""

    def __init__(self) -> None:
        self.skipped: frozenset[int] | None = None
        self.writes = 0
        self.is_refusing = False

    def obey(self, cgroups: Collection[int]) -> None:
        if self.is_refusing:
            raise DataplaneError("update map", errno.ENOMEM)
        self.skipped = frozenset(cgroups)
        self.writes += 1


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """A tree of folders, as good as cgroups here."""
    for place in ("mesh/sidecar", "docker/one", "docker/two"):
        (tmp_path / "cgroup" / place).mkdir(parents=True)
    return tmp_path / "cgroup"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "skips"


New = Callable[..., Skips]


@pytest.fixture
def new(mount: Path, file: Path, kernel: Kernel) -> New:
    """A fresh one that has looked once, as an agent's at its start."""

    def make(*settings: str) -> Skips:
        skips = Skips(mount, [Path(path) for path in settings], file, kernel.obey)
        skips.tick(0.0)
        return skips

    return make


def number(path: Path) -> int:
    return path.stat().st_ino


def numbers(*paths: Path) -> frozenset[int]:
    return frozenset(map(number, paths))


def test_the_programs_look_as_deep_as_is_allowed() -> None:
    text = (Path(__file__).parents[2] / "ebpf" / "find.h").read_text(encoding="utf-8")
    assert f"#define CGROUP_LEVELS {CGROUP_LEVELS}\n" in text


def test_without_any_the_kernel_is_told_so_once(new: New, kernel: Kernel) -> None:
    skips = new()
    assert kernel.skipped == frozenset()
    assert skips.tick(1000.0) == inf
    assert kernel.writes == 1
    assert skips.found() == ()


def test_what_the_settings_say_is_skipped(new: New, kernel: Kernel, mount: Path) -> None:
    skips = new("mesh/sidecar", str(mount / "docker"))
    assert kernel.skipped == numbers(mount / "mesh/sidecar", mount / "docker")
    assert skips.found() == (
        SkippedCgroup(str(mount / "docker"), number(mount / "docker"), "settings"),
        SkippedCgroup(str(mount / "mesh/sidecar"), number(mount / "mesh/sidecar"), "settings"),
    )


def test_root_skips_and_serves(new: New, kernel: Kernel, mount: Path) -> None:
    skips = new()
    skips.skip("docker/one")
    skips.skip(str(mount / "docker/two"))
    assert kernel.skipped == numbers(mount / "docker/one", mount / "docker/two")
    assert [found.wanted_by for found in skips.found()] == ["root", "root"]
    skips.serve(f"{mount}/docker/../docker/one/")
    assert kernel.skipped == numbers(mount / "docker/two")


def test_what_is_asked_twice_is_done_once(new: New, kernel: Kernel) -> None:
    skips = new("mesh")
    skips.skip("docker/one")
    writes = kernel.writes
    skips.skip("docker/one")
    skips.skip("mesh")
    assert kernel.writes == writes
    assert [found.wanted_by for found in skips.found()] == ["root", "settings"]


def test_what_root_asked_for_outlives_the_agent_and_settings_do_not(
    new: New, kernel: Kernel, mount: Path
) -> None:
    new("docker/one").skip("mesh/sidecar")
    found = new("docker/two").found()
    assert [(cgroup.path, cgroup.wanted_by) for cgroup in found] == [
        (str(mount / "docker/two"), "settings"),
        (str(mount / "mesh/sidecar"), "root"),
    ]
    assert kernel.skipped == numbers(mount / "docker/two", mount / "mesh/sidecar")
    new().serve("mesh/sidecar")
    assert new().found() == ()


def test_a_cgroup_that_is_made_anew_is_found(new: New, kernel: Kernel, mount: Path) -> None:
    skips = new()
    skips.skip("docker/one")
    first = numbers(mount / "docker/one")
    (mount / "docker/one").rename(mount / "docker/gone")  # its number is not given away meanwhile
    assert skips.tick(10.0) == 10.0 + LOOK_SECONDS
    assert kernel.skipped == frozenset()
    assert skips.found() == (SkippedCgroup(str(mount / "docker/one"), None, "root"),)
    (mount / "docker/one").mkdir()
    skips.tick(10.0 + LOOK_SECONDS / 2)
    assert kernel.skipped == frozenset()
    skips.tick(10.0 + LOOK_SECONDS)
    assert kernel.skipped == numbers(mount / "docker/one") != first


def test_as_long_as_nothing_changes_nothing_is_written(new: New, kernel: Kernel) -> None:
    skips = new("mesh", "docker/later")
    for now in range(100):
        skips.tick(float(now))
    assert kernel.writes == 1


def test_a_cgroup_that_is_gone_can_be_served(new: New, kernel: Kernel, mount: Path) -> None:
    skips = new()
    skips.skip("docker/one")
    (mount / "docker/one").rmdir()
    skips.serve("docker/one")
    assert skips.found() == ()
    assert kernel.skipped == frozenset()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("docker/three", "there is none below"),
        ("docker/one/cgroup.procs", "there is none below"),
        ("/docker/one", "not below .*/proc/PID/cgroup"),
        ("/", "not below"),
        ("", "not below"),
        (".", "not below"),
        ("docker/..", "not below"),
        ("../cgroup2/docker", "not below"),
        ("docker/one\n", "no cgroup is named so"),
        ("docker/\0", "no cgroup is named so"),
        ("x" * 5000, "there is none below"),
        ("a/b/c/d/e/f/g/h/i/j/k/l/m/n/o", "there is none below"),
        ("a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p", "too deep; skip one at most 15 levels"),
    ],
)
def test_what_cannot_be_skipped(
    new: New, kernel: Kernel, mount: Path, path: str, reason: str
) -> None:
    (mount / "docker/one/cgroup.procs").touch()
    skips = new()
    with pytest.raises(ModelError, match=reason):
        skips.skip(path)
    assert skips.found() == ()
    assert kernel.writes == 1


@given(st.text())
def test_any_text_is_a_path_or_an_error(text: str) -> None:
    skips = Skips(Path("/nowhere"), [], Path("/nowhere"), lambda _: None)
    for ask in (skips.skip, skips.serve):
        with pytest.raises(ModelError):
            ask(text)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("mesh", "take it out of the settings and restart the agent"),
        ("mesh/sidecar", "mesh is skipped, and so is all below it"),
        ("docker/two", "docker is skipped, and so is all below it"),
        ("docker/one", "docker is skipped, and so is all below it"),
        ("elsewhere", "it is not skipped"),
        ("/elsewhere", "it is not below"),
    ],
)
def test_what_cannot_be_served(new: New, kernel: Kernel, path: str, reason: str) -> None:
    skips = new("mesh")
    skips.skip("docker/one")
    skips.skip("docker")
    before = kernel.skipped
    with pytest.raises(ModelError, match=reason):
        skips.serve(path)
    assert kernel.skipped == before
    assert len(new("mesh").found()) == 3


def test_a_wish_of_root_that_is_a_setting_too_is_kept_behind_it(new: New) -> None:
    new().skip("mesh")
    [found] = new("mesh").found()
    assert found.wanted_by == "settings"
    [found] = new().found()
    assert found.wanted_by == "root"


@pytest.mark.parametrize("path", ["/elsewhere", "", "a\tb"])
def test_a_setting_that_cannot_work_is_named(new: New, path: str) -> None:
    with pytest.raises(ConfigError, match="cgroup_skip: "):
        new(path)


def test_more_than_the_kernel_has_room_for(new: New, kernel: Kernel) -> None:
    skips = new(*(f"c{i}" for i in range(SKIPS - 1)))
    skips.skip("docker/one")
    with pytest.raises(ModelError, match=f"at most {SKIPS} can be skipped"):
        skips.skip("docker/two")
    assert len(skips.found()) == SKIPS
    skips.serve("docker/one")
    skips.skip("docker/two")
    with pytest.raises(ConfigError, match=f"at most {SKIPS} can be skipped"):
        new(*(f"c{i}" for i in range(SKIPS)))


def test_a_kernel_that_refuses_is_asked_again(new: New, kernel: Kernel, mount: Path) -> None:
    skips = new()
    kernel.is_refusing = True
    with pytest.raises(DataplaneError):
        skips.skip("docker/one")
    assert skips.tick(10.0) == 10.0 + LOOK_SECONDS
    [problem] = skips.problems
    assert "is tried again" in problem.reason
    assert kernel.skipped == frozenset()
    kernel.is_refusing = False
    skips.tick(10.0 + LOOK_SECONDS)
    assert kernel.skipped == numbers(mount / "docker/one")
    assert skips.problems == ()


def test_a_kernel_that_refused_the_last_to_go_is_asked_again(new: New, kernel: Kernel) -> None:
    skips = new()
    skips.skip("docker/one")
    kernel.is_refusing = True
    with pytest.raises(DataplaneError):
        skips.serve("docker/one")
    kernel.is_refusing = False
    assert skips.tick(10.0) == inf
    assert kernel.skipped == frozenset()


@pytest.mark.parametrize("content", [b"/docker/one\n", b"\xff\n", b"\n"])
def test_a_damaged_file_is_a_problem_and_nothing_more(
    new: New, kernel: Kernel, file: Path, content: bytes
) -> None:
    file.write_bytes(content)
    skips = new("mesh")
    [problem] = skips.problems
    assert problem.where == str(file)
    assert problem.reason.startswith("It is not used: ")
    assert len(kernel.skipped or ()) == 1
    skips.skip("docker/one")
    assert skips.problems == ()
    assert len(new().found()) == 1


def test_a_bad_line_costs_itself(new: New, file: Path) -> None:
    file.write_text("docker/one\n/docker/two\n", encoding="utf-8")
    skips = new()
    assert len(skips.problems) == 1
    assert [Path(each.path).name for each in skips.found()] == ["one"]


def test_what_cannot_be_kept_is_not_done(new: New, kernel: Kernel, file: Path) -> None:
    skips = new()
    file.with_suffix(".new").mkdir()
    with pytest.raises(ConfigError, match="state_dir: "):
        skips.skip("docker/one")
    assert skips.found() == ()
    assert kernel.skipped == frozenset()


def test_the_file_is_for_people_too(new: New, file: Path) -> None:
    skips = new()
    skips.skip("mesh/sidecar")
    skips.skip("docker/one")
    assert file.read_text(encoding="utf-8") == "docker/one\nmesh/sidecar\n"
    assert not file.with_suffix(".new").exists()
