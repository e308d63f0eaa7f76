"""The queue's photos for others: labelled ones as a training set, waiting ones for Label Studio."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, Final, Literal
from xml.sax.saxutils import quoteattr

from taillift.models.bundle.atomic import atomic_folder
from taillift.models.errors import UserError
from taillift.models.names import NONE_OF_THE_CLASSES as NONE
from taillift.service.feedback.label_book import LabelBook, LabelRequest, signing_keys
from taillift.service.feedback.label_store import LabelStore
from taillift.service.feedback.prediction_id import Signer
from taillift.service.review.review_folder import QueuedPhoto
from taillift.service.settings import read_settings

Format = Literal["folder", "label-studio"]

TABLE: Final = "photos.csv"
COLUMNS: Final = ("path", "label", "split", "id", "version", "predicted", "p")
# The folder of photos that show none of the classes: training does not read it.
NONE_FOLDER: Final = "none_of_the_classes"
TASKS, CONFIG = "tasks.json", "config.xml"
# Names in the tasks and in the configuration of Label Studio.
ID, IMAGE, CHOICES = "prediction_id", "image", "label"
UNSAFE: Final = re.compile(r"^[.\s]+|[/\\:\0-\x1f]|[.\s]+$")
MAX_NAME: Final = 200


def export_folder(photos: Iterable[QueuedPhoto], target: Path, replace: bool) -> Counter[str]:
    """Write labelled photos as `train/CLASS/ID.jpg` and `photos.csv`, which `taillift train` reads.

    Returns the number of photos of each label. Photos of none of the classes are in a folder of
    their own. Raises `UserError` if there are no labelled photos, or if `target` cannot be written.
    """
    counts: Counter[str] = Counter()
    with atomic_folder(target, TABLE if replace else None) as folder:
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for photo in photos:
                if photo.given is None:
                    continue
                entry, label = photo.entry, photo.given.label
                name = NONE_FOLDER if label is None else f"train/{folder_name(label)}"
                path = f"{name}/{entry.id}.{entry.kind}"
                if not copied(photo, folder / path):
                    continue
                counts[NONE if label is None else label] += 1
                if label is not None:
                    version = entry.version if entry.number is None else entry.number
                    predicted = entry.predictions[0].label
                    # Only of photos that were drawn is p the probability that they are here.
                    p = "" if entry.why == "differs" else entry.p
                    rows.writerow([path, label, "train", entry.id, version, predicted, p])
        if not counts:
            raise UserError(
                "no photo of the queue is labelled: label some on the page, or pass --format "
                "label-studio"
            )
    return counts


def copied(photo: QueuedPhoto, target: Path) -> bool:
    """Copy a photo, and return whether it was still there: the service may remove it meanwhile."""
    try:
        data = photo.path.read_bytes()
    except FileNotFoundError:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return True


def folder_name(label: str) -> str:
    """Return the name of a label's folder: the label itself, if it can name one everywhere."""
    name = UNSAFE.sub("_", label)
    if name == label and len(name.encode()) <= MAX_NAME:
        return name
    return f"{name[:40]}-{sha256(label.encode()).hexdigest()[:8]}"


def export_tasks(
    photos: Sequence[QueuedPhoto], classes: Sequence[str], target: Path, replace: bool
) -> None:
    """Write photos as tasks for Label Studio: `tasks.json`, `config.xml` and `photos/`.

    Label Studio serves the photos if LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is `target`, and if
    the project has `target/photos` as a source storage of local files. Raises
    `UserError` if there are none, or if `target` cannot be written.
    """
    if not photos:
        raise UserError("no photo waits for a label: there is nothing to export")
    with atomic_folder(target, TASKS if replace else None) as folder:
        tasks = []
        for photo in photos:
            name = f"photos/{photo.entry.id}.{photo.entry.kind}"
            if not copied(photo, folder / name):
                continue
            tasks.append(task(photo, name))
        (folder / TASKS).write_text(json.dumps(tasks, ensure_ascii=False, indent=1), "utf-8")
        (folder / CONFIG).write_text(config(classes), "utf-8")


def task(photo: QueuedPhoto, name: str) -> dict[str, object]:
    """Return the task of one photo, with the model's answer as a prediction."""
    entry = photo.entry
    best = entry.predictions[0]
    choice = {
        "from_name": CHOICES,
        "to_name": IMAGE,
        "type": "choices",
        "value": {"choices": [best.label]},
    }
    return {
        "data": {
            IMAGE: f"/data/local-files/?d={name}",
            ID: entry.id,
            "group": entry.group,
            "why": entry.why,
            "p": entry.p,
        },
        "predictions": [
            {
                "model_version": entry.version if entry.number is None else str(entry.number),
                "score": best.confidence,
                "result": [choice],
            }
        ],
    }


def config(classes: Sequence[str]) -> str:
    """Return the labelling interface of Label Studio: one choice among the classes."""
    choices = "\n".join(f"    <Choice value={quoteattr(label)}/>" for label in (*classes, NONE))
    return f"""<View>
  <Image name="{IMAGE}" value="${IMAGE}"/>
  <Filter name="search" toName="{CHOICES}" minlength="0" placeholder="Type a class"/>
  <Choices name="{CHOICES}" toName="{IMAGE}" choice="single" showInline="true">
{choices}
  </Choices>
</View>
"""


def read_labels(path: Path) -> dict[str, str | None]:
    """Return the label of each id in a CSV file or an export of Label Studio (JSON, JSON-MIN).

    None stands for none of the classes. Raises `UserError` if the file cannot be read, or holds no
    label.
    """
    try:
        text = path.read_text("utf-8-sig")
        labels = labels_of_tasks(json.loads(text)) if is_json(path) else labels_of_table(text)
    # RecursionError: too many nested brackets.
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        kind = "JSON" if is_json(path) else "CSV"
        raise UserError(f"{path} cannot be read as {kind}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not an export of Label Studio as JSON or JSON-MIN ({error!r} in it)"
        ) from error
    if not labels:
        raise UserError(f"{path} holds no label")
    return labels


def is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def labels_of_table(text: str) -> dict[str, str | None]:
    """Return the labels of a table with the columns id and label; raises `ValueError`.

    Label Studio's own id is that of its task: the column `prediction_id` comes first. Rows without
    a label are passed over.
    """
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(StringIO(text, newline=""), strict=True, delimiter=separator)
    names = rows.fieldnames or []
    key = next((name for name in (ID, "id") if name in names), None)
    if key is None or CHOICES not in names:
        raise ValueError("its first line must name the columns id and label")
    labels = dict[str, str | None]()
    for row in rows:
        if None in row or row[CHOICES] is None:
            raise ValueError(f"line {rows.line_num} does not have as many cells as the first")
        if row[CHOICES].strip():
            labels[row[key].strip()] = known_label(row[CHOICES])
    return labels


def labels_of_tasks(tasks: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Return the labels of Label Studio's tasks; the last annotation of a task counts.

    Raises `UserError` if several classes were chosen for a photo.
    """
    labels = dict[str, str | None]()
    for one in tasks:
        if "annotations" not in one:  # JSON-MIN
            if one.get(CHOICES):
                labels[str(one[ID])] = known_label(one[CHOICES])
            continue
        for annotation in one["annotations"]:
            for result in annotation.get("result") or []:
                if annotation.get("was_cancelled") or result["type"] != "choices":
                    continue
                key, choices = str(one["data"][ID]), list(result["value"]["choices"])
                if len(choices) > 1:
                    raise UserError(
                        f"the photo {key} has {len(choices)} labels in Label Studio, and one is "
                        "needed: keep one"
                    )
                for choice in choices:
                    labels[key] = known_label(choice)
    return labels


def count_labels(
    labels: Mapping[str, str | None], file: Path, key_file: Path | None
) -> Counter[str]:
    """Add labels to those that a service counts for its live accuracy.

    Returns how many were accepted, or what else became of them. Raises `UserError` if the file or
    the keys cannot be used.
    """
    settings = read_settings(feedback_file=file, feedback_key_file=key_file)
    keys = signing_keys(settings)
    if not keys:
        raise UserError("name the service's key with --feedback-key-file, or all ids are forged")
    if not file.is_file():
        raise UserError(f"there is no file of labels at {file}: the service's feedback_file is one")
    store = LabelStore(file, settings.feedback_max)
    try:
        signer = Signer(keys, settings.feedback_days)
        book = LabelBook(store, signer, settings.feedback_days)
        taken = book.take([LabelRequest(key, label) for key, label in labels.items()])
        return Counter(one.status for one in taken)
    finally:
        store.close()


def known_label(text: str) -> str | None:
    """Return the label that a cell or choice says; None for none of the classes."""
    label = text.strip()
    return None if label == NONE else label
