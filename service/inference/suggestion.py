"""`taillift suggest`: which photos without labels to label next.

Those are taken that are likely to be of a few-shot class, and differ: by the greedy k-centre rule
(Gonzalez 1985, as Sener and Savarese 2018 use it) with distances weighted by that probability.
Weights that fall with the model's confidence found far fewer photos of these classes, and training
on them was no better (`python -m benchmarks.suggest`).
"""

import csv
import heapq
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle import conveyor
from taillift.models.bundle.arrays import Doubles, Floats, Indices
from taillift.models.bundle.classifier import Classifier, top
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.image_guard import ExcessError, pixel_content
from taillift.models.bundle.images import ImageError
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.photo_sources import find_photos
from taillift.models.errors import UserError
from taillift.service.inference.folder_run import shown_progress
from taillift.service.inference.photo_parts import printable_path
from taillift.service.settings import cores
from taillift.service.tail.dependence import image_digest

TABLE: Final = "suggestions.csv"
PHOTOS: Final = "photos"
NAMED: Final = 5
# Photos whose features have a larger cosine are shots of one thing: the first of them is enough.
NEAR: Final = 0.98
# The share of their weight that the others keep.
ALIKE: Final = 0.01
# So many times the requested photos are kept in memory, those of the greatest mass.
CANDIDATES: Final = 10


@dataclass(frozen=True, eq=False)
class PoolPhoto:
    """A photo without a label: its probabilities [C] under the uniform prior and its unit features.

    `mass` is the probability of the few-shot classes together, `doubt` that the likeliest class is
    wrong.
    """

    photo: Path
    uniform: Doubles
    features: Floats
    mass: float

    @property
    def doubt(self) -> float:
        return float(1 - self.uniform.max())


@dataclass
class Suggestions:
    """The photos to label, the best first; why others cannot be used; and what was left out."""

    photos: int
    chosen: list[PoolPhoto] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    copies: int = 0
    known: int = 0


def suggest(
    classifier: Classifier,
    photos: Sequence[Path],
    count: int,
    ensemble: Ensemble,
    labelled: Iterable[Path] = (),
) -> Suggestions:
    """Choose `count` of the photos to label next, or all if there are fewer.

    Of photos with the same pixels the first is looked at, and none with those of a `labelled` one.
    Raises `UserError` if the bundle has no few-shot class, or if no photo can be used.
    """
    few = few_shot(classifier.manifest)
    known = set(map(content_digest, labelled))
    found = Suggestions(len(photos))
    looked_at: list[Path] = []
    best: list[tuple[float, int, PoolPhoto]] = []
    with shown_progress(len(photos), 0) as advance:

        def distinct() -> Iterator[Path]:
            seen: set[int | None] = set()
            for path in photos:
                digest = content_digest(path)
                if digest is not None and digest in known:
                    found.known += 1
                elif digest is not None and digest in seen:
                    found.copies += 1
                else:
                    seen.add(digest)
                    looked_at.append(path)
                    yield path
                    continue
                advance()

        outputs = conveyor.outputs(classifier, distinct(), ensemble, cores())
        for number, output in enumerate(outputs):
            advance()
            path = looked_at[number]
            if isinstance(output, ImageError):
                found.broken.append((path, str(output)))
                continue
            uniform = classifier.predictor.predict(output, ensemble).uniform
            mass = float(uniform[few].sum())
            features = output.features / (np.linalg.norm(output.features) or 1)
            entry = (mass, -number, PoolPhoto(path, uniform, features, mass))
            if len(best) < CANDIDATES * count:
                heapq.heappush(best, entry)
            else:
                heapq.heappushpop(best, entry)
    candidates = []
    for *_, candidate in sorted(best, reverse=True):
        if os.access(candidate.photo, os.R_OK):
            candidates.append(candidate)
        else:
            found.broken.append(
                (candidate.photo, "was there at first, and cannot be read any more")
            )
    if not candidates:
        raise UserError(
            f"none of the {len(photos):,} photos can be suggested: {found.known:,} have a label, "
            f"and {len(found.broken):,} cannot be used"
        )
    found.chosen = [candidates[index] for index in diverse(candidates, count)]
    return found


def labelled_photos(sources: Iterable[str]) -> Iterator[Path]:
    """Yield the photos of sources whose photos have a label: tables, and folders at any depth.

    Paths in the column `path` of a table start at its folder. Raises `UserError` as `find_photos`
    does, and if a table has no such column or cannot be read.
    """
    for source in sources:
        table = Path(source)
        if table.suffix.lower() != ".csv":
            yield from find_photos([source], recursive=True)
            continue
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                for row in csv.DictReader(file, restval="", strict=True):
                    yield table.parent / row["path"]
        except KeyError:
            raise UserError(f"{table} has no column path: its first line must name it") from None
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{table} cannot be read as a table in UTF-8: {error}") from error


def lines(found: Suggestions) -> Iterator[str]:
    """Yield what is known of the choice, to print."""
    rare = sum(candidate.mass for candidate in found.chosen)
    yield (
        f"{len(found.chosen):,} of {found.photos:,} photos are suggested; by the model's "
        f"probabilities, {rare:.0f} of them are of few-shot classes"
    )
    for count, words in (
        (found.copies, "are copies of others"),
        (found.known, "have a label already"),
        (len(found.broken), f"cannot be used: {TABLE} has the reasons"),
    ):
        if count:
            yield f"{count:,} photos {words}"


def content_digest(path: Path) -> int | None:
    """Return 64 bits of a photo's pixels as they are stored; None if its file cannot be read."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError):  # A path with a zero byte.
        return None
    try:
        return image_digest(pixel_content(data))
    except ExcessError:
        return image_digest(data)


def few_shot(manifest: Manifest) -> Indices:
    """Return the indices of the few-shot classes; raises `UserError` if there are none."""
    few = np.array([info.group == "few" for info in manifest.classes])
    if not few.any():
        raise UserError(
            "no class of this bundle has fewer than "
            f"{manifest.thresholds.few} training photos: there is no rare class to find photos of"
        )
    return np.flatnonzero(few)


def diverse(candidates: Sequence[PoolPhoto], count: int) -> list[int]:
    """Return the indices of up to `count` candidates that are likely to be rare and differ.

    Each is the one whose mass, times its distance to the nearest one before it, is greatest. The
    weight of shots of one thing is small.
    """
    features = np.stack([candidate.features for candidate in candidates])
    mass = np.array([candidate.mass for candidate in candidates])
    # Unit features are at most 2 apart.
    nearest = np.full(len(candidates), 2.0)
    chosen: list[int] = []
    while len(chosen) < min(count, len(candidates)):
        gain = mass * nearest * np.where(1 - nearest > NEAR, ALIKE, 1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        nearest = np.minimum(nearest, (1 - features @ features[chosen[-1]]).clip(0))
    return chosen


def why(candidate: PoolPhoto, manifest: Manifest) -> str:
    """Return in words why a photo is suggested."""
    few = few_shot(manifest)
    rarest = few[candidate.uniform[few].argmax()]
    return (
        f"rare: {candidate.mass:.0%}, most likely {manifest.labels[rarest]} "
        f"({candidate.uniform[rarest]:.0%}); doubt: {candidate.doubt:.0%}"
    )


def write_suggestions(folder: Path, found: Suggestions, manifest: Manifest) -> None:
    """Write copies of the chosen photos, and a table of these and of the broken ones, to `folder`.

    Columns `path` and `source` are the copy and the photo itself. A broken photo has no copy, and
    the reason in `error`.
    """
    (folder / PHOTOS).mkdir()
    ranks = range(1, min(NAMED, len(manifest.classes)) + 1)
    heads = [f"{name}_{rank}" for rank in ranks for name in ("label", "confidence")]
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["rank", "path", "source", "mass", "doubt", "why", *heads, "error"])
        for rank, candidate in enumerate(found.chosen, 1):
            path = copy_name(rank, candidate.photo)
            shutil.copyfile(candidate.photo, folder / path)
            cells = [
                cell
                for index in top(candidate.uniform, len(ranks))
                for cell in (manifest.labels[index], f"{candidate.uniform[index]:.6g}")
            ]
            numbers = (f"{candidate.mass:.6g}", f"{candidate.doubt:.6g}", why(candidate, manifest))
            rows.writerow([rank, path, printable_path(candidate.photo), *numbers, *cells, ""])
        for photo, reason in found.broken:
            rows.writerow(["", "", printable_path(photo), *[""] * (3 + len(heads)), reason])


def copy_name(rank: int, photo: Path) -> str:
    """Return the path of a photo's copy in the folder of suggestions."""
    return f"{PHOTOS}/{rank:04}{photo.suffix.lower()}"


def sheet_content(found: Suggestions, manifest: Manifest) -> dict[str, object]:
    """Return what the page to label the suggestions in shows."""
    return {
        "bundle": f"{manifest.name} {manifest.version}",
        "classes": [{"label": info.label, "group": info.group} for info in manifest.classes],
        "photos": [
            {
                "path": copy_name(rank, candidate.photo),
                "source": printable_path(candidate.photo),
                "why": why(candidate, manifest),
                "top": [
                    {
                        "label": manifest.labels[index],
                        "group": manifest.classes[index].group,
                        "confidence": float(candidate.uniform[index]),
                    }
                    for index in top(candidate.uniform, NAMED)
                ],
            }
            for rank, candidate in enumerate(found.chosen, 1)
        ],
    }
