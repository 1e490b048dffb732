"""Versions of apps that have instances, and the options that count for all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from minuteman.decode.marathon import App, AppPort, Listener
from minuteman.model import UnitId, VipClaim, VipKey, VipName
from minuteman.source.deployed import Deployed

WEB, OTHER = "web", "other"
ONE, TWO, THREE = map(UnitId, ("instance/web.1", "instance/web.2", "instance/web.3"))


def version(number: int, **weights: int) -> App:
    """A version of an app that asks for VIPs of these names, with these weights."""
    claims = tuple(
        VipClaim(VipKey(VipName(name, "marathon"), 80, "tcp"), weight=weight)
        for name, weight in sorted(weights.items())
    )
    port = AppPort("", True, None, (Listener("tcp", claims),))
    return App("/web", number, 1, "host", checked=False, ports=(port,), problems=())


def deleted(_app_id: str) -> None:
    """What is in the znode of every app."""


# ---- by example ----------------------------------------------------------------------------------
def test_an_app_that_is_upgraded_and_rolled_back() -> None:
    old, new = version(1, a=1), version(2, a=2)
    current = {WEB: old, OTHER: old}
    deployed = Deployed(current.get)
    for instance in (ONE, TWO):
        assert deployed.join(WEB, instance, old) is old
    deployed.join(OTHER, THREE, old)
    assert deployed.outdated() == set()

    current[WEB] = new
    deployed.doubt(WEB)
    assert deployed.outdated() == {ONE, TWO}
    assert deployed.join(WEB, ONE, old) == version(1, a=2)
    assert deployed.join(WEB, TWO, new) is new
    assert deployed.outdated() == set()

    current[WEB] = back = version(3, a=1)
    deployed.doubt(WEB)
    assert deployed.outdated() == {ONE, TWO}
    assert deployed.join(WEB, ONE, old) == old
    assert deployed.join(WEB, TWO, new) == version(2, a=1)
    assert deployed.join(WEB, TWO, back) is back
    assert deployed.outdated() == set()


def test_another_version_that_says_the_same_outdates_nobody() -> None:
    current = {WEB: version(1, a=1)}
    deployed = Deployed(current.get)
    deployed.join(WEB, ONE, current[WEB])
    current[WEB] = version(2, a=1, b=7)
    deployed.doubt(WEB)
    deployed.join(WEB, TWO, current[WEB])
    assert deployed.outdated() == set()


def test_without_the_apps_own_znode_the_newest_version_with_an_instance_counts() -> None:
    deployed = Deployed(deleted)
    deployed.join(WEB, ONE, version(1, a=1))
    deployed.join(WEB, TWO, version(2, a=2))
    assert deployed.outdated() == {ONE}
    deployed.leave(WEB, TWO)
    assert deployed.outdated() == {ONE}
    assert deployed.join(WEB, ONE, version(1, a=1)) == version(1, a=1)
    deployed.leave(WEB, TWO)  # it is not there any more
    deployed.leave(OTHER, TWO)
    assert deployed.outdated() == set()


def test_a_version_whose_content_became_another_one_outdates_all_who_run_it() -> None:
    deployed = Deployed(deleted)
    deployed.join(WEB, ONE, version(1, a=1))
    deployed.join(WEB, TWO, version(1, a=1))
    restored = version(1, a=5)
    deployed.join(WEB, TWO, restored)
    assert deployed.outdated() == {ONE, TWO}
    assert deployed.join(WEB, ONE, restored) is deployed.join(WEB, TWO, restored) is restored


def test_only_the_instances_that_are_there_are_retained() -> None:
    old, new = version(1, a=1), version(2, a=2)
    deployed = Deployed(deleted)
    for app_id, instance, app in ((WEB, ONE, old), (WEB, TWO, new), (OTHER, THREE, new)):
        deployed.join(app_id, instance, app)
    assert deployed.outdated() == {ONE}
    deployed.retain({ONE})
    assert list(deployed.definitions()) == [old]
    assert deployed.outdated() == {ONE}


# ---- any history ---------------------------------------------------------------------------------
Weights = Mapping[str, int]

weights = st.dictionaries(st.sampled_from(("a", "b")), st.integers(0, 2))
pools: st.SearchStrategy[Mapping[int, Weights]] = st.fixed_dictionaries(
    dict.fromkeys((1, 2, 3), weights)
)
numbers = st.sampled_from((1, 2, 3))
instances = st.sampled_from((ONE, TWO, THREE))
steps = st.one_of(
    st.tuples(st.just("join"), instances, numbers),
    st.tuples(st.just("join"), instances, numbers),
    st.tuples(st.just("leave"), instances),
    st.tuples(st.just("publish"), st.none() | numbers),
    st.tuples(st.just("settle")),
)


@dataclass
class Model:
    """One app and its instances, and the rule written down without any regard to cost."""

    pool: Mapping[int, Weights]
    current: int | None = None
    running: dict[UnitId, int] = field(default_factory=dict)

    def weight(self, name: str) -> int:
        order = [self.current, *sorted(self.running.values(), reverse=True)]
        return next(
            self.pool[number][name] for number in order if number and name in self.pool[number]
        )

    def adjusted(self, instance: UnitId) -> App:
        number = self.running[instance]
        return version(number, **{name: self.weight(name) for name in self.pool[number]})


@given(pools, st.lists(steps, max_size=20))
def test_after_any_history_all_run_what_the_rule_says(
    pool: Mapping[int, Weights], history: list[tuple[object, ...]]
) -> None:
    model = Model(pool)
    apps = {number: version(number, **said) for number, said in pool.items()}
    deployed = Deployed(lambda _: None if model.current is None else apps[model.current])
    told: dict[UnitId, App] = {}

    def join(instance: UnitId, number: int) -> None:
        model.running[instance] = number
        told[instance] = deployed.join(WEB, instance, replace(apps[number]))

    for step in [*history, ("settle",)]:
        match step:
            case ("join", str(instance), int(number)):
                join(UnitId(instance), number)
            case ("leave", str(instance)):
                model.running.pop(UnitId(instance), None)
                told.pop(UnitId(instance), None)
                deployed.leave(WEB, UnitId(instance))
            case ("publish", None | int() as number):
                model.current = number
                deployed.doubt(WEB)
            case ("settle",):
                outdated = deployed.outdated()
                assert outdated == {each for each in told if told[each] != model.adjusted(each)}
                for instance in outdated:
                    join(instance, model.running[instance])
                assert told == {each: model.adjusted(each) for each in model.running}
                assert deployed.outdated() == set()
