"""The commands `taillift review ...`: the queue of photos to label, for other programs."""

# Imports here slow down every `taillift --help`: the commands import the heavy modules themselves.
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from taillift.models.terminal import say

if TYPE_CHECKING:
    from taillift.service.review.review_folder import ReviewFolder

app = typer.Typer(no_args_is_help=True)

Queue = Annotated[
    Path,
    typer.Option(
        "--review-dir",
        envvar="TAILLIFT_REVIEW_DIR",
        metavar="DIR",
        help="Folder of the queue: the service's review_dir.",
        show_default=False,
    ),
]


@app.command("export")
def export_photos(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    review_dir: Queue,
    form: Annotated[
        Literal["folder", "label-studio"],
        typer.Option(
            "--format",
            help="folder: the labelled photos as train/CLASS/*.jpg with photos.csv, for "
            "`taillift train`; label-studio: the photos that wait, as tasks.",
        ),
    ] = "folder",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace DIR, if it is such an export.")
    ] = False,
) -> None:
    """Copy photos out of the queue; what is in the queue stays there."""
    from taillift.service.review import review_export

    folder = open_queue(review_dir)
    if form == "label-studio":
        photos = folder.waiting()
        review_export.export_tasks(photos, folder.classes(), target, replace)
        say(
            f"{len(photos)} tasks in {target}: import {review_export.TASKS} into a project with "
            f"the interface {review_export.CONFIG}, while Label Studio runs with "
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={target.resolve()}"
        )
        return
    counts = review_export.export_folder(folder.photos(), target, replace)
    for label, photos_of_label in counts.most_common():
        say(f"{photos_of_label:6}  {label}")
    say(
        f"{counts.total()} labelled photos in {target}: train on them, too, with --add "
        f"{target / review_export.TABLE}"
    )


@app.command("import")
def import_labels(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.json|FILE.csv",
            help="An export of Label Studio (JSON or JSON-MIN), or a table with the columns id and "
            "label. The label `none of the classes` is for a photo that shows none; rows without a "
            "label are passed over.",
        ),
    ],
    review_dir: Queue,
    feedback_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TAILLIFT_FEEDBACK_FILE",
            help="The service's feedback_file: the labels count for its live accuracy, too. It "
            "needs the service's feedback key.",
            show_default=False,
        ),
    ] = None,
    feedback_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TAILLIFT_FEEDBACK_KEY_FILE",
            help="The service's feedback_key_file.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Take photos off the queue whose labels come from elsewhere; the labels stay with them."""
    from taillift.service.review.review_export import count_labels, read_labels

    folder, labels = open_queue(review_dir), read_labels(file)
    if feedback_file is not None:
        counts = count_labels(labels, feedback_file, feedback_key_file)
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        say(f"{feedback_file}: {told}")
    absent = [key for key, label in labels.items() if not folder.give_label(key, label)]
    say(f"{len(labels) - len(absent)} photos of the queue are labelled")
    if absent:
        say(f"{len(absent)} ids are not in the queue, such as {absent[0]}", err=True)


def open_queue(path: Path) -> "ReviewFolder":
    """Open the queue of a service; raises `UserError` if there is none."""
    from math import inf

    from taillift.models.errors import UserError
    from taillift.service.review.review_folder import ReviewFolder

    if not path.is_dir():
        raise UserError(f"{path} is not a folder: name the review_dir of a service")
    return ReviewFolder(path, inf, 2**63)
