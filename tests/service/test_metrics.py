"""What a scrape shows of the rare classes, from the first one on."""

from pathlib import Path

import httpx
import pytest
from palette import CLASSES, photo, write_bundle
from serving import form, running, sample, scrape

from models.bundle.ensemble import Ensemble
from models.bundle.manifest import ClassInfo
from service.errors import LATE, REASONS
from service.metrics import MAX_CLASSES, STAGES, by_class


def test_everything_is_there_at_zero_before_the_first_request(bundle: Path) -> None:
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
        client.post("/classify", files=files)
        client.post("/confidence", content=photo((0, 0, 0)))
        count = "taillift_class_predictions_total"
        assert sample(client, count, class_="black", group="few") == 1
        assert sample(client, count, class_="green", group="many") == 0
        assert sample(client, "taillift_predictions_total", group="few") == 2
        assert sample(client, "taillift_predictions_total", group="many") == 1
        assert sample(client, "taillift_confidence_count", group="few") == 2
        assert sample(client, "taillift_views_used_sum", ensemble="full") == 20
        assert sample(client, "taillift_views_used_count", ensemble="full") == 4


def test_expected_rates_are_given_under_both_references(bundle: Path) -> None:
    total = sum(count for _, count in CLASSES.values())
    with running(bundle) as client:
        rate = "taillift_class_expected_rate"
        black = {"class_": "black", "group": "few"}
        assert sample(client, rate, **black, reference="uniform") == pytest.approx(1 / 7)
        assert sample(client, rate, **black, reference="train") == pytest.approx(5 / total)
        few = sample(client, "taillift_expected_rate", group="few", reference="train")
        assert few == pytest.approx(17 / total)


def test_each_stage_is_timed(bundle: Path) -> None:
    with running(bundle) as client:
        client.post("/classify", files=form(("a", photo((0, 0, 0))), ("b", photo((0, 0, 0)))))
        counts = {
            stage: sample(client, "taillift_stage_seconds_count", stage=stage) for stage in STAGES
        }
    assert (counts["read"], counts["post"]) == (1, 1)
    assert (counts["decode"], counts["queue"]) == (2, 2)
    assert 1 <= counts["infer"] <= 2


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


def test_a_scrape_has_the_content_type_that_was_asked_for(client: httpx.Client) -> None:
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    response = client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("setting", "classes", "wanted"),
    [
        ("auto", MAX_CLASSES, True),
        ("auto", MAX_CLASSES + 1, False),
        ("on", MAX_CLASSES + 1, True),
        ("off", 2, False),
    ],
)
def test_classes_have_series_up_to_a_limit(setting: str, classes: int, wanted: bool) -> None:
    assert by_class(setting, classes) is wanted


def test_without_series_by_class_the_groups_remain(bundle: Path) -> None:
    with running(bundle, class_metrics="off") as client:
        client.post("/classify", content=photo((0, 0, 0)))
        assert not [name for name, _ in scrape(client) if name.startswith("taillift_class")]
        assert sample(client, "taillift_predictions_total", group="few") == 1


def test_a_label_of_any_text_is_a_label(tmp_path: Path) -> None:
    classes = tuple(
        ClassInfo(label=label, prompt=label, count=1, group="few", prior=1 / 7)
        for label in ('a "b"', "c\\d", "e\nf", "é", "{}", " ", "g")
    )
    with running(write_bundle(tmp_path / "odd", classes=classes)) as client:
        for info in classes:
            name = "taillift_class_predictions_total"
            assert sample(client, name, class_=info.label, group="few") == 0
