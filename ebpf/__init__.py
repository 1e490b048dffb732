"""The C sources of the eBPF programs, and where they are."""

from pathlib import Path

__all__ = ["sources"]


def sources() -> Path:
    """The folder of the C sources, in a checkout and in an installed wheel alike."""
    return Path(__file__).resolve().parent
