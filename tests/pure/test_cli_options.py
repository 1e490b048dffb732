"""The command line against the settings, and what it makes of numbers."""

from __future__ import annotations

import inspect
import re
from typing import get_type_hints

import pytest

from minuteman.cli import agent
from minuteman.cli.vips import connect_time, host_port
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
