import json
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.posterior import Prior, leaning, log_prior, posterior
from taillift.models.bundle.schema import Group, Precision, Preprocessing
from taillift.training.calibration.held_out import HeldOut, predictions_on
from taillift.training.calibration.variants import CalibratedVariant, calibrate, measure_on
from taillift.training.data.photo import RawPhoto
from taillift.training.evaluation import scores
from taillift.training.fit.checkpoint import CheckpointMetadata
from taillift.training.recipe.recipe import load_recipe
from taillift.training.report.bundle import galleries, write_report
from taillift.training.report.html import UNKNOWN, merged_notes, without_repeats
from taillift.training.report.summary import summary
from tests.support.outcomes import RECORD
from tests.support.simulated import NINE, held_out, seen

FP32, INT8 = Precision.FP32, Precision.INT8
NAMES = tuple(f"c{index}" for index in range(9))
PREPROCESSING = Preprocessing(
    size=224,
    expand=48,
    interpolation="bicubic",
    resize_mode="shortest",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
COUNTS = (400, 300, 200, 90, 60, 30, 12, 8, 5)


class Page(HTMLParser):
    """A page's words, the rows of its tables, and the addresses that it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.sources: list[str] = []
        self.in_cell = False
        self.feed(self.source)

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
            self.in_cell = True
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self.in_cell = False

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def rows_after(self, *heads: str) -> list[list[str]]:
        """Return the rows of the only table that has these columns."""
        starts = [index for index, row in enumerate(self.rows) if set(heads) <= set(row)]
        assert len(starts) == 1, f"{heads} name {len(starts)} tables"
        width = len(self.rows[starts[0]])
        below = self.rows[starts[0] + 1 :]
        ends = [index for index, row in enumerate(below) if len(row) != width]
        return below[: ends[0] if ends else len(below)]


def metadata_of(name: str = "made-up", classes: Sequence[str] = NAMES) -> CheckpointMetadata:
    return CheckpointMetadata(
        backbone="default",
        architecture="ViT-Made-Up",
        pretrained="by hand",
        backbone_sha256="cd" * 32,
        data=name,
        data_sha256="ab" * 32,
        classes=tuple(classes),
        names=tuple(classes),
        counts=COUNTS[: len(classes)],
        prompts=tuple(classes),
        preprocessing=PREPROCESSING,
        recipe=load_recipe("lift"),
        trainable_parameters=12_345,
        record=RECORD,
    )


def calibrated_variant(fit: HeldOut, check: HeldOut | None) -> CalibratedVariant:
    """Fit a variant on `fit` and measure it on `check`, as an export does."""
    fitted = calibrate(fit)
    if check is None:
        return CalibratedVariant(fitted.variant, fitted=fitted)
    if check is not fit:
        fitted = fitted.measured_on(check)
    return CalibratedVariant(measure_on(fitted.variant, check), check, fitted)


def named(held: HeldOut, data: str) -> HeldOut:
    return replace(held, data=data)


def page_of(
    folder: Path,
    variants: dict[Precision, CalibratedVariant],
    metadata: CheckpointMetadata | None = None,
) -> Page:
    groups: list[Group] = NINE
    write_report(folder, metadata or metadata_of(), groups, variants)
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def pair() -> dict[Precision, CalibratedVariant]:
    """Variants fp32 and int8, which differ a little; fitted on val, measured on test."""
    val = named(held_out(300, (0.5, 0.6, 0.5)), "made-up val")
    test = named(held_out(400, (0.5, 0.6, 0.5), seed=1), "made-up test")
    noise = np.random.default_rng(2).normal(0, 0.3, (1, 1, 9)).astype(np.float32)
    noisy = [replace(held, view_logits=held.view_logits + noise) for held in (val, test)]
    return {FP32: calibrated_variant(val, test), INT8: calibrated_variant(*noisy)}


@pytest.fixture(scope="module")
def page(
    pair: dict[Precision, CalibratedVariant], tmp_path_factory: pytest.TempPathFactory
) -> Page:
    return page_of(tmp_path_factory.mktemp("bundle") / "report", pair)


def test_the_page_fetches_nothing_and_follows_the_dark_mode(page: Page) -> None:
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert "<script" not in page.source
    assert "prefers-color-scheme: dark" in page.source
    assert 'name="viewport"' in page.source
    assert "$" not in page.text, "no name of the template is left"


def test_the_curve_is_what_requests_with_a_tail_get(
    page: Page, pair: dict[Precision, CalibratedVariant]
) -> None:
    check, calibration = pair[FP32].check, pair[FP32].variant.calibration
    assert check is not None
    assert calibration is not None
    full = predictions_on(check)[1]
    temperatures = calibration.temperatures(full.logits, full.views, full.ensemble, full.groups)
    rows = page.rows_after("tail", "mean class")
    assert [row[0] for row in rows] == ["0", "0.25", "0.5", "0.75", "1"]
    for tail, *cells in rows:
        prior = leaning(log_prior(Prior.UNIFORM, COUNTS), float(tail), COUNTS)
        answers = posterior(full.logits, prior, temperatures).argmax(1)
        found = scores(answers, check.labels, NINE)
        expected = [found.mean_class, found.many, found.medium, found.few]
        assert cells == [f"{value:.1f}" for value in expected]
    assert rows[0][4] != rows[-1][4]


def test_sure_mistakes_and_rare_classes_are_shown_as_small_photos(tmp_path: Path) -> None:
    held = held_out(60)
    logits = np.full((60, 9), -3.0)
    logits[np.arange(60), held.labels] = 3.0
    logits[7] = 0
    logits[7, (held.labels[7] + 1) % 9] = 9.0
    logits[8] = 0
    logits[8, (held.labels[8] + 1) % 9] = 2.0
    check = named(seen(logits, held.labels), "test")
    pixels = np.zeros((3, 300, 400), np.uint8)
    photos = [RawPhoto(f"{index}", pixels + np.uint8(4 * index)) for index in range(60)]
    hostile = metadata_of(classes=("<b>c0", *NAMES[1:]))
    shown = galleries(hostile, CalibratedVariant(Variant(), check), photos)
    assert [photo.title for photo in shown.mistakes] == [
        hostile.classes[held.labels[index]] for index in (7, 8)
    ]
    wrong = hostile.classes[(held.labels[7] + 1) % 9]
    assert shown.mistakes[0].words == f"taken for {wrong}, 100 %"
    assert [photo.title for photo in shown.rare] == list(hostile.classes[::-1])
    own = int((held.labels == 8).sum())
    right = own - int((held.labels[7:9] == 8).sum())
    assert shown.rare[0].words == f"5 training photos; {right} of {own} right"
    data = b64decode(shown.mistakes[0].source.removeprefix("data:image/jpeg;base64,"))
    with Image.open(BytesIO(data)) as image:
        assert image.size == (192, 144)
        assert image.getpixel((90, 70)) == pytest.approx((28, 28, 28), abs=3)
    measured = CalibratedVariant(measure_on(Variant(), check), check)
    write_report(tmp_path / "report", hostile, NINE, {FP32: measured}, photos)
    page = Page(tmp_path / "report" / "report.html")
    assert "The surest mistakes" in page.text
    embedded = [source for source in page.sources if source.startswith("data:image/jpeg")]
    assert len(embedded) == 2 + 9
    assert f"This file holds {len(set(embedded))} of the held-out photos" in page.text
    assert "<b>" not in page.source


def test_without_mistakes_there_is_no_gallery_of_them(tmp_path: Path) -> None:
    labels = np.arange(9)
    check = named(seen(9.0 * np.eye(9), labels), "test")
    photos = [RawPhoto("x", np.zeros((3, 20, 30), np.uint8))] * 9
    variant = CalibratedVariant(measure_on(Variant(), check), check)
    assert galleries(metadata_of(), variant, photos).mistakes == []
    assert galleries(metadata_of(), variant, ()).size == 0
    write_report(tmp_path / "report", metadata_of(), NINE, {FP32: variant}, photos)
    text = Page(tmp_path / "report" / "report.html").text
    assert "The surest mistakes" not in text
    assert "The rarest classes" in text


def test_it_says_what_the_bundle_is(page: Page) -> None:
    for words in (
        "Bundle made-up",
        "1,105 training photos, 400 of the most frequent class and 5 of the rarest",
        "9: 3 many (900 training photos), 3 medium (180 training photos), 3 few (25 training",
        "made-up test, 400 photos",
        "made-up val, 300 different photos",
        "LIFT (lift): adaptformer, 12,345 parameters trained, loss logit-adjusted, seed 0",
        "ViT-Made-Up (by hand), sha256 cdcdcdcdcdcd",
        "fp32, int8",
        "torch 2.13.0, commit efefefefefef",
    ):
        assert words in page.text


def test_accuracy_is_given_for_every_variant_and_ensemble(
    page: Page, pair: dict[Precision, CalibratedVariant]
) -> None:
    rows = page.rows_after("mean class", "G-mean", "macro-F1")
    assert [row[:2] for row in rows] == [
        ["fp32", "off, one view"],
        ["", "full, five views"],
        ["", "adaptive"],
        ["int8", "off, one view"],
        ["", "full, five views"],
        ["", "adaptive"],
    ]
    for row, precision in ((rows[2], FP32), (rows[5], INT8)):
        evaluation = pair[precision].variant.evaluation
        assert evaluation is not None
        assert evaluation.adaptive is not None
        assert row[2] == f"{evaluation.adaptive.mean_class:.1f}"
        assert row[5] == f"{evaluation.adaptive.few:.1f}"
        means = evaluation.adaptive.geometric_mean, evaluation.adaptive.macro_f1
        assert row[8:10] == [f"{value:.1f}" for value in means]
        assert row[-1] == f"{evaluation.adaptive_views:.2f}"


def test_the_exit_rule_is_described_in_words_and_figures(
    page: Page, pair: dict[Precision, CalibratedVariant]
) -> None:
    rule = pair[FP32].variant.exit
    assert rule is not None
    assert not rule.certified, "300 photos certify nothing"
    bounds = dict([("overall", rule.overall), *rule.groups.items()])
    worst = max(bounds, key=lambda name: bounds[name].bound)
    assert f"only prove a loss of at most {bounds[worst].bound:.1f} ({worst})" in page.text
    rows = page.rows_after("standard error", "bound at 95 %")
    assert [row[1] for row in rows] == ["overall", "many", "medium", "few"] * 2
    assert [row[-1] for row in rows[:4]] == [f"{loss.bound:.1f}" for loss in bounds.values()]
    (described, _) = page.rows_after("mean views", "certified")
    assert described[1].endswith("5: always")
    assert described[-1] == "no"


def test_errors_stand_before_and_after_with_what_the_photos_can_tell(
    page: Page, pair: dict[Precision, CalibratedVariant]
) -> None:
    calibration = pair[FP32].variant.calibration
    assert calibration is not None
    assert calibration.errors is not None
    rows = page.rows_after("minimum detectable", "ECE, points")
    assert len(rows) == 2 * 3 * 4
    full = calibration.errors.full.overall
    assert full.before is not None
    assert full.after is not None
    assert full.ece_before is not None
    assert full.ece_after is not None
    assert rows[4][1:] == [
        "full, five views",
        "overall",
        "400",
        f"{full.before:.1f} → {full.after:.1f}",
        f"{full.resolution:.1f}",
        f"{full.ece_before:.1f} → {full.ece_after:.1f}",
        "yes" if full.after <= full.before / 2 else "no",
    ]
    assert "measured on made-up test" in page.text


def test_sets_and_reviews_are_those_of_photos_that_nothing_was_fitted_on(
    page: Page, pair: dict[Precision, CalibratedVariant]
) -> None:
    variant = pair[FP32].variant
    assert variant.sets is not None
    assert variant.review is not None
    assert (variant.sets.data, variant.review.data) == ("made-up test", "made-up test")
    rows = page.rows_after("asked for, %", "macro, %")
    assert [row[2] for row in rows] == ["80", "90", "95"] * 6
    scores = variant.sets.estimates[Ensemble.ADAPTIVE][1]
    groups = scores.groups.values()
    figures = [scores.marginal, scores.macro, *(group.coverage for group in groups)]
    assert rows[7][3:8] == [f"{figure:.1f}" for figure in figures]
    reviewed = page.rows_after("wrong among them, %")
    assert [row[2] for row in reviewed[:3]] == [
        f"{group.photos:,}" for group in variant.review.groups.values()
    ]


def test_no_note_is_left_out(page: Page, pair: dict[Precision, CalibratedVariant]) -> None:
    for variant in (each.variant for each in pair.values()):
        parts = (variant.exit, variant.calibration, variant.sets, variant.review)
        notes = [note for part in parts if part for note in part.notes]
        assert notes
        assert [note for note in notes if note not in page.text] == []


def test_a_note_of_all_variants_is_said_once_and_others_with_a_name() -> None:
    items = merged_notes({FP32: ["both", "mine", "both too"], INT8: ["yours", "both", "both too"]})
    assert items == ["both", "fp32: mine", "both too", "int8: yours"]


def test_words_of_the_row_above_are_left_out_up_to_the_first_new_one() -> None:
    rows = [["a", "b", "1"], ["a", "c", "1"], ["d", "c", "1"]]
    cells = [cell for row in without_repeats(rows, words=2) for cell in row]
    assert cells == ["a", "b", "1", "", "c", "1", "d", "c", "1"]


def test_without_calibration_the_page_says_what_the_bundle_cannot_do(tmp_path: Path) -> None:
    check = named(held_out(90), "made-up test")
    variants = {FP32: CalibratedVariant(measure_on(Variant(), check), check=check)}
    text = page_of(tmp_path / "report", variants).text
    for words in (
        "calibrated on nothing",
        "cannot answer ensemble=adaptive",
        "every temperature is 1",
        "cannot answer coverage=",
        "names no answer that may be accepted",
        f"adaptive: there is no exit rule {UNKNOWN}",
    ):
        assert words in text
    assert list(summary(variants[FP32].variant))[-1] == (
        "not calibrated: no exit rule, temperatures, prediction sets or review thresholds"
    )


def test_without_held_out_photos_nothing_is_claimed_of_accuracy(tmp_path: Path) -> None:
    fit = replace(held_out(60), data="60 training photos of made-up", source="cross-fitting")
    variants = {FP32: calibrated_variant(fit, None)}
    page = page_of(tmp_path / "report", variants)
    assert "nothing is known of this bundle's accuracy" in page.text
    assert "60 different photos (cross-fitting: there is no val/)" in page.text
    assert "measured on the photos of the fit, by cross-validation" in page.text
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "metrics.json",
        "reliability.png",
        "report.html",
    ]
    lines = list(summary(variants[FP32].variant))
    assert lines[0] == "no test/ or val/ photos: nothing is known of its accuracy"
    assert "fitted by cross-fitting, as there is no val/: 60 training photos of made-up" in lines
    assert "calibration error (adaptive): not known, there are too few held-out photos" in lines


def test_the_fits_own_photos_are_said_to_flatter(tmp_path: Path) -> None:
    val = named(held_out(120), "made-up val")
    text = page_of(tmp_path / "report", {FP32: calibrated_variant(val, val)}).text
    assert "The exit rule was fitted on these very photos" in text
    assert "measured on the photos of the fit, which flatters them" in text
    assert "made-up val, cross-validated" in text


def test_no_photo_at_all_makes_a_page_too(tmp_path: Path) -> None:
    none = seen(np.zeros((0, 9)), np.zeros(0, np.int64))
    variants = {FP32: calibrated_variant(none, None)}
    page = page_of(tmp_path / "report", variants)
    assert "adaptive saves nothing: every image takes all five views" in page.text
    assert "no held-out photo: a set is the answer alone" in page.text
    assert "never" in [cell for row in page.rows for cell in row]
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Names may hold characters with a meaning in HTML, in a template or in a formula."""
    check = named(held_out(90), "<b>$1 & test</b>")
    metadata = metadata_of("a<b> & $c", ("<i>x_1^$", *NAMES[1:]))
    variants = {FP32: CalibratedVariant(measure_on(Variant(), check), check=check)}
    page = page_of(tmp_path / "report", variants, metadata)
    assert "Bundle a<b> & $c" in page.text
    assert "<b>$1 & test</b>" in page.text
    assert "<i>x_1^$" in page.text
    assert "<i>" not in page.source
    assert "<b>" not in page.source


def test_the_summary_is_short_and_ends_with_where_the_notes_are(
    pair: dict[Precision, CalibratedVariant],
) -> None:
    for variant in (each.variant for each in pair.values()):
        lines = list(summary(variant))
        assert len(lines) <= 12
        assert all("\n" not in line for line in lines)
        assert lines[0].startswith("made-up test, 400 photos: mean-class accuracy ")
        parts = (variant.exit, variant.calibration, variant.sets, variant.review)
        count = sum(len(part.notes) for part in parts if part)
        assert lines[-1] == (
            f"{count} notes on what the photos could not show are in report/report.html"
        )
