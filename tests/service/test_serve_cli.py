"""The commands that need no server: `taillift classify` and `taillift upgrade-bundle`."""

import json
import shutil
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from taillift.models.bundle.folder import read_manifest
from taillift.models.bundle.manifest import Thresholds, classes_from
from taillift.models.errors import UserError
from taillift.service.serve_cli import app
from tests.support.palette import CLASSES, make_first_schema, photo, write_bundle


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    paths = {label: tmp_path / f"{label}.png" for label in CLASSES}
    for label, path in paths.items():
        path.write_bytes(photo(CLASSES[label][0]))
    return paths


def classify(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["classify", *map(str, arguments)])


def test_each_photo_is_a_row_with_its_class(bundle: Path, photos: dict[str, Path]) -> None:
    result = classify(bundle, *photos.values(), "--top-k", 1)
    assert result.exit_code == 0
    for label, path in photos.items():
        (row,) = [line for line in result.stdout.splitlines() if str(path) in line]
        assert label in row.split("│")[2]


@pytest.mark.parametrize("prior", ["train", "many:1,medium:2,few:3"])
def test_json_is_the_answer_of_the_service(
    bundle: Path, photos: dict[str, Path], client: httpx.Client, prior: str
) -> None:
    flags = ["--json", "--top-k", 2, "--ensemble", "off", "--prior", prior, "--tail", 0.5]
    printed = json.loads(classify(bundle, photos["cyan"], *flags).stdout)
    query = {"top_k": "2", "ensemble": "off", "prior": prior, "tail": "0.5"}
    files = [("images", (str(photos["cyan"]), photos["cyan"].read_bytes()))]
    answer = client.post("/classify", params=query, files=files).json()
    assert len(answer["results"][0].pop("id")) == 35
    assert printed == answer


def test_a_precision_that_the_bundle_lacks_is_one_line(
    bundle: Path, photos: dict[str, Path]
) -> None:
    result = classify(bundle, photos["red"], "--precision", "int8")
    assert isinstance(result.exception, UserError)
    assert "has no int8 variant (it has fp32)" in str(result.exception)


def test_json_has_an_error_in_the_position_of_a_bad_photo(
    bundle: Path, photos: dict[str, Path], tmp_path: Path, client: httpx.Client
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    paths = [photos["red"], text, photos["blue"]]
    result = classify(bundle, "--json", *paths)
    files = [("images", (str(path), path.read_bytes())) for path in paths]
    answer = client.post("/classify", params={"top_k": 3}, files=files).json()
    assert result.exit_code == 1
    for served in answer["results"]:
        served.pop("id", None)
    assert json.loads(result.stdout) == answer
    missing = json.loads(classify(bundle, "--json", tmp_path / "missing.jpg").stdout)
    assert missing["results"][0]["error"]["detail"] == "No such file or directory"


def test_paths_and_labels_are_printed_as_they_are(tmp_path: Path) -> None:
    labels = ("[/x]", "[red]", ":cat:", "[", "]", "\\[b]", "black")
    classes = classes_from(labels, labels, [1] * len(labels), Thresholds(), [None] * len(labels))
    bundle = write_bundle(tmp_path / "bundle", classes=classes)
    folder = tmp_path / "[/x]" / ":cat:"
    folder.mkdir(parents=True)
    path = folder / "[bold].png"
    path.write_bytes(photo(CLASSES["red"][0]))
    result = classify(bundle, path, "--top-k", 7)
    assert result.exception is None
    rows = [line.split("│") for line in result.stdout.splitlines() if "few" in line]
    assert {row[2].strip() for row in rows} == set(labels)
    assert rows[0][1].strip() == str(path)


def test_a_bad_photo_is_a_line_and_the_others_are_classified(
    bundle: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    missing = tmp_path / "missing.jpg"
    result = classify(bundle, text, photos["red"], missing, photos["red"])
    assert result.exit_code == 1
    assert result.stdout.count(str(photos["red"])) == 2
    assert result.stderr.splitlines() == [
        f"{text}: not a JPEG, PNG or WebP image",
        f"{missing}: No such file or directory",
    ]


def upgrade(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["upgrade-bundle", *map(str, arguments)])


def test_a_bundle_is_upgraded_in_its_place_or_in_a_copy(bundle: Path, tmp_path: Path) -> None:
    old = shutil.copytree(bundle, tmp_path / "old")
    make_first_schema(old)
    version = read_manifest(bundle).version
    for arguments in ((old, tmp_path / "new"), (old,)):
        result = upgrade(*arguments)
        assert result.exit_code == 0
        assert result.stdout == f"{arguments[-1]}: bundle palette {version}, schema 2\n"
        assert read_manifest(arguments[-1]).version == version
    again = upgrade(old).exception
    assert isinstance(again, UserError)
    assert "is of schema 2 already" in str(again)


def test_the_largest_image_is_the_users_choice(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(photo(CLASSES["red"][0], size=(50, 40)))
    assert classify(bundle, path, "--max-pixels", 2_000).exit_code == 0
    refused = classify(bundle, path, "--max-pixels", 1_999)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(
        f"{path}: the image has 50 x 40 pixels, more than the 1,999 allowed"
    )


def test_names_of_photos_may_have_any_bytes(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.png").write_bytes(photo(CLASSES["red"][0]))
    (tmp_path / "no\udcff.png").write_bytes(b"no photo")
    for flags in ([], ["--json"]):
        result = classify(bundle, tmp_path, *flags)
        assert isinstance(result.exception, SystemExit)
        assert "caf\\udce9.png" in result.stdout.replace("\\\\", "\\")
        assert result.stderr == f"{tmp_path}/no\\udcff.png: not a JPEG, PNG or WebP image\n"
