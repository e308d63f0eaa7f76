"""The route that takes labels back: POST /feedback."""

from collections import Counter
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from taillift.models.errors import UserError
from taillift.service.feedback.label_book import LabelRequest, LabelStatus
from taillift.service.http.openapi import LABELS, problems
from taillift.service.http.uploads import SentObject, read_document
from taillift.service.inference.engine import Engine
from taillift.service.problems import LabelsNotKeptError

MAX_LABELS: Final = 1_000
MAX_BODY_BYTES: Final = 256 * 2**10
# Longer ids, labels and notes than any that is right are refused before anything is compared.
MAX_ID: Final = 100
MAX_LABEL: Final = 1_000
MAX_NOTE: Final = 500

router = APIRouter(tags=[LABELS])


class SentLabel(SentObject):
    id: str = Field(max_length=MAX_ID, description="the `id` of a result of POST /classify")
    label: str | None = Field(
        max_length=MAX_LABEL,
        description="the class that the image shows; null: none of the model's classes",
    )
    note: str = Field("", max_length=MAX_NOTE, description="a remark, which is kept and exported")


class Feedback(SentObject):
    labels: Annotated[list[SentLabel], Field(fail_fast=True, max_length=MAX_LABELS)]


# With the schema of a label in its place: FastAPI does not know of this body.
BODY: Final = Feedback.model_json_schema()
BODY["properties"]["labels"]["items"] = BODY.pop("$defs")["SentLabel"]


class LabelResult(BaseModel):
    status: LabelStatus = Field(
        description="accepted; replaced: an earlier label of the prediction, the last one counts; "
        "same: it has this label already; unknown_label: not a class; forged: not an id of this "
        "service or its replicas; expired: the prediction is older than feedback_days; too_many: "
        "feedback_max labels are kept already"
    )


class FeedbackResult(BaseModel):
    """`results` are in the order of the labels."""

    accepted: int
    replaced: int
    results: list[LabelResult]


async def _read(request: Request) -> Feedback:
    """Read the body.

    Raises `MalformedError`, `BodyTooLargeError`, `EncodedError` and `BodyTimeoutError`.
    """
    engine: Engine = request.app.state.engine
    return await read_document(request, Feedback, MAX_BODY_BYTES, engine.settings.body_seconds)


@router.post(
    "/feedback",
    summary="Labels of images that were classified",
    responses=problems(400, 403, 408, 413, 415, 421, 429, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": BODY}},
        }
    },
)
async def feedback(request: Request, sent: Annotated[Feedback, Depends(_read)]) -> FeedbackResult:
    """Take what images really showed, by the ids of their predictions.

    The same request may be sent again: the last label of a prediction counts.
    """
    engine: Engine = request.app.state.engine
    labels = [LabelRequest(one.id, one.label, one.note) for one in sent.labels]
    try:
        taken = await engine.labels.take(labels)
    except UserError as error:
        raise LabelsNotKeptError(str(error)) from error
    for one in taken:
        if one.status == "accepted" and one.prediction is not None:
            engine.metrics.count_label(one.group, one.prediction.kind)
    counts = Counter(one.status for one in taken)
    return FeedbackResult(
        accepted=counts["accepted"],
        replaced=counts["replaced"],
        results=[LabelResult(status=one.status) for one in taken],
    )
