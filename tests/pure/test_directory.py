"""Whose an address is: what follows the updates knows what one does that is made anew."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from minuteman.directory import Directory
from minuteman.feed import Update
from minuteman.model import Backend, Endpoint, Frontend, Tier, Vip, VipKey, VipName
from minuteman.reader import Published

NAMES = ["a", "b", "c"]
PLACES = [f"10.0.0.{number}" for number in range(4)]


def vip(name: str, places: frozenset[str], task_id: str) -> Vip:
    """At some addresses, in front of one backend."""
    frontends = tuple(Frontend(ip_address(place), 80, "tcp") for place in sorted(places))
    endpoint = Endpoint(ip_address("10.9.9.9").packed, 8080, "tcp")
    backend = Backend(endpoint, 1, Tier.UP, "marathon", "fw", task_id)
    return Vip(VipKey(VipName(name, "marathon"), 80, "tcp"), frontends, (backend,))


@st.composite
def worlds(draw: st.DrawFn) -> dict[VipKey, Vip]:
    """VIPs of which no two have an address in common."""
    owners = draw(st.dictionaries(st.sampled_from(PLACES), st.sampled_from(NAMES)))
    names = draw(st.frozensets(st.sampled_from(NAMES)))
    found = (
        vip(
            name,
            frozenset(place for place, owner in owners.items() if owner == name),
            draw(st.sampled_from(["task.1", "task.2"])),
        )
        for name in sorted(names)
    )
    return {each.key: each for each in found}


def step(before: Published, vips: dict[VipKey, Vip], *, whole: bool) -> Update:
    changed = {key: vip for key, vip in vips.items() if whole or before.vips.get(key) != vip}
    dropped = frozenset() if whole else frozenset(before.vips.keys() - vips.keys())
    return Update(before.generation + 1, whole=whole, vips=changed, dropped_vips=dropped)


def known(directory: Directory) -> list[tuple[str | None, str | None]]:
    return [directory.names("tcp", f"{place}:80", "10.9.9.9:8080") for place in PLACES]


@given(worlds(), st.lists(st.tuples(worlds(), st.booleans()), max_size=5))
def test_following_is_as_good_as_starting_anew(
    first: dict[VipKey, Vip], later: list[tuple[dict[VipKey, Vip], bool]]
) -> None:
    published = Published(vips=first)
    directory = Directory(published)
    for vips, whole in later:
        known(directory)
        update = step(published, vips, whole=whole)
        directory.follow(published, update)
        published = update.applied_to(published)
        assert known(directory) == known(Directory(published))


def test_the_transport_is_part_of_the_address() -> None:
    web = vip("a", frozenset(PLACES[:1]), "task.1")
    directory = Directory(Published(vips={web.key: web}))
    name = "a.marathon.l4lb.thisdcos.directory:80"
    assert directory.names("tcp", "10.0.0.0:80", "10.9.9.9:8080") == (name, "task.1")
    assert directory.names("tcp", "10.0.0.0:80", None) == (name, None)
    assert directory.names("tcp", "10.0.0.0:80", "10.9.9.9:8081") == (name, None)
    assert directory.names("udp", "10.0.0.0:80", "10.9.9.9:8080") == (None, None)
