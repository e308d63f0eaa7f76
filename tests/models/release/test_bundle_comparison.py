"""Two bundles on the same photos: what is called harm, what is not, and what cannot be said."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from taillift.cli import app
from taillift.models.bundle.arrays import Floats, Labels
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import MODEL, new_bundle, read_manifest, write_golden
from taillift.models.bundle.manifest import Thresholds, Variant, classes_from
from taillift.models.bundle.predictor import Predictor
from taillift.models.bundle.schema import FILES, Precision
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.models.release.bundle_comparison import (
    MeasuredModel,
    compare,
    compare_bundles,
    compare_variants,
)
from taillift.models.release.labelled_photos import LabelledPhotos
from tests.support.palette import (
    CALIBRATION,
    CLASSES,
    canvases,
    graph,
    new_photo,
    palette_manifest,
    photo,
)

# Twenty few-shot classes and three others, with twenty photos each.
COUNTS = [500, 200, 50, *[10] * 20]
LABELS = [f"class {index}" for index in range(len(COUNTS))]
PHOTOS = np.repeat(np.arange(len(COUNTS)), 20)


def model(answers: Labels, labels: list[str] = LABELS, sharpness: float = 6.0) -> MeasuredModel:
    """Return a model without calibration that gives these answers, with nearly even logits."""
    noise = np.random.default_rng(0).random((len(answers), len(labels)), np.float32)
    logits: Floats = noise + sharpness * np.eye(len(labels), dtype=np.float32)[answers]
    classes = classes_from(labels, labels, COUNTS, Thresholds(), [None] * len(labels))
    variants = {Precision.FP32: Variant()}
    changes = {"classes": classes, "variants": variants}
    manifest = palette_manifest("", {}).model_copy(update=changes)
    predictor = Predictor(manifest, Precision.FP32)
    return MeasuredModel(predictor, Ensemble.OFF, logits, np.ones(len(answers), np.int64), 1.0)


def labelled(labels: Labels = PHOTOS) -> LabelledPhotos:
    return LabelledPhotos("photos", [Path("photo")] * len(labels), labels, 0)


def usual(random: np.random.Generator) -> Labels:
    """Return answers of which 57 % are right, as those of the demo bundle for few-shot classes."""
    wrong = (PHOTOS + random.integers(1, len(COUNTS), len(PHOTOS))) % len(COUNTS)
    return np.where(random.random(len(PHOTOS)) < 0.57, PHOTOS, wrong)


def test_a_model_against_itself_has_no_difference_at_all() -> None:
    answers = usual(np.random.default_rng(1))
    result = compare(model(answers), model(answers), labelled())
    assert result.verdict == "identical"
    assert set(result.groups) == {"all", "many", "medium", "few"}
    for group in result.groups.values():
        assert (group.difference, group.low, group.high) == (0, 0, 0)
        assert (group.gained, group.lost, group.p_value, group.kept) == (0, 0, 1, 100)
        assert group.old == group.new
    assert result.changed_classes == 0
    assert result.losses == ()


def test_the_same_graph_with_other_temperatures_differs_in_confidence_alone() -> None:
    answers = usual(np.random.default_rng(1))
    old, new = model(answers), model(answers)
    variant = new.predictor.variant.model_copy(update={"calibration": CALIBRATION})
    variants = {Precision.FP32: variant}
    manifest = new.manifest.model_copy(update={"variants": variants})
    new = replace(new, predictor=Predictor(manifest, Precision.FP32), ensemble=Ensemble.FULL)
    result = compare(replace(old, ensemble=Ensemble.FULL), new, labelled())
    assert result.verdict == "identical"
    assert result.sentence.endswith("and only their confidence differs")
    few = result.groups["few"]
    assert (few.low, few.high, few.kept) == (0, 0, 100)
    assert few.new_error_at_old_temperatures == few.old.confidence_error
    assert few.new.confidence_error != few.old.confidence_error


def test_five_per_cent_of_the_few_shot_answers_flipped_is_harm_in_nine_of_ten_seeds() -> None:
    verdicts = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        old = usual(random)
        flipped = random.choice(np.flatnonzero(PHOTOS >= 3), 20, replace=False)
        new = old.copy()
        new[flipped] = (old[flipped] + random.integers(1, len(COUNTS), 20)) % len(COUNTS)
        result = compare(model(old), model(new), labelled())
        assert result.groups["few"].photos == 400
        assert result.groups["few"].kept == 95
        verdicts.append(result.verdict)
    assert verdicts.count("harm") >= 18
    assert set(verdicts) <= {"harm", "no sign of harm"}


def test_changes_that_help_as_often_as_they_hurt_are_seldom_called_harm() -> None:
    verdicts = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        right = random.random((2, len(PHOTOS))) < 0.9
        old, new = np.where(right, PHOTOS, (PHOTOS + 1) % len(COUNTS))
        verdicts.append(compare(model(old), model(new), labelled()).verdict)
    assert verdicts.count("harm") <= 3
    assert "no sign of harm" in verdicts


def test_the_order_of_the_classes_does_not_matter() -> None:
    random = np.random.default_rng(3)
    old, new = usual(random), usual(random)
    turned = model(new)
    order = random.permutation(len(COUNTS))
    classes = tuple(turned.manifest.classes[index] for index in order)
    predictor = Predictor(turned.manifest.model_copy(update={"classes": classes}), Precision.FP32)
    turned = replace(turned, predictor=predictor, logits=turned.logits[:, order])
    result = compare(model(old), turned, labelled())
    expected = compare(model(old), model(new), labelled())
    assert (result.sentence, result.losses) == (expected.sentence, expected.losses)
    error = result.groups["few"].new.confidence_error
    assert error == pytest.approx(expected.groups["few"].new.confidence_error)


def test_losses_name_the_classes_and_other_groups_are_told() -> None:
    new = PHOTOS.copy()
    new[PHOTOS == 0] = 1
    new[np.flatnonzero(PHOTOS == 7)[:2]] = 1
    result = compare(model(PHOTOS), model(new), labelled())
    assert [(loss.label, loss.lost, loss.significant) for loss in result.losses] == [
        ("class 0", 20, True),
        ("class 7", 2, False),
    ]
    assert result.changed_classes == 1
    assert result.verdict == "no sign of harm"
    assert "; many loses" in result.sentence


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (lambda labels: labels < 3, "the photos have none of the few-shot classes"),
        (lambda labels: labels < 12, "more than half of the few-shot classes"),
    ],
)
def test_too_few_photos_of_few_shot_classes_are_no_verdict(
    keep: Callable[[Labels], Labels], words: str
) -> None:
    labels = PHOTOS[keep(PHOTOS)]
    result = compare(model(labels), model((labels + 1) % 23), labelled(labels))
    assert result.verdict == "cannot say"
    assert words in result.sentence
    assert "few" not in result.groups or result.groups["few"].low is None


def test_sharper_confidence_is_a_larger_error_at_its_own_and_at_the_others_temperature() -> None:
    answers = usual(np.random.default_rng(1))
    calm, sure = model(answers, sharpness=3.5), model(answers, sharpness=9.0)
    few = compare(calm, sure, labelled()).groups["few"]
    assert few.old.confidence_error is not None
    assert few.new.confidence_error is not None
    assert few.new.confidence_error > few.old.confidence_error + 10
    assert few.new_error_at_old_temperatures == few.new.confidence_error


# Real bundles, photos and commands.


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A palette bundle that takes black for something else."""
    target = tmp_path_factory.mktemp("bundles") / "blind"
    changed = graph()
    (bias,) = (one for one in changed.graph.initializer if one.name == "bias")
    values = numpy_helper.to_array(bias).copy()
    values[list(CLASSES).index("black")] = -100
    bias.CopyFrom(numpy_helper.from_array(values, "bias"))
    with new_bundle(target) as bundle:
        onnx.save(changed, bundle.path / MODEL)
        pixels = canvases([colour for colour, _ in CLASSES.values()])
        write_golden(bundle.path, pixels, Session(bundle.path / MODEL).run(pixels).logits)
        bundle.finish(lambda files: palette_manifest("", files))
    return target


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photos of each colour in test/, and one copy."""
    for label, (colour, _) in CLASSES.items():
        folder = tmp_path / "photos" / "test" / label
        folder.mkdir(parents=True)
        for index in range(6):
            (folder / f"{index}.png").write_bytes(new_photo(colour))
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    return tmp_path / "photos"


def test_a_bundle_that_lost_a_rare_class_is_refused_with_exit_status_1(
    bundle: Path, blind: Path, photos: Path
) -> None:
    result = CliRunner().invoke(app, ["compare-bundles", str(bundle), str(blind), str(photos)])
    assert result.exit_code == 1
    assert "hurts: few-shot classes lose" in result.output
    assert "black (few): 0 gained, 6 lost of 6" in result.output
    assert "1 photos are copies" in result.output


def test_json_has_the_figures_and_a_good_bundle_has_exit_status_0(
    bundle: Path, blind: Path, photos: Path
) -> None:
    command = ["compare-bundles", "--json", "--ensemble", "full", str(blind), str(bundle)]
    result = CliRunner().invoke(app, [*command, str(photos)])
    assert result.exit_code == 0
    document = json.loads(result.output)
    assert document["verdict"] == "no sign of harm"
    assert document["sentence"].startswith("helps: few-shot classes gain")
    assert document["groups"]["few"]["difference"] == pytest.approx(50)
    assert document["groups"]["few"]["new"]["views"] == 5
    assert document["groups"]["all"]["photos"] == 42
    assert document["old"]["milliseconds"] > 0


def test_photos_that_cannot_be_used_are_counted_and_left_out(bundle: Path, photos: Path) -> None:
    (photos / "test" / "red" / "torn.png").write_bytes(photo((255, 0, 0))[:40])
    result = compare_bundles(bundle, bundle, photos)
    assert (result.unusable, result.copies) == (1, 1)
    assert result.groups["all"].photos == 42
    assert result.verdict == "identical"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_takes_its_held_out_rows(separator: str, bundle: Path, photos: Path) -> None:
    rows = ["\ufeffPath, Label,split", "test/red/0.png,red,train"]
    held_out = [f"test/{label}/{index}.png,{label},test" for label in CLASSES for index in (1, 2)]
    table = photos / "photos.csv"
    table.write_text("\n".join(rows + held_out).replace(",", separator), "utf-8")
    assert compare_bundles(bundle, bundle, table).groups["all"].photos == 14


def no_folder(photos: Path) -> Path:
    return photos / "missing"


def other_classes(photos: Path) -> Path:
    (photos / "test" / "red").rename(photos / "test" / "rde")
    return photos


def no_classes(photos: Path) -> Path:
    (photos / "test").rename(photos / "things")
    return photos


def training_only(photos: Path) -> Path:
    (photos / "test").rename(photos / "train")
    return photos


def nothing_usable(photos: Path) -> Path:
    for path in photos.rglob("*.png"):
        path.write_bytes(b"torn" + path.name.encode())
    return photos


def table_without_label(photos: Path) -> Path:
    (photos / "table.csv").write_text("path,class\na.png,red\n")
    return photos / "table.csv"


def table_with_a_missing_photo(photos: Path) -> Path:
    (photos / "table.csv").write_text("path,label\na.png,red\n")
    return photos / "table.csv"


def table_with_half_a_quote(photos: Path) -> Path:
    (photos / "table.csv").write_text('path,label,note\na.png,red,"x\nb.png,red,y\n')
    return photos / "table.csv"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (table_with_half_a_quote, "cannot be read as a table in UTF-8: unexpected end of data"),
        (no_folder, "is neither a folder nor a CSV file"),
        (other_classes, "has the label 'rde', which the bundles do not have (did you mean"),
        (no_classes, "has no folder of a class and neither test/ nor val/"),
        (training_only, "has training photos only"),
        (nothing_usable, "none of the 43 photos can be used"),
        (table_without_label, "has no column label"),
        (table_with_a_missing_photo, "cannot be read (No such file"),
    ],
)
def test_other_photos_are_refused_in_one_line(
    spoil: Callable[[Path], Path], words: str, bundle: Path, photos: Path
) -> None:
    with pytest.raises(UserError) as error:
        compare_bundles(bundle, bundle, spoil(photos))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_bundles_of_different_classes_are_refused_before_any_photo_is_read(
    bundle: Path, tmp_path: Path
) -> None:
    old = read_manifest(bundle)
    classes = tuple(
        info.model_copy(update={"label": "pink"}) if info.label == "white" else info
        for info in old.classes
    )
    with new_bundle(tmp_path / "other") as other:
        (other.path / MODEL).write_bytes((bundle / MODEL).read_bytes())
        (other.path / "golden.npz").write_bytes((bundle / "golden.npz").read_bytes())
        other.finish(lambda files: old.model_copy(update={"classes": classes, "files": files}))
    with pytest.raises(UserError, match=r"different classes \(the new one lacks 'white'"):
        compare_bundles(bundle, tmp_path / "other", tmp_path / "missing")


def test_each_variant_is_compared_with_fp32(
    bundle: Path, blind: Path, photos: Path, tmp_path: Path
) -> None:
    old = read_manifest(bundle)
    pixels = canvases([colour for colour, _ in CLASSES.values()])
    graphs = {Precision.FP32: bundle, Precision.FP16: bundle, Precision.INT8: blind}
    with new_bundle(tmp_path / "both") as both:
        for precision, source in graphs.items():
            (both.path / FILES[precision]).write_bytes((source / MODEL).read_bytes())
        logits = {
            precision: Session(both.path / FILES[precision]).run(pixels).logits
            for precision in graphs
        }
        write_golden(both.path, pixels, logits)
        variants = dict.fromkeys(graphs, old.variants[Precision.FP32])
        both.finish(lambda files: old.model_copy(update={"variants": variants, "files": files}))
    command = ["compare-bundles", "--variants", "--json", str(tmp_path / "both"), str(photos)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    document = json.loads(result.output)
    assert {name: one["verdict"] for name, one in document.items()} == {
        "fp16": "identical",
        "int8": "harm",
    }
    three = CliRunner().invoke(app, [*command, "more"])
    assert "--variants needs BUNDLE PHOTOS" in str(three.exception)


def test_a_bundle_without_variants_says_how_to_get_one(bundle: Path, photos: Path) -> None:
    with pytest.raises(UserError, match="has only the fp32 graph: export it with --variant int8"):
        compare_variants(bundle, photos)
