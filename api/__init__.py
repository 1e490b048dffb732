"""The REST interface: what the agent knows, as HTTP. It changes nothing."""

from api.app import create_app

__all__ = ["create_app"]
