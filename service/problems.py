"""Every way to refuse or to fail: one class each, with its HTTP status and document (RFC 9457).

`reason` is the name of a problem in the metrics and, with hyphens, in the document's `type`.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

from pydantic import BaseModel, Field

from taillift.models.bundle.images import (
    BrokenImageError,
    ImageError,
    ImageTooLargeError,
    ImageTooLongError,
    ModelFailureError,
    NotAnImageError,
    UnreadableImageError,
)

Late = Literal["admission", "read", "decode", "queue", "infer"]
LATE: Final[tuple[Late, ...]] = get_args(Late)


class ProblemDocument(BaseModel):
    """Problem document of RFC 9457: `type` never changes, `detail` is written for people."""

    type: str = Field(examples=["urn:taillift:problem:undecodable"])
    title: str = Field(examples=["The image cannot be decoded"])
    status: int = Field(examples=[422])
    detail: str


class NoImageDocument(ProblemDocument):
    images: list[ProblemDocument] = Field(
        description="the problem of each image, in the order of the images"
    )


class ServiceError(Exception):
    """Problem that the service answers a request with; `detail` says what to do about it."""

    status: int
    reason: str
    title: str
    headers: Mapping[str, str] | None = None

    def __init__(self, detail: str) -> None:
        # JSON can name what is not a character, such as "\ud800", and no answer can hold it.
        self.detail = detail.encode("utf-8", "replace").decode()
        super().__init__(self.detail)

    def document(self) -> ProblemDocument:
        """Return the document to answer with; `respond` adds the request's id."""
        return ProblemDocument(
            type=f"urn:taillift:problem:{self.reason.replace('_', '-')}",
            title=self.title,
            status=self.status,
            detail=self.detail,
        )


class MalformedError(ServiceError):
    status, reason, title = 400, "malformed", "The request is malformed"


class UnauthorisedError(ServiceError):
    status, reason, title = 401, "unauthorised", "An API key is needed"
    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer realm="taillift"'}


class NoRightError(ServiceError):
    status, reason, title = 403, "no_right", "The API key does not have the right"


class ForeignOriginError(ServiceError):
    status, reason, title = 403, "foreign_origin", "The page is of another origin"


class UnknownHostError(ServiceError):
    status, reason, title = 421, "unknown_host", "The service has another host"


class EncodedError(ServiceError):
    status, reason, title = 415, "encoded", "The body has a Content-Encoding"
    headers: Mapping[str, str] = {"Accept-Encoding": "identity"}


class UnknownCodingError(ServiceError):
    status, reason, title = 501, "unknown_coding", "The Transfer-Encoding is unknown"


class UnknownVersionError(ServiceError):
    status, reason, title = 505, "unknown_version", "The version of HTTP is unknown"


class HeaderTimeoutError(ServiceError):
    status, reason, title = 408, "header_timeout", "The request's headers took too long"


class HeadersTooLargeError(ServiceError):
    status, reason, title = 431, "headers_too_large", "The request's headers are too large"


class TooManyConnectionsError(ServiceError):
    status, reason, title = 429, "too_many_connections", "Too many connections are open"
    headers: Mapping[str, str] = {"Retry-After": "1"}


class BodyTimeoutError(ServiceError):
    status, reason, title = 408, "body_timeout", "The request's body took too long"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.headers = {"Connection": "close"}  # The rest of the body is not read.


class UnknownClassError(ServiceError):
    status, reason, title = 404, "unknown_class", "The model has no such class"


class UnknownModelError(ServiceError):
    status, reason, title = 404, "unknown_model", "The service has no such model"


class NoSuchVersionError(ServiceError):
    status, reason, title = 404, "no_such_version", "The version is not loaded"


class RefusedVersionError(ServiceError):
    status, reason, title = 409, "refused_version", "The version cannot have the role"


class StaleRolesError(ServiceError):
    status, reason, title = 412, "stale_roles", "The roles have changed"


class NoRoomError(ServiceError):
    status, reason, title = 507, "over_budget", "The version does not fit into memory"


class ClassesError(ServiceError):
    status, reason, title = 422, "classes", "The classes or counts cannot be used"


class TailError(ServiceError):
    status, reason, title = 422, "tail", "The tail is out of range"


class DeadlineError(ServiceError):
    """Deadline that passed, or that cannot be met; `stage` is where the request was then."""

    status, reason, title = 408, "deadline", "The request cannot be answered in time"

    def __init__(self, detail: str, stage: Late) -> None:
        super().__init__(detail)
        self.stage = stage
        if stage == "read":
            self.headers = {"Connection": "close"}  # The rest of the body is not read.


class BodyTooLargeError(ServiceError):
    status, reason, title = 413, "body_too_large", "The request's body is too large"


class RequestPixelsError(ServiceError):
    status, reason, title = 413, "request_pixels", "The request's images have too many pixels"


class OverloadedError(ServiceError):
    """Too much work in progress; the client may come back after `retry_after` seconds."""

    status, reason, title = 429, "overloaded", "The service is overloaded"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.headers = {"Retry-After": str(retry_after)}


class NotReadyError(ServiceError):
    """Nothing is accepted now; if it is known, the client may come back after `retry_after` s."""

    status, reason, title = 503, "not_ready", "The service is not ready"

    def __init__(self, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        if retry_after is not None:
            self.headers = {"Retry-After": str(retry_after)}


CLOSING: Final = "the service is shutting down"


class NoSuchPhotoError(ServiceError):
    status, reason, title = 404, "no_such_photo", "The photo is not in the queue"


class QueueFailedError(ServiceError):
    status, reason, title = 503, "queue_failed", "The queue of photos cannot be used"


class OutOfMemoryError(ServiceError):
    status, reason, title = 503, "out_of_memory", "The service has no memory left"


class LabelsNotKeptError(ServiceError):
    status, reason, title = 503, "labels_not_kept", "The labels cannot be kept"


class InternalError(ServiceError):
    status, reason, title = 500, "internal", "The service failed"
    headers: Mapping[str, str] = {"Connection": "close"}  # uvicorn closes it after an exception.


class PerImageError(ServiceError):
    """Problem of one image; the other images of its request are answered."""


class UnsupportedTypeError(PerImageError):
    status, reason, title = 415, "unsupported_type", "Not an image of a supported type"


class UndecodableError(PerImageError):
    status, reason, title = 422, "undecodable", "The image cannot be decoded"


class TooManyPixelsError(PerImageError):
    status, reason, title = 413, "too_many_pixels", "The image has too many pixels"


class ImageBytesError(PerImageError):
    status, reason, title = 413, "image_too_large", "The image's file is too large"


class TooLongError(PerImageError):
    status, reason, title = 422, "too_long", "The image is too long for its width"


class InferenceError(PerImageError):
    status, reason, title = 500, "inference_failed", "The model failed on the image"


class NoImageError(PerImageError):
    """Problem of several images that are all unusable.

    The status is the one that they share, or 422 if they differ.
    """

    reason, title = "no_image", "None of the images can be used"

    def __init__(self, problems: Sequence[PerImageError]) -> None:
        super().__init__(f"none of the {len(problems)} images can be used, see `images`")
        statuses = {problem.status for problem in problems}
        self.status = statuses.pop() if len(statuses) == 1 else UndecodableError.status
        self._problems = problems

    def document(self) -> NoImageDocument:
        return NoImageDocument(
            **super().document().model_dump(),
            images=[problem.document() for problem in self._problems],
        )


IMAGE_PROBLEMS: Final[Mapping[type[ImageError], type[PerImageError]]] = {
    UnreadableImageError: UndecodableError,
    NotAnImageError: UnsupportedTypeError,
    BrokenImageError: UndecodableError,
    ImageTooLargeError: TooManyPixelsError,
    ImageTooLongError: TooLongError,
    ModelFailureError: InferenceError,
}


def image_problem(error: ImageError) -> PerImageError:
    """Return the problem that the service answers an unusable image with."""
    return IMAGE_PROBLEMS[type(error)](str(error))


DISCONNECTED: Final = "disconnected"

# The complete list, so that each reason is in the metrics from the first scrape.
REASONS: Final = (
    *(
        problem.reason
        for problem in (
            MalformedError,
            UnauthorisedError,
            NoRightError,
            ForeignOriginError,
            UnknownHostError,
            EncodedError,
            UnknownCodingError,
            UnknownVersionError,
            HeaderTimeoutError,
            HeadersTooLargeError,
            TooManyConnectionsError,
            BodyTimeoutError,
            UnknownClassError,
            UnknownModelError,
            NoSuchVersionError,
            RefusedVersionError,
            StaleRolesError,
            NoRoomError,
            ClassesError,
            TailError,
            DeadlineError,
            BodyTooLargeError,
            RequestPixelsError,
            OverloadedError,
            NotReadyError,
            NoSuchPhotoError,
            QueueFailedError,
            OutOfMemoryError,
            LabelsNotKeptError,
            InternalError,
            UnsupportedTypeError,
            UndecodableError,
            TooManyPixelsError,
            ImageBytesError,
            TooLongError,
            InferenceError,
        )
    ),
    DISCONNECTED,
)
