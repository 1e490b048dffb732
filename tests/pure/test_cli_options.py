"""The command line against the settings, and what it makes of numbers."""

from __future__ import annotations

import inspect
import re
from typing import get_type_hints

import pytest

from minuteman.cli import agent
from minuteman.cli.text import age, connect_time, host_port, rate, size
from minuteman.names.home import AddressRange
from minuteman.settings import Settings

NOT_SETTINGS = {"context", "config", "detach_all"}


def test_every_setting_is_an_option_of_the_agent() -> None:
    assert inspect.signature(agent.agent).parameters.keys() - NOT_SETTINGS == set(
        Settings.model_fields
    )


@pytest.mark.parametrize("name", Settings.model_fields)
def test_help_says_the_default(name: str) -> None:
    hint = get_type_hints(agent.agent, include_extras=True)[name]
    said = re.search(r"\[default: (.*)\]", hint.__metadata__[0].help)
    match Settings.model_fields[name].default:
        case "":
            assert said is None
        case None | tuple():
            assert said is not None, "in words"
        case AddressRange() as default:
            assert said is not None
            assert AddressRange.parse(said[1]) == default
        case float(default):
            assert said is not None
            assert float(said[1]) == default
        case default:
            assert said is not None
            assert said[1] == str(default)


@pytest.mark.parametrize(
    ("histogram", "quantile", "shown"),
    [
        ((), 0.5, ""),
        ((0, 0, 0), 0.5, ""),
        ((1, 0, 0), 0.5, "<1us"),
        ((0, 99, 1), 0.99, "<2us"),
        ((0, 98, 2), 0.99, ">=2us"),
        ((0,) * 10 + (5, 0), 0.5, "<1.0ms"),
        ((0,) * 15 + (5, 0), 0.5, "<32.8ms"),
        ((0,) * 21 + (5, 0), 0.5, "<2.1s"),
    ],
)
def test_connect_times(histogram: tuple[int, ...], quantile: float, shown: str) -> None:
    assert connect_time(histogram, quantile) == shown


def test_ipv6_is_bracketed() -> None:
    assert host_port("10.0.0.1", 80) == "10.0.0.1:80"
    assert host_port("fd00::1", 80) == "[fd00::1]:80"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0B"),
        (999, "999B"),
        (1_000, "1.0kB"),
        (999_949, "999.9kB"),
        (999_950, "1.0MB"),
        (2_500_000_000, "2.5GB"),
        (10**19, "10000.0PB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.4, "59s"), (60, "1m"), (7_000, "1h"), (86_400 * 49, "49d")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


@pytest.mark.parametrize(
    ("per_second", "shown"), [(0, "0"), (0.5, "0.5"), (9.9, "9.9"), (10, "10"), (1234.5, "1234")]
)
def test_rates(per_second: float, shown: str) -> None:
    assert rate(per_second) == shown
