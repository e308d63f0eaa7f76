"""What the OpenAPI description cannot know by itself: bodies read by hand, and every problem."""

from typing import Any, Final

from service.handlers import MEDIA_TYPE
from service.upload import FIELD

_PROBLEM: Final = {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}

_PROBLEMS: Final = {
    400: "Malformed: no image, or an unknown form field, query parameter or value",
    408: "The body was not complete in time",
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


INFERENCE_PROBLEMS: Final = problems(*_PROBLEMS)
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
