"""What the OpenAPI description cannot know by itself, and the page that shows it.

The first are bodies read by hand, and every problem.
"""

from importlib.resources import files
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from taillift.service.http.handlers import MEDIA_TYPE
from taillift.service.http.uploads import FIELD

_PROBLEM: Final = {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}

_PROBLEMS: Final = {
    400: "Malformed: no image, or an unknown form field, query parameter or value",
    401: "An API key is needed, and none or an unknown one was sent",
    404: "The model has no class of this label; the nearest one may be named",
    408: "The body was not complete in time, or there is no answer before the deadline",
    413: "The body has too many bytes, or the image too many pixels",
    415: "Not a JPEG, PNG or WebP image",
    422: "The image is damaged or longer than 32:1; or none of several images can be used",
    429: "Overloaded: try again after the seconds in the header Retry-After",
    500: "The model failed on the image, or the service did",
    503: "Not ready: starting, stalled or shutting down",
}

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """The problem documents that a route can answer with."""
    return {
        status: {"description": _PROBLEMS[status], "content": {MEDIA_TYPE: _PROBLEM}}
        for status in statuses
    }


INFERENCE_PROBLEMS: Final = problems(*(status for status in _PROBLEMS if status not in {401, 404}))
INFERENCE_PROBLEMS[429]["headers"] = {
    "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}
}

_BINARY: Final = {"type": "string", "format": "binary"}

IMAGES_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "array", "minItems": 1, "items": _BINARY}},
                }
            },
            **{f"image/{kind}": {"schema": _BINARY} for kind in ("jpeg", "png", "webp")},
        },
    }
}

# Relative addresses, for a proxy that serves it below a path; and nothing from elsewhere, for a
# network without a way out.
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>taillift</title>
<link rel="stylesheet" href="swagger/swagger-ui.css">
<link rel="icon" href="swagger/favicon.png">
</head>
<body>
<div id="api"></div>
<script src="swagger/swagger-ui-bundle.js"></script>
<script src="docs.js"></script>
</body>
</html>
"""
_SCRIPT: Final = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#api", deepLinking: true});\n'

_pages = APIRouter(include_in_schema=False)


@_pages.get("/docs")
async def page() -> HTMLResponse:
    return HTMLResponse(_PAGE)


@_pages.get("/docs.js")
async def script() -> Response:
    return Response(_SCRIPT, media_type="text/javascript")


def add_docs(app: FastAPI) -> None:
    """Show the description of `app` at /docs, without the internet and without inline scripts."""
    app.include_router(_pages)
    app.mount("/swagger", StaticFiles(directory=str(files("fastapi_offline") / "static")))
