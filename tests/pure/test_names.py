"""DNS normalisation: vectors of `remap_test` in mesos_state.erl, and of the DC/OS UI's HostUtil."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.names.text import LABEL_OCTETS, domain_frag, label

SIXTY_THREE = "fdgsf---gs7-fgs--d7fddg1234567890123456789012345678901234567891"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fd%gsf---gs7-f$gs--d7fddg-123", "fdgsf---gs7-fgs--d7fddg-123"),
        ("4abc123", "4abc123"),
        ("-4abc123", "4abc123"),
        ("-@4abc123", "4abc123"),
        ("4abc123-", "4abc123"),
        ("89fdgsf---gs7-fgs--d7fddg---123", "89fdgsf---gs7-fgs--d7fddg---123"),
        (
            "##fdgsf---gs7-fgs--d7fddg123456789012345678901234567890123456789-",
            "fdgsf---gs7-fgs--d7fddg123456789012345678901234567890123456789",
        ),
        ("fd%gsf---gs7-f$gs--d7fddg123456789012345678901234567890123456789-123", SIXTY_THREE),
        ("%%fdgsf---gs7-fgs--d7fddg123456789012345678901234567890123456789---123", SIXTY_THREE),
        ("$$fdgsf---gs7-fgs--d7fddg123456789012345678901234567890123456789-123", SIXTY_THREE),
        ("89fdgsf---gs7-fgs--d7fddg-", "89fdgsf---gs7-fgs--d7fddg"),
        ("0-0", "0-0"),
        ("a" + 47 * "-" + "b", "a" + 47 * "-" + "b"),
        ("a" + 68 * "-" + "b", "ab"),
        ("fdgsf_4abc123", "fdgsf-4abc123"),
        ("fdgsf/4abc123", "fdgsf4abc123"),
        ("XYZ", "xyz"),
        ("".join(f"{n:02}" for n in range(1, 34)), "".join(f"{n:02}" for n in range(1, 33))[:63]),
        ("", ""),
        ("$$$", ""),
        ("-_-", ""),
        ("\u212aelvin", "elvin"),  # its lower case is an ASCII k, but it is not an ASCII letter
        ("b\udc80\u00fccher", "bcher"),
    ],
)
def test_label(text: str, expected: str) -> None:
    assert label(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".fdgsf.4abc123", "fdgsf.4abc123"),
        ("fdgsf.4abc123.", "fdgsf.4abc123"),
        ("fdgsf..4abc123", "fdgsf.4abc123"),
        ("$$.foo", "foo"),
        ("dev/kafka", "devkafka"),
        ("/group/app", "groupapp"),
        ("api.hello-world", "api.hello-world"),
        ("...", ""),
        ("", ""),
    ],
)
def test_domain_frag(text: str, expected: str) -> None:
    assert domain_frag(text) == expected


MANGLED = st.text(st.sampled_from("aZ0-_./$\u00e9"), max_size=200)


@given(st.text() | MANGLED)
def test_a_label_is_a_dns_label_or_nothing(text: str) -> None:
    assert re.fullmatch(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)?", label(text))
    assert len(label(text)) <= LABEL_OCTETS


@given(st.text() | MANGLED)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert label(label(text)) == label(text)
    assert domain_frag(domain_frag(text)) == domain_frag(text)
