"""A survey of a set of photos before training: what is read, what is not, and what is wrong."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Final

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, SkipValidation

from taillift.models.bundle.colour_profile import profile_name
from taillift.models.bundle.images import (
    BrokenImageError,
    ImageTooLargeError,
    ImageTooLongError,
    NotAnImageError,
    decode,
    open_image,
)
from taillift.models.bundle.manifest import Thresholds
from taillift.models.bundle.schema import GROUPS, MAX_PIXELS, Group
from taillift.models.errors import UserError
from taillift.training.console import track
from taillift.training.data.addition import joined, leaks, read_sources
from taillift.training.data.check import (
    conflicts,
    content_hash,
    find_duplicates,
    gaps,
    hash64,
    only_readable,
)
from taillift.training.data.classes import names_in_prompts, refuse_equal_prompts, same_prompts
from taillift.training.data.photo import SPLITS, Photo, RawPhoto, Split
from taillift.training.data.pool import UnlabelledPool, own_pool, read_pool, without_known
from taillift.training.data.prompts import is_cut
from taillift.training.data.readers.csv_table import is_table, read_head
from taillift.training.data.readers.listing import Listing

QUANTILES: Final = (0, 10, 50, 90, 100)
# A text with names of files, whose bytes may be none in UTF-8: pydantic would refuse them.
AnyText = SkipValidation[str]
# Kinds of photos that cannot be used, by the error that they raise.
PROBLEMS: Final[dict[type[UserError], str]] = {
    NotAnImageError: "not a JPEG, PNG or WebP image",
    BrokenImageError: "damaged",
    ImageTooLargeError: "too many pixels",
    ImageTooLongError: "one side is too long",
    UserError: "the file cannot be read",
}


class SurveyedClass(BaseModel):
    """A class: its name, its name in prompts, its group, and its readable photos by split."""

    label: str
    prompt: str
    group: Group | None = Field(description="null if the class has no training photo")
    train: int
    distinct: int = Field(description="training photos, those of the same content counted once")
    val: int
    test: int


class SurveyedSplit(BaseModel):
    """The photos of a split, and how many of them can be read."""

    photos: int
    readable: int


class SurveyedPool(SurveyedSplit):
    """Unlabelled photos, how many of them training can use, and why it cannot use the others."""

    usable: int
    held_out: int = Field(description="also in val or test")
    labelled: int = Field(description="also in train")
    repeated: int = Field(description="copies of another unlabelled photo")


class SurveyedAddition(SurveyedSplit):
    """The training photos of an added source, and how many of them are not in training already."""

    source: AnyText
    added: int


class SurveyedGroup(BaseModel):
    """The classes of a group, and their training photos."""

    classes: int
    photos: int


class Finding(BaseModel):
    """Something that is there `count` times, in words, with one example, and where it is."""

    where: AnyText = ""
    words: str
    count: int
    example: AnyText


class SamePrompt(BaseModel):
    """Two classes whose prompts are the same to CLIP, with their names in them."""

    classes: tuple[str, str]
    names: tuple[str, str]


class SurveyedTable(BaseModel):
    """The separator of a table, and its columns."""

    separator: str
    columns: list[str]
    unused_columns: list[str]


class Survey(BaseModel):
    """Everything that can be said of a set of photos before training.

    Training refuses the set if there are `refusals`. Sizes are in pixels, as the quantiles
    `QUANTILES` of the readable photos.
    """

    source: AnyText
    layout: AnyText | None = None
    table: SurveyedTable | None = None
    refusals: list[AnyText] = []
    warnings: list[AnyText] = []
    unused: list[Finding] = []
    splits: dict[str, SurveyedSplit] = {}
    added: list[SurveyedAddition] = []
    unlabelled: SurveyedPool | None = None
    groups: dict[Group, SurveyedGroup] = {}
    classes: list[SurveyedClass] = []
    same_prompts: list[SamePrompt] = []
    cut_prompts: list[str] = []
    duplicates: list[Finding] = []
    unreadable: list[Finding] = []
    formats: dict[str, int] = {}
    profiles: dict[str, int] = {}
    short_sides: list[int] = []
    long_sides: list[int] = []


@dataclass(frozen=True, slots=True)
class Look:
    """A look at a photo: the hash of its content, its format, colour profile, and size in pixels.

    If it cannot be used, only `problem`, its kind, and `reason` are set.
    """

    content: int = 0
    format: str = ""
    profile: str = ""
    sides: tuple[int, int] = (0, 0)
    problem: str = ""
    reason: str = ""


def survey(
    source: str,
    max_pixels: int = MAX_PIXELS,
    unlabelled: str | None = None,
    add: Sequence[str] = (),
) -> Survey:
    """Read a set of photos as training does, open every photo, and return all that was found.

    `unlabelled` is the source of photos without labels; None means the set's own folder, if it has
    one. The photos of the sources in `add` are trained on, too. Raises nothing that `load_dataset`
    raises: that is in the survey's `refusals`.
    """
    made = Survey(source=source)
    with _warnings_to(made.warnings):
        try:
            listing = read_sources(source, add)
        except UserError as error:
            made.refusals.append(str(error))
            return made
        pool, photos = unlabelled or own_pool(source), []
        try:
            photos = read_pool(pool)[0] if pool else []
        except UserError as error:
            # Without a recipe that uses it, training does not look into the set's own folder.
            (made.refusals if unlabelled else made.warnings).append(str(error))
        kept = _survey_photos(made, listing, _survey_names(made, listing), max_pixels)
        if pool and photos:
            _survey_pool(made, pool, photos, kept, max_pixels)
    return made


def look_at(photo: Photo, max_pixels: int) -> Look:
    """Open a photo and decode it as training does."""
    try:
        data = photo.pixels.tobytes() if isinstance(photo, RawPhoto) else photo.read()
        if isinstance(photo, RawPhoto):
            _, height, width = photo.pixels.shape
            return Look(hash64(data), "pixels", "none", (width, height))
        image = open_image(data, max_pixels)
        look = Look(content_hash(data), image.format or "", profile_of(image), image.size)
        decode(data, 1, max_pixels)
        return look
    except UserError as error:
        kind = next(words for kind, words in PROBLEMS.items() if isinstance(error, kind))
        return Look(problem=kind, reason=str(error))


def profile_of(image: Image.Image) -> str:
    """Return the description of an image's colour profile; `none` or `broken` if it has none."""
    profile = image.info.get("icc_profile")
    if not profile:
        return "none (CMYK)" if image.mode == "CMYK" else "none"
    return profile_name(profile)


def _survey_names(made: Survey, listing: Listing) -> tuple[str, ...]:
    """Add what the reader says and what is wrong with names, and return those in prompts."""
    made.layout = listing.layout
    if is_table(listing.source):
        head = read_head(listing.source)
        made.table = SurveyedTable(
            separator=head.separator,
            columns=list(head.columns),
            unused_columns=[name for name in head.columns if name not in head.used],
        )
    for left in listing.unused:
        made.unused.append(Finding.model_validate(asdict(left)))
    names = listing.classes
    try:
        names = names_in_prompts(listing.folder, listing.vocabulary)
        for (one, name), (other, other_name) in same_prompts(listing.vocabulary, names):
            made.same_prompts.append(SamePrompt(classes=(one, other), names=(name, other_name)))
        made.cut_prompts = [name for name in names if is_cut(name)]
        refuse_equal_prompts(listing.folder, listing.vocabulary, names)
    except UserError as error:
        made.refusals.append(str(error))
    return names


def _survey_photos(
    made: Survey, listing: Listing, names: Sequence[str], max_pixels: int
) -> Listing:
    """Add what the photos are, class by class, and what is wrong with them.

    Returns the listing of the readable photos.
    """
    photos = [photo for split in listing.parts for photo in split.photos]
    looks = look_at_all(photos, max_pixels)
    good = {photo: look for photo, look in zip(photos, looks, strict=True) if not look.problem}
    kept = only_readable(listing, {photo: look.content for photo, look in good.items()}, max_pixels)
    made.refusals += [*conflicts(listing), *gaps(kept), *leaks(kept)]
    made.unreadable += _problems(photos, looks)
    found = find_duplicates(kept)
    for pairs, words in (
        (found.repeated, "photos are there again in their class and split"),
        (found.contradictory, "photos are of two classes"),
        (found.leaked, "photos are in two splits"),
    ):
        if pairs:
            example = f"{pairs[0][0]} ({pairs[0][1]})"
            made.duplicates.append(Finding(words=words, count=len(pairs), example=example))
    for name, split in listing.splits.items():
        made.splits[name] = SurveyedSplit(photos=len(split), readable=len(kept.splits[name]))
    readable, kept = kept.added, joined(kept) if not list(leaks(kept)) else kept
    for addition, usable, used in zip(listing.added, readable, kept.added, strict=True):
        made.added.append(
            SurveyedAddition(
                source=addition.source,
                photos=len(addition.photos),
                readable=len(usable.photos),
                added=len(used.photos),
            )
        )
    made.classes = _classes(kept, names)
    for group in GROUPS:
        of_group = [one for one in made.classes if one.group == group]
        made.groups[group] = SurveyedGroup(
            classes=len(of_group), photos=sum(one.train for one in of_group)
        )
    made.formats = _most_first(look.format for look in good.values())
    made.profiles = _most_first(look.profile for look in good.values())
    if good:
        sides = np.array([sorted(look.sides) for look in good.values()])
        quantiles = np.percentile(sides, QUANTILES, axis=0, method="nearest")
        made.short_sides, made.long_sides = quantiles.T.tolist()
    return kept


def _survey_pool(
    made: Survey, source: str, photos: Sequence[Photo], kept: Listing, max_pixels: int
) -> None:
    """Add what training would use of unlabelled photos, next to the labelled ones it `kept`."""
    looks = look_at_all(photos, max_pixels)
    contents = {
        photo: look.content for photo, look in zip(photos, looks, strict=True) if not look.problem
    }
    split = Split(tuple(contents), (0,) * len(contents), tuple(contents.values()))
    held_out = [split for name, split in kept.splits.items() if name != "train"]
    pool = without_known(UnlabelledPool(source, split), kept.splits["train"], held_out)
    made.unreadable += _problems(photos, looks)
    made.warnings += pool.dropped()
    made.unlabelled = SurveyedPool(
        photos=len(photos),
        readable=len(contents),
        usable=len(pool.photos),
        held_out=pool.held_out,
        labelled=pool.labelled,
        repeated=pool.repeated,
    )


def look_at_all(photos: Sequence[Photo], max_pixels: int) -> list[Look]:
    """Open and decode photos on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = pool.map(look_at, photos, repeat(max_pixels))
        return list(track(looks, "Looking at photos", len(photos)))


def _problems(photos: Sequence[Photo], looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield each kind of photos that cannot be used, with an example."""
    bad = [(photo, look) for photo, look in zip(photos, looks, strict=True) if look.problem]
    for kind in PROBLEMS.values():
        if alike := [(photo, look) for photo, look in bad if look.problem == kind]:
            photo, look = alike[0]
            example = look.reason if str(photo) in look.reason else f"{photo} ({look.reason})"
            yield Finding(words=kind, count=len(alike), example=example)


def _classes(kept: Listing, names: Sequence[str]) -> list[SurveyedClass]:
    """Return the classes in the order of training: most training photos first, then by name."""
    counts = {name: Counter(kept.splits[name].labels) for name in SPLITS if name in kept.splits}
    train = kept.splits["train"]
    distinct = Counter(label for label, _ in set(zip(train.labels, train.contents, strict=True)))
    order = sorted(
        range(len(kept.classes)), key=lambda label: (-counts["train"][label], kept.classes[label])
    )
    return [
        SurveyedClass(
            label=kept.classes[label],
            prompt=names[label],
            group=Thresholds().group(distinct[label]) if distinct[label] else None,
            distinct=distinct[label],
            **{name: counts.get(name, Counter())[label] for name in SPLITS},
        )
        for label in order
    ]


def _most_first(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


class _Collector(logging.Handler):
    """A handler that puts the text of warnings into a list."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _warnings_to(lines: list[str]) -> Iterator[None]:
    """Collect the warnings of this package's loggers in `lines`, instead of showing them."""
    loud = logging.getLogger("taillift.training.data")
    collector = _Collector(lines)
    loud.addHandler(collector)
    loud.propagate = False
    try:
        yield
    finally:
        loud.propagate = True
        loud.removeHandler(collector)
