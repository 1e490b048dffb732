"""The ASGI application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from api import events, pages, problem_json, routes, schemas
from minuteman import __version__
from minuteman.reader import Reader

SCHEMA_REF = "#/components/schemas/{model}"
OTHER_SHAPES = (schemas.ProblemDetails, schemas.Event, schemas.LostEvents)
"""Those of bodies that are not one JSON document of the route's own."""


class Application(FastAPI):
    """FastAPI whose description knows the shapes of our errors and events, too."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; made once."""
        if not self.openapi_schema:
            document = super().openapi()
            for shape in OTHER_SHAPES:
                described = TypeAdapter(shape).json_schema(ref_template=SCHEMA_REF)
                document["components"]["schemas"] |= described.pop("$defs", {})
                document["components"]["schemas"][shape.__name__] = described
        return super().openapi()


def create_app(reader: Reader) -> FastAPI:
    """The REST interface over what `reader` knows."""
    app = Application(
        title="Minuteman",
        summary="Virtual IPs of this host",
        description="Reads only. Failures are `application/problem+json` (RFC 9457).",
        version=__version__,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.reader = reader
    problem_json.install(app)
    app.include_router(routes.router)
    app.include_router(events.router)
    app.include_router(pages.router())
    return app
