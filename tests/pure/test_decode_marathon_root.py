"""What Marathon says about itself, on octets typed by hand."""

import gzip

import pytest

from minuteman.decode.marathon import check_storage_version, read_framework_id
from minuteman.errors import ModelError

ENTRY = (
    b"\x0a\x18internal:storage:version"  # name=1
    b"\x12\x04uuid"  # uuid=2
    b"\x1a"  # value=3: a length and a StorageVersion are to follow
)
UNCOMPRESSED = b"\x20\x00"  # compressed=4
FORMAT = b"\x20\x01"  # format=4, PERSISTENCE_STORE


def entry(version: bytes) -> bytes:
    stored = version + FORMAT
    return ENTRY + bytes([len(stored)]) + stored + UNCOMPRESSED


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(b"\x08\x01\x10\x04\x18\x00", id="1.4"),
        pytest.param(b"\x08\x01\x10\x05\x18\x0b", id="1.5"),
        pytest.param(b"\x08\x01\x10\x06\x18\x00", id="1.6"),
        pytest.param(b"\x08\x11\x10\x00\x18\x00", id="1.7"),
        pytest.param(b"\x08\x12\x10\xc8\x01\x18\x00", id="1.8"),
        pytest.param(b"\x08\x13\x10\xac\x02\x18\x00", id="1.9"),
        pytest.param(b"\x08\x6e\x10\x64\x18\x00", id="1.11"),
    ],
)
def test_storage_versions_that_are_known(version: bytes) -> None:
    assert check_storage_version(entry(version)) == "known"


@pytest.mark.parametrize("version", [b"\x08\x6e\x10\x65\x18\x00", b"\x08\xc8\x01\x10\x00\x18\x00"])
def test_storage_versions_that_are_newer(version: bytes) -> None:
    assert check_storage_version(entry(version)) == "newer"


def test_storage_version_before_1_4_is_refused() -> None:
    with pytest.raises(ModelError, match=r"1\.3\.14.*older"):
        check_storage_version(entry(b"\x08\x01\x10\x03\x18\x0e"))


@pytest.mark.parametrize("data", [b"", b"\xff", ENTRY, entry(b"\xff")])
def test_storage_version_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(ModelError):
        check_storage_version(data)


def test_storage_version_in_gzip() -> None:
    stored = gzip.compress(b"\x08\x01\x10\x04\x18\x00" + FORMAT)
    data = ENTRY + bytes([len(stored)]) + stored + b"\x20\x01"
    assert check_storage_version(data) == "known"


def test_framework_id() -> None:
    assert read_framework_id(b"\x0a\x0dc620b0f5-0000") == "c620b0f5-0000"


@pytest.mark.parametrize("data", [b"", b"\x0a\x00", b"\x0a\x05c620", b"\x0a\x01\xff", b"\x07"])
def test_framework_id_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(ModelError):
        read_framework_id(data)
