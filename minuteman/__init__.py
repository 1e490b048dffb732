"""Minuteman: one fixed address for a service whose tasks move, kept by every host's own kernel."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("minuteman")
