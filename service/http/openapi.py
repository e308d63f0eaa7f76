"""The parts of the OpenAPI description that FastAPI cannot derive, and the page that shows it.

They are the bodies that the routes read themselves, the problem documents and the request's id.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from taillift.service.http.handlers import MEDIA_TYPE
from taillift.service.http.uploads import FIELD, SentObject
from taillift.service.monitoring.logs import REQUEST_ID
from taillift.service.page import StoredFolder

# The groups of routes that the page shows, in this order.
IMAGES: Final = "Images"
MODEL: Final = "Model and classes"
LABELS: Final = "Labels"
OPERATION: Final = "Operation"
GROUPS_OF_ROUTES: Final[list[dict[str, Any]]] = [
    {"name": IMAGES, "description": "send photos, get classes"},
    {"name": MODEL, "description": "what is served, and whether each class still works"},
    {"name": LABELS, "description": "send what the images really showed"},
    {"name": OPERATION, "description": "for load balancers and Prometheus; no API key is needed"},
]

_REQUEST_ID: Final = {
    "type": "string",
    "pattern": "^[!-~]{1,128}$",
    "description": "id of the request in its answer and in the service's log",
}
_SENT_REQUEST_ID: Final = {
    "name": REQUEST_ID,
    "in": "header",
    "required": False,
    "description": "id to use for this request: 1 to 128 visible ASCII characters; without it, or "
    "if it is anything else, the service makes one",
    "schema": {"type": "string"},
}
_ANSWERED_REQUEST_ID: Final = {
    "required": True,
    "description": _REQUEST_ID["description"],
    "schema": _REQUEST_ID,
}

_PROBLEM: Final = {
    "schema": {
        "allOf": [
            {"$ref": "#/components/schemas/ProblemDocument"},
            {
                "type": "object",
                "required": ["error", "request_id"],
                "properties": {
                    "error": {"type": "string", "description": "the same as `detail`"},
                    "request_id": _REQUEST_ID,
                },
            },
        ]
    }
}

_PROBLEMS: Final = {
    400: "Malformed: no image, or an unknown form field, query parameter or value",
    401: "No API key was sent, or an unknown one",
    403: "A web page of another origin sends this, which cors_origins does not allow; or the API "
    "key may not send labels",
    404: "There is no such class, version or photo; the detail may name the nearest class",
    408: "The body was not complete in time, or there is no answer before the deadline",
    409: "The version cannot have the role; the detail says why",
    412: "The roles have changed since they were read, or are about to",
    413: "The body has too many bytes, or the image too many pixels",
    415: "Not a JPEG, PNG or WebP image, or a body with a Content-Encoding",
    421: "The service does not answer for the host in the header Host",
    422: "The image is damaged or longer than 32:1, none of several images can be used, or the "
    "classes or counts of the query are not the model's",
    429: "Overloaded: try again after the seconds in the header Retry-After",
    500: "The model failed on the image, or the service failed",
    503: "Not ready: starting, stalled or shutting down",
    507: "The version does not fit into memory next to the one that is served",
}

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """Return the description of the problem documents that a route can answer with."""
    return {
        status: {"description": _PROBLEMS[status], "content": {MEDIA_TYPE: _PROBLEM}}
        for status in statuses
    }


INFERENCE_PROBLEMS: Final = problems(
    *(status for status in _PROBLEMS if status not in {401, 409, 412, 507})
)
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


def json_body(document: type[SentObject]) -> dict[str, Any]:
    """Return the description of a body that a route reads itself.

    Objects in it have to be in the answer of a route as well, which describes them.
    """
    schema = document.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


# Addresses are relative, so that a proxy can serve the page below a path, and nothing is loaded
# from another host, so that it works without internet access.
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
    """Complete the description of `app`, and show it at /docs without other hosts."""
    describe = app.openapi

    def describe_with_request_id() -> dict[str, Any]:
        if app.openapi_schema is None:
            for path in describe()["paths"].values():
                for operation in path.values():
                    operation.setdefault("parameters", []).append(_SENT_REQUEST_ID)
                    for response in operation["responses"].values():
                        response.setdefault("headers", {})[REQUEST_ID] = _ANSWERED_REQUEST_ID
        return describe()

    app.openapi = describe_with_request_id  # type: ignore[method-assign]
    encoded: list[bytes] = []

    async def description(_: Request) -> Response:
        """Give the description of the service, which is encoded once."""
        if not encoded:
            encoded.append(bytes(JSONResponse(app.openapi()).body))
        return Response(encoded[0], media_type="application/json")

    app.add_route("/openapi.json", description, include_in_schema=False)
    app.include_router(_pages)
    app.mount("/swagger", StoredFolder(Path(str(files("fastapi_offline") / "static"))))
