"""The ASGI application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from api import pages, problem_json, routes, schemas
from minuteman import __version__
from minuteman.reader import Reader

SCHEMA_REF = "#/components/schemas/{model}"


class Application(FastAPI):
    """FastAPI whose description knows the shape of our errors."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; made once."""
        if not self.openapi_schema:
            document = super().openapi()
            details = TypeAdapter(schemas.ProblemDetails).json_schema(ref_template=SCHEMA_REF)
            document["components"]["schemas"] |= details.pop("$defs")
            document["components"]["schemas"]["ProblemDetails"] = details
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
    app.include_router(pages.router())
    return app
