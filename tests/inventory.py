"""What the maps say, whatever the version that made them: by the names of fields."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from minuteman.dataplane import bpf
from minuteman.dataplane.layout import MapLayout
from minuteman.dataplane.pins import PROGRAMS, read_about, serving
from minuteman.dataplane.record import Record
from minuteman.dataplane.takeover import OpenMap

Entry = Mapping[str, tuple[object, ...]]
"""The values of each field by its name."""
Key = tuple[tuple[object, ...], ...]

KEPT = (
    "vips4",
    "vips6",
    "vips",
    "slots",
    "backends",
    "backend_stats",
    "inners",
    "prefixes",
    "flows",
    "affinities",
    "skips",
)


def entries(root: Path, name: str) -> dict[Key, Entry]:
    """What is in a map of the programs that serve."""
    where = serving(root)
    assert where is not None
    texts = read_about(where).maps[name]
    fd = bpf.open_pin(where.maps / name)
    try:
        info = bpf.map_info(fd)
        key, value = Record(texts.key), Record(texts.value)
        made = MapLayout(info.kind, key, value, info.max_entries, info.flags)
        return {tuple(key.read(k).values()): value.read(v) for k, v in OpenMap(fd, made).entries()}
    finally:
        os.close(fd)


def everything(root: Path) -> dict[str, dict[Key, Entry]]:
    """What is in every map that outlives a version; what sockets were given, by their cookies."""
    return {name: entries(root, name) for name in KEPT} | {"given": given(root)}


def given(root: Path) -> dict[Key, Entry]:
    found = (*entries(root, "conns").values(), *entries(root, "more_conns").values())
    return {(entry["cookie"],): entry for entry in found if any(entry["cookie"])}


def all_closed_are_gone(root: Path) -> bool:
    """A connection is there until the other side has acknowledged its end."""
    return not any(any(entry["abandoned"]) for entry in given(root).values())


def demand_same(before: dict[str, dict[Key, Entry]], after: dict[str, dict[Key, Entry]]) -> None:
    """Every entry is there as it was, but for fields that only one of two versions has."""
    for name, old in before.items():
        new = after[name]
        assert old.keys() == new.keys(), name
        for key in old:
            shared = old[key].keys() & new[key].keys()
            assert {f: old[key][f] for f in shared} == {f: new[key][f] for f in shared}, name


def demand_one_of_each(cgroup: Path, root: Path) -> None:
    """One folder of pins, one program of ours at each hook."""
    assert len(list(root.iterdir())) == 1
    fd = os.open(cgroup, os.O_RDONLY)
    try:
        for name, hook in PROGRAMS.items():
            assert len(bpf.effective_programs(fd, hook)) == 1, name
    finally:
        os.close(fd)
