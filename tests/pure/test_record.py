"""Records: bytes with a name for each field, so that one version reads another one's."""

from __future__ import annotations

from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minuteman.dataplane.record import Record

OLD = Record("addr:4s port:H zero:2x runs:2I gone:Q")
NEW = Record("runs:2I addr:4s added:I port:I")


@given(st.binary(min_size=4, max_size=4), *[st.integers(0, 65_535)] * 4)
def test_it_packs_as_a_struct_does(addr: bytes, port: int, one: int, two: int, gone: int) -> None:
    struct = Struct("=4sH2x2IQ")
    raw = OLD.pack(addr, port, one, two, gone)
    assert raw == struct.pack(addr, port, one, two, gone)
    assert OLD.size == struct.size
    assert OLD.unpack(raw) == struct.unpack(raw)
    assert OLD.read(raw) == {
        "addr": (addr,), "port": (port,), "zero": (), "runs": (one, two), "gone": (gone,)
    }  # fmt: skip
    assert OLD.write(OLD.read(raw)) == raw


def test_another_layout_takes_the_fields_that_it_knows() -> None:
    raw = OLD.pack(b"abcd", 80, 1, 2, 3)
    assert NEW.unpack(NEW.write(OLD.read(raw))) == (1, 2, b"abcd", 0, 80)
    assert OLD.unpack(OLD.write(NEW.read(NEW.pack(1, 2, b"abcd", 9, 80)))) == (b"abcd", 80, 1, 2, 0)


def test_a_field_of_another_length_is_zero() -> None:
    longer = Record("runs:3I")
    assert longer.unpack(longer.write(OLD.read(OLD.pack(b"abcd", 80, 1, 2, 3)))) == (0, 0, 0)


def test_a_difference_wraps_around_as_the_numbers_do() -> None:
    numbers = Record("small:B zero:x words:2I long:Q")
    before, after = numbers.pack(255, 7, 1, 2**64 - 1), numbers.pack(1, 5, 4, 1)
    assert numbers.unpack(numbers.difference(after, before)) == (2, 2**32 - 2, 3, 2)


@pytest.mark.parametrize("text", ["addr", "a:I a:I", "a:I b:", "a:4 b:I", "a-b:I", "a:q"])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no further field"):
        Record(text)
