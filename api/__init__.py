"""The REST interface: what the agent knows, as HTTP. It changes nothing.

`api.app.create_app` makes the application; `api.schemas` is what clients read.
"""
