"""Every way to refuse or to fail: one class each, which carries its status (RFC 9457)."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

from pydantic import BaseModel, Field

from taillift.models.bundle.images import (
    BrokenImageError,
    ImageError,
    ImageTooLargeError,
    ImageTooLongError,
    NotAnImageError,
    UnreadableImageError,
)

Late = Literal["admission", "read", "decode", "queue", "infer"]
LATE: Final[tuple[Late, ...]] = get_args(Late)


class ProblemDocument(BaseModel):
    """RFC 9457. `type` names the kind of problem and never changes; `detail` is for people."""

    type: str = Field(examples=["urn:taillift:problem:undecodable"])
    title: str = Field(examples=["The image is damaged"])
    status: int = Field(examples=[422])
    detail: str


class NoImageDocument(ProblemDocument):
    images: list[ProblemDocument] = Field(description="each image's problem, in their order")


class ServiceError(Exception):
    """What a client is told. `reason` is its name in the metrics and in the document's type."""

    status: int
    reason: str
    title: str
    headers: Mapping[str, str] | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def document(self) -> ProblemDocument:
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
        self.headers = {"Connection": "close"}  # The rest of the body is not waited for.


class UnknownClassError(ServiceError):
    status, reason, title = 404, "unknown_class", "The model has no such class"


class DeadlineError(ServiceError):
    """`stage` is where the request was when its time was over, or was seen not to be enough."""

    status, reason, title = 408, "deadline", "The request cannot be answered in time"

    def __init__(self, detail: str, stage: Late) -> None:
        super().__init__(detail)
        self.stage = stage
        if stage == "read":
            self.headers = {"Connection": "close"}  # The rest of the body is not waited for.


class BodyTooLargeError(ServiceError):
    status, reason, title = 413, "body_too_large", "The request's body is too large"


class OverloadedError(ServiceError):
    """`retry_after` is in seconds."""

    status, reason, title = 429, "overloaded", "The service is overloaded"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.headers = {"Retry-After": str(retry_after)}


class NotReadyError(ServiceError):
    status, reason, title = 503, "not_ready", "The service is not ready"


class InternalError(ServiceError):
    status, reason, title = 500, "internal", "The service failed"


class PerImageError(ServiceError):
    """One image's problem; the others of its request are answered."""


class UnsupportedTypeError(PerImageError):
    status, reason, title = 415, "unsupported_type", "Not an image of a supported type"


class UndecodableError(PerImageError):
    status, reason, title = 422, "undecodable", "The image cannot be decoded"


class TooManyPixelsError(PerImageError):
    status, reason, title = 413, "too_many_pixels", "The image has too many pixels"


class TooLongError(PerImageError):
    status, reason, title = 422, "too_long", "The image is too long for its width"


class InferenceError(PerImageError):
    status, reason, title = 500, "inference_failed", "The model failed on the image"


class NoImageError(PerImageError):
    """Several images, and none can be used: with their status where they share one, else 422."""

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
}


def image_problem(error: ImageError) -> PerImageError:
    return IMAGE_PROBLEMS[type(error)](str(error))


DISCONNECTED: Final = "disconnected"

# Closed, so that each exists in the metrics from the first scrape.
REASONS: Final = (
    *(
        problem.reason
        for problem in (
            MalformedError,
            UnauthorisedError,
            HeaderTimeoutError,
            HeadersTooLargeError,
            TooManyConnectionsError,
            BodyTimeoutError,
            UnknownClassError,
            DeadlineError,
            BodyTooLargeError,
            OverloadedError,
            NotReadyError,
            InternalError,
            UnsupportedTypeError,
            UndecodableError,
            TooManyPixelsError,
            TooLongError,
            InferenceError,
        )
    ),
    DISCONNECTED,
)
