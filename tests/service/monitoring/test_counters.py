"""The metrics of a scrape, complete from the first one on."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import sleep
from typing import Literal

import httpx
import numpy as np
import pytest

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import CONFUSION, file_record
from taillift.models.bundle.manifest import ClassInfo, Thresholds, classes_from
from taillift.service.monitoring.counters import DECISIONS, STAGES, Metrics
from taillift.service.monitoring.exporter import (
    MAX_CLASSES,
    MAX_MOVED,
    ClassSeries,
    TailSeries,
    class_series,
)
from taillift.service.monitoring.recorder import Monitoring
from taillift.service.problems import LATE, REASONS
from taillift.service.settings import read_settings
from tests.support.palette import CLASSES, palette_manifest, photo, write_bundle, write_confusion
from tests.support.serving import form, running, sample, scrape, until


def test_every_series_exists_at_zero_before_the_first_request(bundle: Path) -> None:
    with running(bundle) as client:
        values = {
            (name, *sorted(labels)): value for (name, labels), value in scrape(client).items()
        }
    for label, group in {"red": "many", "cyan": "medium", "black": "few"}.items():
        key = ("taillift_class_predictions_total", ("class", label), ("group", group))
        assert values[key] == 0
    for group in ("many", "medium", "few"):
        assert values["taillift_predictions_total", ("group", group)] == 0
        assert values["taillift_confidence_count", ("group", group)] == 0
        assert values["taillift_set_size_count", ("group", group)] == 0
        assert values["taillift_drifting_classes", ("group", group)] == 0
        for decision in DECISIONS:
            key = ("taillift_reviews_total", ("decision", decision), ("group", group))
            assert values[key] == 0
    assert values["taillift_silent_classes", ("group", "few")] == 0
    assert values[("taillift_window_predictions",)] == 0
    assert 0 < values[("taillift_monitor_seconds",)] < 60
    for reason in REASONS:
        assert values["taillift_rejections_total", ("reason", reason)] == 0
    for stage in STAGES:
        assert values["taillift_stage_seconds_count", ("stage", stage)] == 0
    for ensemble in Ensemble:
        assert values["taillift_views_used_count", ("ensemble", ensemble)] == 0
    for late in LATE:
        assert values["taillift_deadline_drops_total", ("stage", late)] == 0
    for name in ("first", "second"):
        assert values["taillift_pass_views_total", ("pass", name)] == 0
    for outcome in ("ready", "failed"):
        assert values["taillift_session_rebuilds_total", ("outcome", outcome)] == 0
    assert 0 < values[("taillift_predicted_wait_seconds",)] < 60
    assert values[("taillift_queue_views",)] == 0
    assert values[("taillift_ready",)] == 1


def test_predictions_are_counted_by_class_and_group(bundle: Path) -> None:
    with running(bundle) as client:
        files = form(*[("x", photo(CLASSES[label][0])) for label in ("black", "white", "red")])
        client.post("/classify?ensemble=full", files=files)
        client.post("/confidence?ensemble=full", content=photo((0, 0, 0)))
        count = "taillift_class_predictions_total"
        assert sample(client, count, class_="black", group="few") == 1
        assert sample(client, count, class_="green", group="many") == 0
        assert sample(client, "taillift_predictions_total", group="few") == 2
        assert sample(client, "taillift_predictions_total", group="many") == 1
        assert sample(client, "taillift_confidence_count", group="few") == 2
        assert sample(client, "taillift_window_predictions") == 3
        assert sample(client, "taillift_views_used_sum", ensemble="full") == 20
        assert sample(client, "taillift_views_used_count", ensemble="full") == 4


def test_expected_rates_are_those_of_the_reference(known: Path) -> None:
    total = sum(count for _, count in CLASSES.values())
    with running(known) as client:
        assert sample(client, "taillift_reference_info", reference="train") == 1
        few = sample(client, "taillift_expected_rate", group="few")
        black = sample(client, "taillift_class_expected_rate", class_="black", group="few")
        white = sample(client, "taillift_class_expected_rate", class_="white", group="few")
    assert few == pytest.approx(17 / total, rel=0.02)
    assert black == pytest.approx(5 / total, rel=0.05)
    assert black + white == pytest.approx(few)


def test_expected_rates_include_the_confusions_of_the_model(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "palette")
    # Half of the white images are classified as black.
    write_confusion(bundle, {("white", "white"): 5_000, ("white", "black"): 5_000})
    with running(bundle, reference="uniform") as client:
        black = sample(client, "taillift_class_expected_rate", class_="black", group="few")
        white = sample(client, "taillift_class_expected_rate", class_="white", group="few")
        assert sample(client, "taillift_reference_info", reference="uniform") == 1
    assert black == pytest.approx(1.5 / 7, rel=0.01)
    assert white == pytest.approx(0.5 / 7, rel=0.01)


def test_each_stage_is_timed(bundle: Path) -> None:
    with running(bundle) as client:
        client.post("/classify", files=form(("a", photo((0, 0, 0))), ("b", photo((0, 0, 0)))))
        counts = {
            stage: sample(client, "taillift_stage_seconds_count", stage=stage) for stage in STAGES
        }
    assert (counts["read"], counts["post"]) == (1, 1)
    assert (counts["decode_queue"], counts["decode"], counts["queue"]) == (2, 2, 2)
    assert 1 <= counts["infer"] <= 2


def test_the_wait_for_decoding_is_measured(bundle: Path, gate: Event) -> None:
    name, stage = "taillift_stage_seconds", "decode_queue"
    with running(bundle, decode_threads=1) as client, ThreadPoolExecutor(1) as pool:
        files = form(*[(name, photo((0, 0, 0))) for name in "abcd"])
        request = pool.submit(client.post, "/classify", files=files)
        until(lambda: sample(client, f"{name}_count", stage=stage) == 1)
        sleep(0.2)
        gate.set()
        assert request.result().status_code == 200
        assert sample(client, f"{name}_sum", stage=stage) >= 3 * 0.2


def test_rejections_are_counted_once_by_reason(bundle: Path) -> None:
    with running(bundle) as client:
        client.post("/classify")
        client.post("/classify", content=b"text")
        client.post("/classify", files=form(("a", b"text"), ("b", photo((0, 0, 0)))))
        client.post("/classify", files=form(("a", b"text"), ("b", b"text")))
        assert sample(client, "taillift_rejections_total", reason="malformed") == 1
        assert sample(client, "taillift_rejections_total", reason="unsupported_type") == 4


def test_the_model_and_its_provider_are_named(bundle: Path) -> None:
    with running(bundle) as client:
        (labels,) = [labels for name, labels in scrape(client) if name == "taillift_model_info"]
    assert {("name", "palette"), ("provider", "cpu")} <= labels


def test_a_scrape_has_the_requested_content_type(client: httpx.Client) -> None:
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    response = client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("setting", "classes", "wanted"),
    [
        ("auto", MAX_CLASSES, ClassSeries.ALL),
        ("auto", MAX_CLASSES + 1, ClassSeries.MOVED),
        ("on", MAX_CLASSES + 1, ClassSeries.ALL),
        ("off", 2, ClassSeries.NONE),
    ],
)
def test_every_class_has_series_up_to_a_limit(
    setting: Literal["auto", "on", "off"], classes: int, wanted: ClassSeries
) -> None:
    assert class_series(setting, classes) is wanted


def test_over_the_limit_only_few_shot_classes_that_moved_have_series(tmp_path: Path) -> None:
    size = MAX_CLASSES + 1
    counts = [200] * 100 + [1] * (size - 100)
    labels = [f"class {index}" for index in range(size)]
    (tmp_path / "report").mkdir()
    rows = [f"{label},{label},1000" for label in labels]
    text = "\n".join(["true,predicted,photos", *rows])
    (tmp_path / CONFUSION).write_text(text)
    classes = classes_from(labels, labels, counts, Thresholds(), [None] * size)
    files = {CONFUSION: file_record(tmp_path / CONFUSION)}
    manifest = palette_manifest("v", files).model_copy(update={"classes": classes})
    metrics = Metrics(manifest, "cpu")
    monitoring = Monitoring(tmp_path, manifest, read_settings(bundle=tmp_path), metrics)
    metrics.registry.register(TailSeries(monitoring, ClassSeries.MOVED))
    answers = np.eye(size)
    flooded = range(size - MAX_MOVED - 50, size)
    for index in [0, *flooded] * 30:
        monitoring.observe(answers[index])
    samples = [entry for family in metrics.registry.collect() for entry in family.samples]
    drifting = {entry.labels["class"] for entry in samples if entry.name == "taillift_class_drift"}
    counted = {
        entry.labels["class"]: entry.value
        for entry in samples
        if entry.name == "taillift_class_predictions_total"
    }
    assert len(drifting) == MAX_MOVED
    assert drifting <= {labels[index] for index in flooded}
    assert counted == dict.fromkeys(drifting, 30)
    (drifting_few,) = [
        entry.value
        for entry in samples
        if entry.name == "taillift_drifting_classes" and entry.labels["group"] == "few"
    ]
    assert drifting_few == len(flooded)


def test_without_series_by_class_those_of_the_groups_remain(bundle: Path) -> None:
    with running(bundle, class_metrics="off") as client:
        client.post("/classify", content=photo((0, 0, 0)))
        assert not [name for name, _ in scrape(client) if name.startswith("taillift_class")]
        assert sample(client, "taillift_predictions_total", group="few") == 1


def test_a_label_may_be_any_text(tmp_path: Path) -> None:
    classes = tuple(
        ClassInfo(label=label, prompt=label, count=1, group="few", prior=1 / 7)
        for label in ('a "b"', "c\\d", "e\nf", "é", "{}", " ", "g")
    )
    with running(write_bundle(tmp_path / "odd", classes=classes)) as client:
        for info in classes:
            name = "taillift_class_predictions_total"
            assert sample(client, name, class_=info.label, group="few") == 0
