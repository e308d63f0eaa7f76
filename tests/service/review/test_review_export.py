"""The queue for other programs: folders that training reads, tasks for Label Studio, and back."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from taillift.models.errors import UserError
from taillift.models.names import NONE_OF_THE_CLASSES as NONE
from taillift.service.review.review_cli import app
from taillift.service.review.review_export import (
    NONE_FOLDER,
    export_folder,
    export_tasks,
    folder_name,
)
from taillift.service.review.review_folder import (
    LikelyClass,
    ReviewEntry,
    ReviewFolder,
    encode_features,
)
from taillift.training.data.readers.registry import read_source
from tests.support.palette import CLASSES, photo
from tests.support.serving import running

HOSTILE = 'a/b "quoted" <&> "../..'


@pytest.fixture
def queue(tmp_path: Path) -> ReviewFolder:
    """Six photos: two red, one of a class with a hostile name, one of none, two not labelled."""
    folder = ReviewFolder(tmp_path / "queue", 30, 10**9, lambda: 1e9)
    given = {"p-red-000": "red", "p-red-001": "red", "p-odd-000": HOSTILE, "p-none-00": None}
    for number, key in enumerate((*given, "p-wait-00", "p-wait-01")):
        entry = ReviewEntry(
            id=key,
            time=1e9 - 9 + number,
            kind="png",
            predictions=[
                LikelyClass(label=label, group="few", confidence=confidence)
                for label, confidence in (("white", 0.7), (HOSTILE, 0.2))
            ],
            why="differs" if key == "p-odd-000" else "tail",
            p=0.25,
            version="0123456789ab",
            number=3 if number else None,
            digest=number,
            features=encode_features(np.ones(2, np.float32)),
        )
        data = photo(CLASSES["red"][0], size=(30 + number, 20))
        folder.add(entry, data, [*CLASSES, HOSTILE])
        if key in given:
            folder.give_label(key, given[key])
    return folder


def run(queue: ReviewFolder, *arguments: str | Path) -> Result:
    command = [*map(str, arguments), "--review-dir", str(queue.path)]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def test_the_labelled_photos_are_a_set_that_training_reads(
    queue: ReviewFolder, tmp_path: Path
) -> None:
    target = tmp_path / "set"
    result = run(queue, "export", target)
    assert "4 labelled photos" in result.stdout
    assert f"     2  red\n     1  {HOSTILE}\n" in result.stdout
    by_table, by_folders = read_source(str(target / "photos.csv")), read_source(str(target))
    assert by_table.vocabulary.classes == tuple(sorted((HOSTILE, "red")))
    assert by_folders.vocabulary.classes == tuple(sorted((folder_name(HOSTILE), "red")))
    for listing in (by_table, by_folders):
        split = listing.splits["train"]
        assert len(split.photos) == 3
        assert split.labels.count(listing.vocabulary.classes.index("red")) == 2
    with (target / "photos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "path": "train/red/p-red-000.png",
        "label": "red",
        "split": "train",
        "id": "p-red-000",
        "version": "0123456789ab",
        "predicted": "white",
        "p": "0.25",
    }
    assert rows[1]["version"] == "3"
    assert (rows[2]["label"], rows[2]["p"]) == (HOSTILE, "")
    assert (target / rows[0]["path"]).read_bytes() == photo(CLASSES["red"][0], size=(30, 20))
    assert [path.name for path in (target / NONE_FOLDER).iterdir()] == ["p-none-00.png"]


@pytest.mark.parametrize("label", [HOSTILE, "..", "a" * 300, "é" * 150, " x", "a.", "a\nb", "."])
def test_every_label_has_a_folder_of_its_own_inside(label: str, tmp_path: Path) -> None:
    name = folder_name(label)
    (tmp_path / name).mkdir()
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert name != folder_name(f"{label}!")
    assert not name.startswith(".")


@pytest.mark.parametrize("form", ["folder", "label-studio"])
def test_photos_that_are_removed_meanwhile_are_left_out(
    queue: ReviewFolder, tmp_path: Path, form: str
) -> None:
    gone = {"folder": "p-red-000", "label-studio": "p-wait-00"}[form]
    photos = queue.photos() if form == "folder" else queue.waiting()
    queue.remove(gone)
    if form == "folder":
        assert export_folder(photos, tmp_path / "set", replace=False)["red"] == 1
    else:
        export_tasks(photos, list(CLASSES), tmp_path / "set", replace=False)
        assert len(json.loads((tmp_path / "set" / "tasks.json").read_text())) == 1
    exported = [path.stem for path in (tmp_path / "set").rglob("*.png")]
    assert gone not in exported
    assert exported


def test_an_export_is_only_replaced_if_asked_and_nothing_else_is(
    queue: ReviewFolder, tmp_path: Path
) -> None:
    target = tmp_path / "set"
    run(queue, "export", target)
    with pytest.raises(UserError, match="exists already"):
        run(queue, "export", target)
    queue.give_label("p-wait-00", "white")
    assert "5 labelled photos" in run(queue, "export", target, "--replace").stdout
    with pytest.raises(UserError, match="is not replaced"):
        run(queue, "export", queue.path, "--replace")
    with pytest.raises(UserError, match="no photo of the queue is labelled"):
        run(ReviewFolder(tmp_path / "empty", 1, 1), "export", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def exported_tasks(queue: ReviewFolder, target: Path) -> list[dict[str, object]]:
    assert run(queue, "export", target, "--format", "label-studio").exit_code == 0
    tasks: list[dict[str, object]] = json.loads((target / "tasks.json").read_text("utf-8"))
    return tasks


def test_the_photos_that_wait_are_tasks_for_label_studio(
    queue: ReviewFolder, tmp_path: Path
) -> None:
    target = tmp_path / "tasks"
    tasks = exported_tasks(queue, target)
    assert len(tasks) == 2
    assert tasks[0] == {
        "data": {
            "image": "/data/local-files/?d=photos/p-wait-00.png",
            "prediction_id": "p-wait-00",
            "group": "few",
            "why": "tail",
            "p": 0.25,
        },
        "predictions": [
            {
                "model_version": "3",
                "score": 0.7,
                "result": [
                    {
                        "from_name": "label",
                        "to_name": "image",
                        "type": "choices",
                        "value": {"choices": ["white"]},
                    }
                ],
            }
        ],
    }
    assert (target / "photos" / "p-wait-00.png").is_file()
    view = ElementTree.fromstring((target / "config.xml").read_text("utf-8"))
    choices = view.find("Choices")
    assert choices is not None
    assert [one.get("value") for one in choices] == [*CLASSES, HOSTILE, NONE]
    assert choices.get("toName") == "image"
    image = view.find("Image")
    assert image is not None
    assert image.attrib == {"name": "image", "value": "$image"}


@pytest.mark.parametrize("minimal", [True, False])
def test_labels_come_back_from_label_studio(
    queue: ReviewFolder, tmp_path: Path, minimal: bool
) -> None:
    tasks = exported_tasks(queue, tmp_path / "tasks")
    done = []
    for task, choice in zip(tasks, (HOSTILE, NONE), strict=True):
        data = task["data"]
        assert isinstance(data, dict)
        result = {"type": "choices", "value": {"choices": [choice]}}
        annotations = [
            {"result": [{**result, "value": {"choices": ["red"]}}]},
            {"result": [result]},
            {
                "result": [{"type": "choices", "value": {"choices": ["blue"]}}],
                "was_cancelled": True,
            },
        ]
        done.append(
            {**data, "id": 17, "label": choice}
            if minimal
            else {"id": 17, "data": data, "annotations": annotations}
        )
    file = tmp_path / "export.json"
    file.write_text(json.dumps(done))
    assert run(queue, "import", file).stdout == "2 photos of the queue are labelled\n"
    labels = {photo.entry.id: photo.given and photo.given.label for photo in queue.photos()}
    assert (labels["p-wait-00"], labels["p-wait-01"]) == (HOSTILE, None)
    assert queue.waiting() == []


@pytest.mark.parametrize(
    "table",
    [
        f"id,label\np-wait-00,red\np-wait-01,{NONE}\nunknown-1,red\np-red-000,\n",
        f"\ufefflabel;id\nred;p-wait-00\n{NONE};p-wait-01\nred;unknown-1\n",
        f"id,prediction_id,label\n1,p-wait-00,red\n2,p-wait-01,{NONE}\n3,unknown-1,red\n",
    ],
)
def test_labels_come_back_from_a_table(queue: ReviewFolder, tmp_path: Path, table: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(table, "utf-8")
    result = run(queue, "import", file)
    assert result.stdout == "2 photos of the queue are labelled\n"
    assert result.stderr == "1 ids are not in the queue, such as unknown-1\n"
    labels = {photo.entry.id: photo.given for photo in queue.photos()}
    assert labels["p-wait-00"] is not None
    assert labels["p-wait-00"].label == "red"
    assert labels["p-wait-01"] is not None
    assert labels["p-wait-01"].label is None


def tasks_with(*choices: str) -> str:
    """Return an export of Label Studio with one task, for which these classes were chosen."""
    result = {"type": "choices", "value": {"choices": choices}}
    data = {"prediction_id": "p-wait-00"}
    return json.dumps([{"data": data, "annotations": [{"result": [result]}]}])


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", "id,name\nx,red\n", "must name the columns id and label"),
        ("a.csv", "id,label\nx\n", "line 2 does not have as many cells"),
        ("a.csv", "id,label\n", "holds no label"),
        ("a.csv", "", "must name the columns"),
        ("a.json", "[", "cannot be read as JSON"),
        ("a.json", '[{"annotations": [{"result": [{"type": "choices"}]}]}]', "is not an export"),
        ("a.json", tasks_with(), "holds no label"),
        ("a.json", tasks_with("red", "blue"), "the photo p-wait-00 has 2 labels in Label Studio"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.json", '{"a": 1}', "is not an export"),
        ("a.json", "3", "is not an export"),
        ("none.csv", None, "cannot be read as CSV"),
    ],
)
def test_a_file_without_labels_is_an_error_of_one_line(
    queue: ReviewFolder, tmp_path: Path, name: str, text: str | None, complaint: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint) as caught:
        run(queue, "import", tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(queue.waiting()) == 2


def test_imported_labels_count_for_the_live_accuracy(bundle: Path, tmp_path: Path) -> None:
    """The service runs meanwhile, and shows the labels within a minute or with the next one."""
    path, key = tmp_path / "queue", tmp_path / "key"
    key.write_text("a-key-that-signs-the-ids\n")
    labels, table = tmp_path / "labels.sqlite", tmp_path / "labels.csv"
    feedback = {"feedback_file": labels, "feedback_key_file": key}
    with running(bundle, review_dir=path, review_per_day=10**6, **feedback) as client:
        for colour in ("white", "black"):
            client.post("/classify", content=photo(CLASSES[colour][0]))
        first, second = (offered["id"] for offered in client.get("/review").json())
        table.write_text(f"id,label\n{first},white\nforged-id,red\n")
        flags = ("--feedback-file", labels, "--feedback-key-file", key)
        result = run(ReviewFolder(path, 1, 1), "import", table, *flags)
        assert result.stdout == (
            f"{labels}: 1 accepted, 1 forged\n1 photos of the queue are labelled\n"
        )
        assert [offered["id"] for offered in client.get("/review").json()] == [second]
        client.post("/feedback", json={"labels": [{"id": second, "label": "black"}]})
        document = client.get("/classes").json()
        assert document["labelled"]["sampled"] == 2


def test_ids_of_another_kind_are_not_in_the_queue(queue: ReviewFolder, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"prediction_id": 7, "label": "red"}]')
    result = run(queue, "import", tmp_path / "a.json")
    assert result.stdout == "0 photos of the queue are labelled\n"
    assert result.stderr == "1 ids are not in the queue, such as 7\n"


@pytest.mark.parametrize("text", [b"\0\x05\x16\x07", b'{"red": 1}', b'["red"'])
def test_a_list_of_classes_that_cannot_be_read_is_one_line(
    queue: ReviewFolder, tmp_path: Path, text: bytes
) -> None:
    (queue.path / "._0123456789ab.classes.json").write_bytes(text)
    with pytest.raises(UserError, match=r"classes\.json is not a list of classes .*move it away"):
        exported_tasks(queue, tmp_path / "tasks")
