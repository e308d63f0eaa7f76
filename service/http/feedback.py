"""The route that takes labels back: POST /feedback."""

import asyncio
from collections import Counter
from contextlib import aclosing
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taillift.models.errors import UserError
from taillift.service.feedback.label_book import LabelRequest, LabelStatus
from taillift.service.http.openapi import LABELS, problems
from taillift.service.http.uploads import body_bytes, limited_stream
from taillift.service.inference.engine import Engine
from taillift.service.problems import BodyTimeoutError, LabelsNotKeptError, MalformedError

MAX_LABELS: Final = 1_000
MAX_BODY_BYTES: Final = 256 * 2**10
# Longer ids, labels and notes than any that is right are refused before anything is compared.
MAX_ID: Final = 100
MAX_LABEL: Final = 1_000
MAX_NOTE: Final = 500

router = APIRouter(tags=[LABELS])


class SentLabel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = Field(max_length=MAX_ID, description="the `id` of a result of POST /classify")
    label: str | None = Field(
        max_length=MAX_LABEL,
        description="the class that the image shows; null: none of the model's classes",
    )
    note: str = Field("", max_length=MAX_NOTE, description="a remark, which is kept and exported")


class Feedback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    labels: list[SentLabel] = Field(max_length=MAX_LABELS)


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
    seconds, content = engine.settings.body_seconds, bytearray()
    body_bytes(request, MAX_BODY_BYTES)
    try:
        async with (
            asyncio.timeout(seconds),
            aclosing(limited_stream(request, MAX_BODY_BYTES)) as body,
        ):
            async for chunk in body:
                content += chunk
    except TimeoutError:
        raise BodyTimeoutError(f"the body was not complete after {seconds:g} seconds") from None
    try:
        return await asyncio.to_thread(Feedback.model_validate_json, bytes(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise MalformedError(f"{place[:80]}: {first['msg'][:200]}") from None


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
