import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.manifest import Accuracy, Thresholds
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.held_out import predictions_on
from taillift.training.report import figures
from taillift.training.report.figures import (
    COLOURS,
    MOST_MARKS,
    Bar,
    Point,
    Style,
    Tail,
    draw_class_accuracies,
    draw_confusion,
    draw_groups,
    draw_parameters,
    draw_reliability,
    draw_tail,
    neighbours,
    spread,
)
from tests.support.outcomes import tail_of
from tests.support.simulated import held_out

GREY = Style("#777777", "o")


def is_drawn(path: Path) -> bool:
    """Return whether the file is a picture that is neither blank nor tiny."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        colours = image.convert("RGB").getcolors(2**24)
        assert colours is not None
        return min(image.size) > 200 and len(colours) > 20


@pytest.mark.parametrize("classes", [2, 17, 50, 100, 1000])
def test_figures_take_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    counts = tail_of(classes)
    groups = Thresholds().groups(counts)
    names = [f"a $ang € class {index}" for index in range(classes)]
    rates = [50.0, math.nan, *[70.0] * (classes - 2)]
    tails = [Tail(label, rates, GREY) for label in ("before", "after")]
    draw_tail(tmp_path / "tail.png", tails, names, counts, groups)
    accuracies = [Accuracy(single=50, full=50), None, *[None] * (classes - 2)]
    draw_class_accuracies(tmp_path / "classes.png", names, counts, groups, accuracies)
    assert is_drawn(tmp_path / "tail.png")
    assert is_drawn(tmp_path / "classes.png")


@pytest.mark.parametrize(("classes", "drawn"), [(1, 1), (9, 9), (300, 40)])
def test_confusions_are_drawn_for_the_classes_with_the_most_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, drawn: int
) -> None:
    figures_drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures_drawn.append(self))
    counts = np.diag(np.full(classes, 6))
    if classes > 1:
        counts[0, classes - 1] = 2
        counts[1] = 0
    names = [f"the class number {index} with a long name" for index in range(classes)]
    groups = Thresholds().groups(tail_of(classes) if classes > 1 else [3])
    assert draw_confusion(tmp_path / "confusion.png", names, groups, counts) == drawn
    (axes,) = figures_drawn[0].axes
    shares = axes.images[0].get_array()
    assert shares is not None
    if classes > 1:
        assert shares[0].max() == 75
        assert shares[0, -1] == 25
        assert bool(np.ma.getmaskarray(np.ma.masked_invalid(shares))[1].all())
    labels = axes.get_yticklabels()
    assert labels[-1].get_text().startswith(f"the class number {classes - 1}")
    assert len(labels[-1].get_text()) <= 28
    assert {text.get_text() for text in axes.texts} <= {"25", "75", "100"}


def test_numbers_on_bars_and_names_of_groups_can_be_read() -> None:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for colour in COLOURS.values():
        assert 1.05 / (light(colour) + 0.05) >= 4.5, f"white on {colour}, and the other way round"


def test_the_groups_have_the_same_colours_on_page_report_and_dashboard() -> None:
    root = Path(__file__).parents[3]
    style = (root / "service/page/files/page.css").read_text("utf-8").split("@media")[0]
    dashboard = (root / "docker/grafana/dashboards/taillift.json").read_text("utf-8")
    for group, colour in COLOURS.items():
        assert f"--{group}: {colour};" in style
        assert f'"fixedColor": "{colour}"' in dashboard


@pytest.mark.parametrize("recipes", [1, 3, 15])
def test_bars_take_any_number_of_recipes_and_groups_without_classes(
    tmp_path: Path, recipes: int
) -> None:
    bars: dict[Group, Bar] = {"many": Bar(99.0, 3.0), "medium": Bar(2.0, 1.0), "few": Bar(math.nan)}
    blocks = {f"recipe {index}": bars for index in range(recipes)}
    draw_groups(tmp_path / "groups.png", blocks, dict.fromkeys(blocks, 50.0))
    assert is_drawn(tmp_path / "groups.png")
    assert set(bars) == set(GROUPS)


def test_a_recipe_that_trains_nothing_may_be_the_only_point(tmp_path: Path) -> None:
    points = [Point("zero-shot", 0, 50.0, 0.0, GREY)]
    draw_parameters(tmp_path / "points.png", {"accuracy": points})
    assert is_drawn(tmp_path / "points.png")


def test_labels_of_crowded_points_cover_neither_points_nor_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    points = [Point("zero-shot", 0, 60.0, 0.0, GREY), Point("full", 85_000_000, 62.0, 1, GREY)]
    for index in range(8):
        spot = 178_000 + 9_000 * index, 70 + 0.4 * index
        points.append(Point(f"recipe {index}", *spot, 0.3, GREY))
    draw_parameters(tmp_path / "points.png", {"accuracy": points})
    (axes,) = drawn[0].axes
    canvas = FigureCanvasAgg(drawn[0])
    canvas.draw()  # type: ignore[no-untyped-call]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    assert {label.get_text() for label in labels} == {point.label for point in points}
    # Of the words alone, without the line to the point.
    boxes = [Text.get_window_extent(label, renderer) for label in labels]
    spots = [axes.transData.transform(label.xy) for label in labels]
    dots = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in spots]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(box.overlaps(dot) for dot in dots)
        assert drawn[0].bbox.containsx(box.x0)
        assert drawn[0].bbox.containsx(box.x1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_heights_are_spread_in_their_order_and_within_the_axis(heights: list[float]) -> None:
    apart = spread(sorted(heights))
    gap = min(0.05, 1 / len(heights))
    assert all(above - below > gap - 1e-9 for below, above in pairwise(apart))
    assert apart[0] >= 0
    assert apart[-1] <= 1


@given(st.lists(st.integers(1, 600), min_size=1, max_size=400))
def test_neighbours_are_all_classes_once_in_order_and_never_of_two_groups(
    counts: list[int],
) -> None:
    groups = Thresholds().groups(sorted(counts, reverse=True))
    bins = list(neighbours(groups))
    assert [index for indices in bins for index in indices] == list(range(len(groups)))
    assert all(len({groups[index] for index in indices}) == 1 for indices in bins)
    assert len(bins) <= MOST_MARKS + len(GROUPS)
    if len(groups) <= figures.MOST_MARKS:
        assert all(len(indices) == 1 for indices in bins)


def test_the_reliability_diagram_takes_any_number_of_photos(tmp_path: Path) -> None:
    ensembles = [predictions_on(held)[0] for held in (held_out(700), held_out(0))]
    scored = [
        (predictions.uncalibrated(), predictions.at(np.full(len(predictions), 2.0)))
        for predictions in ensembles
    ]
    draw_reliability(tmp_path / "reliability.png", dict(zip(Ensemble, scored, strict=False)))
    with Image.open(tmp_path / "reliability.png") as image:
        colours = image.convert("RGB").getcolors(2**24)
        assert image.height > image.width / 2
        assert colours is not None
        assert len(colours) > 100
