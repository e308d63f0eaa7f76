"""The routes below /admin, which change the version that is served; absent without admin keys."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import log
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, Field

from taillift.models.bundle.schema import GROUPS, Group, Precision
from taillift.models.bundle.version_store import (
    Canary,
    Challenger,
    Roles,
    Shadow,
    StaleError,
)
from taillift.models.duel import Duel, Tally
from taillift.models.errors import UserError
from taillift.service.feedback.label_book import LabelDesk
from taillift.service.http.openapi import json_body, problems
from taillift.service.http.schemas import LivePriorReport, WholeNumber
from taillift.service.http.uploads import Document, SentObject, read_document
from taillift.service.inference.agreement import KEPT, Disagreement, Side, WeightedShare
from taillift.service.inference.engine import Engine
from taillift.service.inference.memory import OverBudgetError
from taillift.service.inference.role_follower import RoleFollower, State
from taillift.service.inference.served_version import ServedVersion
from taillift.service.problems import (
    LabelsNotKeptError,
    MalformedError,
    NoRoomError,
    NoSuchVersionError,
    RefusedVersionError,
    ServiceError,
    StaleRolesError,
)

logger = logging.getLogger(__name__)

REFUSALS: Final = problems(400, 401, 404, 408, 409, 412, 413, 503, 507)
# Flips and few-shot classes in a report.
SHOWN: Final = 20
MAX_BODY_BYTES: Final = 2**16
MAX_DIGITS: Final = 20

router = APIRouter(prefix="/admin", tags=["admin"])


class VersionReport(BaseModel):
    """A version of the store, and what the service does with it."""

    number: int
    role: str | None = Field(description="champion, challenger or previous, as roles.json says")
    state: State
    reason: str | None = Field(None, description="why the version could not be served")
    name: str | None = None
    version: str | None = Field(None, description="the bundle's hash")
    classes: int | None = None
    mean_class: float | None = Field(None, description="accuracy with all views, in per cent")
    few: float | None = Field(None, description="that of the few-shot classes")
    note: str = ""
    leases: int = Field(0, description="requests that hold it")
    resident_bytes: int | None = Field(None, description="memory taken while it was loaded")
    load_seconds: float | None = None


class VersionsReport(BaseModel):
    served: int | None = Field(description="the version that answers")
    pending: int | None = Field(description="the version that is about to become champion")
    champion: int | None
    challenger: Challenger | None
    previous: int | None
    etag: int
    versions: list[VersionReport]


class ShareReport(BaseModel):
    """A share of the images, weighted by how they were chosen, with its 95 % interval."""

    images: int
    share: float | None
    low: float
    high: float


class SideReport(BaseModel):
    """Means over the answers of one of the two."""

    number: int | None
    confidence: float | None
    views: float | None
    seconds: float | None = Field(description="on the device for so many views, when it is free")


class FlipReport(BaseModel):
    champion: str
    challenger: str
    images: int


class RareReport(BaseModel):
    """A few-shot class: the share of images that each of the two gives to it."""

    label: str
    champion: float
    challenger: float


class TallyReport(BaseModel):
    """Labels of images on which one of the two is right, and the e-values that it is in general."""

    wins: int = Field(description="the challenger alone is right")
    losses: int = Field(description="the champion alone is right")
    evidence: float = Field(description="log10 of the e-value that the challenger is right more")
    evidence_against: float = Field(description="the same of the champion")


class VerdictReport(BaseModel):
    """The verdict of the labels that came back."""

    decision: Literal["promote", "discard", "undecided"]
    reason: str
    labels: int = Field(description="of images on which the two differ")
    overall: TallyReport
    groups: dict[Group, TallyReport] = Field(description="by the group of the label")


class ChallengerReport(BaseModel):
    """The comparison so far. Agreement does not say who is right: labels do."""

    plan: Challenger
    champion: SideReport
    challenger: SideReport
    agreement: ShareReport
    by_champion: dict[Group, ShareReport] = Field(description="by the group of its answer")
    by_challenger: dict[Group, ShareReport] = Field(description="by the group of its answer")
    flips: list[FlipReport] = Field(description="the most frequent differences")
    rare: list[RareReport] = Field(description="the few-shot classes that differ most")
    differences: list[Disagreement] = Field(
        description="the latest images on which the two differ: those whose labels decide"
    )
    verdict: VerdictReport


class RoleRequest(SentObject):
    because: str = Field("", max_length=1000, description="the reason, for the log")


class ChampionRequest(RoleRequest):
    version: int
    classes_change: bool = Field(False, description="allow classes that differ from the champion's")


class ChallengerRequest(RoleRequest):
    """Without `canary` the challenger answers copies, as `shadow` says."""

    version: int
    shadow: Shadow | None = None
    canary: Canary | None = None


def sent(document: type[Document]) -> Callable[[Request], Awaitable[Document]]:
    """Return what reads a document once the key has been seen; FastAPI would read it before."""

    async def read(request: Request) -> Document:
        engine: Engine = request.app.state.engine
        return await read_document(request, document, MAX_BODY_BYTES, engine.settings.body_seconds)

    return read


ChampionBody = Annotated[ChampionRequest, Depends(sent(ChampionRequest))]
RoleBody = Annotated[RoleRequest, Depends(sent(RoleRequest))]
ChallengerBody = Annotated[ChallengerRequest, Depends(sent(ChallengerRequest))]


async def _follower(request: Request) -> RoleFollower:
    follower: RoleFollower = request.app.state.follower
    return follower


Follower = Annotated[RoleFollower, Depends(_follower)]


async def _if_match(
    tag: Annotated[
        str | None,
        Header(alias="If-Match", description="the etag that the roles must still have (412)"),
    ] = None,
) -> int | None:
    if tag is None or tag.strip() == "*":
        return None
    digits = tag.strip().removeprefix("W/").strip('"')
    # Python's integers have no largest one, but it does not read those of 5,000 digits.
    if not (digits.isdecimal() and digits.isascii() and len(digits) <= MAX_DIGITS):
        raise MalformedError(f"header `If-Match`: {tag[:80]!r} is not an etag of the roles")
    return int(digits)


IfMatch = Annotated[int | None, Depends(_if_match)]


@router.get("/versions", responses=problems(401))
async def versions(response: Response, follower: Follower) -> VersionsReport:
    """List the versions of the store, with their roles, and why any was refused."""
    try:
        roles = await asyncio.to_thread(follower.store.roles)
    except UserError as error:
        raise problem_of(error) from error
    response.headers["ETag"] = f'"{roles.etag}"'
    reports = [await report(follower, roles, number) for number in follower.store.numbers]
    return VersionsReport(
        served=follower.champion,
        pending=follower.pending,
        champion=roles.champion,
        challenger=roles.challenger,
        previous=roles.previous,
        etag=roles.etag,
        versions=reports,
    )


@router.get("/versions/{number}", responses=problems(401, 404))
async def one_version(number: WholeNumber, response: Response, follower: Follower) -> VersionReport:
    """Describe one version."""
    try:
        roles = await asyncio.to_thread(follower.store.roles)
        follower.store.path(number)
    except UserError as error:
        raise NoSuchVersionError(str(error)) from error
    response.headers["ETag"] = f'"{roles.etag}"'
    return await report(follower, roles, number)


@router.put(
    "/roles/champion",
    status_code=202,
    responses=REFUSALS,
    openapi_extra=json_body(ChampionRequest),
)
async def champion(
    body: ChampionBody, request: Request, response: Response, follower: Follower, etag: IfMatch
) -> VersionReport:
    """Begin to load a version; once it is ready, it becomes the champion.

    Until then, and if it is refused, the champion stays. `Location` tells what became of it.
    """
    try:
        follower.store.path(body.version)
    except UserError as error:
        raise NoSuchVersionError(str(error)) from error
    try:
        await follower.promote(body.version, body.because, who(request), etag, body.classes_change)
    except UserError as error:
        raise problem_of(error) from error
    return await accepted(request, body.version, response, follower)


@router.post("/rollback", status_code=202, responses=REFUSALS, openapi_extra=json_body(RoleRequest))
async def rollback(
    body: RoleBody, request: Request, response: Response, follower: Follower, etag: IfMatch
) -> VersionReport:
    """Begin to make the previous champion the champion again."""
    try:
        number = await follower.rollback(body.because, who(request), etag)
    except UserError as error:
        raise problem_of(error) from error
    return await accepted(request, number, response, follower)


@router.put(
    "/roles/challenger",
    status_code=202,
    responses=REFUSALS,
    openapi_extra=json_body(ChallengerRequest),
)
async def challenge(
    body: ChallengerBody,
    request: Request,
    response: Response,
    follower: Follower,
    etag: IfMatch,
) -> VersionReport:
    """Begin to compare a version with the champion."""
    if body.shadow is not None and body.canary is not None:
        raise MalformedError("a challenger has either `shadow` or `canary`")
    shadow = None if body.canary is not None else body.shadow or Shadow()
    challenger = Challenger(version=body.version, shadow=shadow, canary=body.canary)
    try:
        follower.store.path(body.version)
    except UserError as error:
        raise NoSuchVersionError(str(error)) from error
    try:
        await follower.challenge(challenger, body.because, who(request), etag)
    except UserError as error:
        raise problem_of(error) from error
    return await accepted(request, body.version, response, follower)


@router.delete("/roles/challenger", status_code=202, responses=problems(401, 409, 412, 503))
async def unchallenge(request: Request, follower: Follower, etag: IfMatch) -> Roles:
    """End the comparison."""
    try:
        return await follower.unchallenge(who(request), etag)
    except UserError as error:
        raise problem_of(error) from error


@router.get("/challenger", responses=problems(401, 404, 503))
async def challenger(
    request: Request,
    follower: Follower,
    differences: Annotated[WholeNumber, Query(ge=0, le=KEPT)] = 100,
    labels: Annotated[
        Literal["chosen", "all"],
        Query(
            description="the labels that the verdict rests on: those of images that were chosen "
            "for labelling at random, or all"
        ),
    ] = "chosen",
) -> ChallengerReport:
    """Compare the challenger with the champion, image by image, as far as copies were answered."""
    challenge = follower.challenge_at_work
    if challenge is None:
        raise NoSuchVersionError("no challenger is loaded: PUT /admin/roles/challenger begins")
    agreement = challenge.agreement
    shown = list(agreement.differences)[-differences:] if differences else []
    desk: LabelDesk = request.app.state.engine.labels
    try:
        duel = await desk.duel(challenge.pairing, every=labels == "all")
    except UserError as error:
        raise LabelsNotKeptError(str(error)) from error
    return ChallengerReport(
        plan=challenge.plan,
        champion=side_report(challenge.champion, agreement.champion),
        challenger=side_report(challenge.challenger, agreement.challenger),
        agreement=share_report(agreement.overall),
        by_champion={group: share_report(agreement.by_champion[group]) for group in GROUPS},
        by_challenger={group: share_report(agreement.by_challenger[group]) for group in GROUPS},
        flips=[
            FlipReport(champion=mine, challenger=other, images=images)
            for (mine, other), images in agreement.flips.most_common(SHOWN)
        ],
        rare=[
            RareReport(label=label, champion=mine, challenger=other)
            for label, mine, other in agreement.rare()[:SHOWN]
        ],
        differences=shown[::-1],
        verdict=verdict_report(duel),
    )


def verdict_report(duel: Duel) -> VerdictReport:
    return VerdictReport(
        decision=duel.decision,
        reason=duel.reason,
        labels=duel.labels,
        overall=tally_report(duel.overall),
        groups={group: tally_report(duel.groups[group]) for group in GROUPS},
    )


def tally_report(tally: Tally) -> TallyReport:
    return TallyReport(
        wins=tally.wins,
        losses=tally.losses,
        evidence=tally.evidence / log(10),
        evidence_against=tally.evidence_against / log(10),
    )


@router.post("/live-prior/reset", responses=problems(400, 401))
async def reset_live_prior(request: Request) -> LivePriorReport:
    """Let the champion's live prior begin anew, from equally frequent classes."""
    engine: Engine = request.app.state.engine
    live = engine.bundle.monitoring.reset_live_prior()
    if live is None:
        raise MalformedError("the service has no live prior: start it with the setting live_prior")
    logger.warning("the live prior begins anew, as %s asks", who(request))
    return LivePriorReport.of(live)


def share_report(share: WeightedShare) -> ShareReport:
    low, high = share.interval
    return ShareReport(images=share.images, share=share.estimate, low=low, high=high)


def side_report(version: ServedVersion, side: Side) -> SideReport:
    views = side.views.value
    return SideReport(
        number=version.number,
        confidence=side.confidence.value,
        views=views,
        seconds=None if views is None else version.runner.latency.seconds(views),
    )


async def accepted(
    request: Request, number: int, response: Response, follower: RoleFollower
) -> VersionReport:
    """Return what is known of a version by now, and where to look later."""
    above = request.app.state.engine.settings.root_path or ""
    response.headers["Location"] = f"{above}/admin/versions/{number}"
    roles = await asyncio.to_thread(follower.store.roles)
    return await report(follower, roles, number)


async def report(follower: RoleFollower, roles: Roles, number: int) -> VersionReport:
    """Return what is known of a version; a thread reads it from the disk."""
    known = VersionReport(
        number=number,
        role=roles.role_of(number),
        state=follower.state(number),
        reason=follower.refusal(number),
    )
    if (version := follower.in_memory(number)) is not None:
        known.leases = version.leases
        known.resident_bytes = version.resident_bytes
        known.load_seconds = version.load_seconds
    try:
        stored = await asyncio.to_thread(follower.store.version, number)
    except UserError as error:
        known.reason = known.reason or str(error)
        return known
    manifest = stored.manifest
    evaluation = manifest.variants[Precision.FP32].evaluation
    known.name, known.version, known.classes = (
        manifest.name,
        manifest.version,
        len(manifest.classes),
    )
    if evaluation is not None:
        known.mean_class, known.few = evaluation.full.mean_class, evaluation.full.few
    known.note = stored.added.change.because
    return known


def problem_of(error: UserError) -> ServiceError:
    """Return the problem that a refused change is answered with."""
    match error:
        case StaleError():
            return StaleRolesError(str(error))
        case OverBudgetError():
            return NoRoomError(str(error))
        case _:
            return RefusedVersionError(str(error))


def who(request: Request) -> str:
    """Return the name of the key that was sent."""
    name: str | None = request.state.key
    return name or "an admin key without a name"
