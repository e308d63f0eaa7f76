"""The routes below /review, from which photos are labelled; absent without `review_dir`."""

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Final, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field

from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.errors import UserError
from taillift.models.names import canonical
from taillift.service.http.openapi import LABELS, problems
from taillift.service.http.schemas import WholeNumber
from taillift.service.inference.engine import Engine
from taillift.service.problems import NoSuchPhotoError, QueueFailedError
from taillift.service.review.photo_metadata import TYPES
from taillift.service.review.review_folder import (
    LikelyClass,
    QueuedPhoto,
    Reason,
    ReviewFolder,
)
from taillift.service.review.reviewer import Reviewer

MAX_LIMIT: Final = 1_000

router = APIRouter(prefix="/review", tags=[LABELS])


class PhotoToLabel(BaseModel):
    """A photo that waits for its label. `id` is the one to send to POST /feedback."""

    id: str
    photo: str = Field(description="address of the photo")
    predictions: list[LikelyClass] = Field(description="the most probable classes, at most 5")
    group: Group = Field(description="group of the predicted class")
    why: Reason = Field(
        description="tail: few-shot classes are likely enough to have raised p; random: they are "
        "not; differs: a challenger has another answer"
    )
    p: float = Field(
        description="probability with which it was drawn, or given to the challenger that differs"
    )


class LabelClass(BaseModel):
    label: str
    group: Group


class QueueSummary(BaseModel):
    """The photos in the queue by group of the predicted class, and the classes to choose from."""

    waiting: dict[Group, int]
    labelled: dict[Group, int] = Field(description="labelled, and kept for the export")
    classes: list[LabelClass]


async def _reviewer(request: Request) -> Reviewer:
    reviewer: Reviewer = request.app.state.reviewer
    return reviewer


Queue = Annotated[Reviewer, Depends(_reviewer)]
Key = Annotated[str, Path(alias="id", description="id of the photo's prediction")]
T = TypeVar("T")


async def in_folder(queue: Reviewer, work: Callable[[ReviewFolder], T]) -> T:
    """Return what `work` makes of the folder; raises `QueueFailedError` if the disk fails."""
    try:
        return await queue.run(work)
    except UserError as error:
        raise QueueFailedError(str(error)) from error


@router.get(
    "",
    summary="Photos that wait for a label, the oldest first",
    responses=problems(400, 403, 404, 503),
)
async def waiting(
    queue: Queue,
    limit: Annotated[WholeNumber, Query(ge=1, le=MAX_LIMIT)] = 20,
    after: Annotated[
        str | None, Query(description="id of the last photo of the page before")
    ] = None,
) -> list[PhotoToLabel]:
    """List the photos that wait for a label, in the order in which they came."""
    photos = await in_folder(queue, ReviewFolder.waiting)
    if after is not None:
        last = await in_folder(queue, lambda folder: folder.find(after))
        if last is None:
            raise NoSuchPhotoError(f"no photo has the id {after[:80]!r}: leave out `after`")
        photos = [photo for photo in photos if photo.place > last.place]
    return [
        PhotoToLabel(
            id=photo.entry.id,
            photo=f"/review/{photo.entry.id}/photo",
            predictions=photo.entry.predictions,
            group=photo.entry.group,
            why=photo.entry.why,
            p=photo.entry.p,
        )
        for photo in photos[:limit]
    ]


@router.get(
    "/summary",
    summary="How many photos wait, and the classes to choose from",
    responses=problems(403, 503),
)
async def summary(request: Request, queue: Queue) -> QueueSummary:
    """Count the photos by group, and list the classes of the champion and its challenger."""
    photos = await in_folder(queue, ReviewFolder.photos)

    def count(labelled: bool) -> dict[Group, int]:
        counts = Counter(
            photo.entry.group for photo in photos if (photo.given is not None) == labelled
        )
        return {group: counts[group] for group in GROUPS}

    engine: Engine = request.app.state.engine
    classes: dict[str, LabelClass] = {}
    for version in engine.residents:
        for info in version.bundle.manifest.classes:
            classes.setdefault(
                canonical(info.label), LabelClass(label=info.label, group=info.group)
            )
    return QueueSummary(
        waiting=count(labelled=False),
        labelled=count(labelled=True),
        classes=list(classes.values()),
    )


@router.get(
    "/{id}/photo",
    summary="The photo itself",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in TYPES.values()}}, **problems(403, 404, 503)},
)
async def photo(key: Key, queue: Queue) -> Response:
    """Give the photo as it was sent, without the place where it was taken."""

    def read(folder: ReviewFolder) -> tuple[QueuedPhoto, bytes] | None:
        found = folder.find(key)
        return None if found is None else (found, found.path.read_bytes())

    try:
        found = await in_folder(queue, read)
    except OSError:  # It was removed meanwhile.
        found = None
    if found is None:
        raise absent(key)
    return Response(
        found[1],
        media_type=TYPES[found[0].entry.kind],
        headers={"Cache-Control": "private, no-store"},
    )


@router.delete(
    "/{id}",
    status_code=204,
    summary="Remove a photo, with its label",
    responses=problems(403, 404, 503),
)
async def remove(key: Key, queue: Queue) -> None:
    """Remove a photo and its label from the disk; a label in the feedback stays."""
    if not await in_folder(queue, lambda folder: folder.remove(key)):
        raise absent(key)
    await queue.look()


def absent(key: str) -> NoSuchPhotoError:
    return NoSuchPhotoError(
        f"no photo has the id {key[:80]!r}: it was removed, or never kept for labelling"
    )
