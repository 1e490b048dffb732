"""Pages for people: the index and the API's documentation, without anything from the internet."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

NO_ICON = "data:,"
CACHE_DAY = {"Cache-Control": "max-age=86400"}


def router() -> APIRouter:
    """Routes of the pages. Their files are read here: later this process may not read any."""
    pages = APIRouter(include_in_schema=False)
    index = files("api").joinpath("static/index.html").read_text()
    swagger = files("fastapi_offline") / "static"
    script = swagger.joinpath("swagger-ui-bundle.js").read_bytes()
    style = swagger.joinpath("swagger-ui.css").read_bytes()

    @pages.get("/")
    async def show_index() -> HTMLResponse:
        return HTMLResponse(index)

    # Addresses are relative, so that the pages work behind a proxy's prefix too.
    @pages.get("/docs")
    async def show_documentation() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Minuteman",
            swagger_js_url="docs/swagger-ui.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url=NO_ICON,
        )

    @pages.get("/docs/swagger-ui.js")
    async def send_script() -> Response:
        return Response(script, media_type="text/javascript", headers=CACHE_DAY)

    @pages.get("/docs/swagger-ui.css")
    async def send_style() -> Response:
        return Response(style, media_type="text/css", headers=CACHE_DAY)

    return pages
