"""The monitor in a running service, for classes whose images come and for one that is lost."""

import shutil
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from threading import current_thread
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from taillift.models.bundle.folder import read_manifest, upgrade
from taillift.models.bundle.manifest import ClassInfo
from taillift.models.errors import UserError
from taillift.service.inference.engine import Engine
from taillift.service.monitoring.store import Store
from taillift.service.serve_cli import app
from taillift.service.settings import read_settings
from taillift.service.tail.distributions import binomial_interval
from taillift.service.tail.snapshot import Array
from tests.support import palette
from tests.support.palette import CLASSES, make_first_schema, new_photo, photo, write_bundle
from tests.support.serving import form, process, running, sample, scrape, until

BATCH = 60
LOST = "black"
REST = [label for label in CLASSES if label != LOST]
PHOTOS = {label: photo(colour) for label, (colour, _) in CLASSES.items()}


def send(client: httpx.Client, labels: list[str]) -> None:
    """Classify one photo per label, in order."""
    for start in range(0, len(labels), BATCH):
        batch = labels[start : start + BATCH]
        files = form(*[("x", new_photo(CLASSES[label][0])) for label in batch])
        client.post("/classify", params={"ensemble": "off"}, files=files).raise_for_status()


@pytest.fixture(scope="module")
def lost(known: Path) -> Iterator[httpx.Client]:
    """A service that has classified all classes equally often, except one that never came."""
    with running(known, reference="uniform") as client:
        send(client, REST * 300)
        yield client


@pytest.mark.parametrize(
    ("part", "name", "labels", "wanted"),
    [
        ("counts", "class_predictions_total", {"class_": "white", "group": "few"}, 300),
        ("counts", "window_predictions", {}, 1_800),
        ("ratios", "class_observed_ratio", {"class_": "white", "group": "few"}, 7 / 6),
        ("ratios", "class_observed_ratio", {"class_": LOST, "group": "few"}, 0),
        ("ratios", "observed_ratio", {"group": "few"}, 7 / 12),
        ("silence", "silent_classes", {"group": "few"}, 1),
        ("silence", "class_silent", {"class_": LOST, "group": "few"}, 1),
        ("drift", "drifting_classes", {"group": "few"}, 1),
        ("drift", "drifting_classes", {"group": "many"}, 0),
        ("confidence", "confidence_quantile", {"group": "few", "quantile": "0.5"}, 0.99),
    ],
)
def test_a_scrape_shows_the_lost_class(
    lost: httpx.Client, part: str, name: str, labels: dict[str, str], wanted: float
) -> None:
    assert sample(lost, f"taillift_{name}", **labels) == pytest.approx(wanted, rel=0.01), part


def test_only_classes_that_were_found_have_series_of_drift_and_silence(lost: httpx.Client) -> None:
    found = {
        name: dict(labels)
        for name, labels in scrape(lost)
        if name in {"taillift_class_drift", "taillift_class_silent"}
    }
    assert found == {
        "taillift_class_drift": {"class": LOST, "group": "few", "direction": "fewer"},
        "taillift_class_silent": {"class": LOST, "group": "few"},
    }
    # With 7 classes, a class is found at an e-value of 7 / 0.03.
    drift = sample(lost, "taillift_class_drift", class_=LOST, group="few", direction="fewer")
    assert 2.3 < drift < 5


def test_the_prevalence_of_a_group_has_an_interval_around_the_true_share(
    lost: httpx.Client,
) -> None:
    low, middle, high = (
        sample(lost, "taillift_prevalence", group="few", bound=bound)
        for bound in ("low", "estimate", "high")
    )
    assert low < 1 / 6 < high
    assert middle == pytest.approx(1 / 6, abs=0.02)
    assert high - low < 0.15


def test_the_number_of_series_is_bounded_for_any_requests(known: Path) -> None:
    with running(known, reference="uniform") as client:
        before = set(scrape(client))
        send(client, REST * 10)
        client.post("/classify?top_k=7&prior=nobody", content=PHOTOS["red"])
        client.get("/classes/nobody")
        new = {(name, labels) for name, labels in set(scrape(client)) - before}
    # Those without a value before the first prediction, and those of classes that were found.
    assert {name for name, _ in new} <= {
        "taillift_observed_ratio",
        "taillift_class_observed_ratio",
        "taillift_confidence_quantile",
        "taillift_class_drift",
        "taillift_class_silent",
        "taillift_group_drift",
    }
    assert len(new) < 4 * len(CLASSES)


def test_get_classes_lists_every_class(lost: httpx.Client) -> None:
    answer = lost.get("/classes").json()
    classes = {info["label"]: info for info in answer["classes"]}
    assert list(classes) == list(CLASSES)
    black, white = classes[LOST]["live"], classes["white"]["live"]
    assert (classes[LOST]["count"], classes[LOST]["group"]) == (5, "few")
    assert classes[LOST]["accuracy"] == {"single": 90.0, "full": 100.0}
    assert (black["silent"], black["drifting"], black["direction"]) == (True, True, "fewer")
    assert black["predicted"] == 0
    assert black["expected"] == pytest.approx(1_800 / 7, rel=0.01)
    # Clopper and Pearson: (1 - share) ** 1,800 = 0.025.
    assert (black["low"], black["high"]) == (0, pytest.approx(1_800 * (1 - 0.025 ** (1 / 1_800))))
    assert black["last_seen"] is black["confidence"] is None
    assert (white["silent"], white["drifting"], white["direction"]) == (False, False, None)
    assert white["low"] < white["predicted"] == 300 < white["high"]
    assert white["share"] == pytest.approx(1 / 6, rel=1e-5)
    assert white["confidence"]["median"] == pytest.approx(0.99)
    assert abs(datetime.fromisoformat(white["last_seen"]).timestamp() - time.time()) < 600


def test_get_classes_shows_the_groups_and_the_window(lost: httpx.Client) -> None:
    answer = lost.get("/classes").json()
    few, many = answer["groups"]["few"], answer["groups"]["many"]
    assert (few["predicted"], few["classes"], few["silent"], few["drifting"]) == (300, 2, 1, 1)
    assert (many["predicted"], many["silent"], many["drifting"]) == (900, 0, 0)
    assert few["expected_share"] == pytest.approx(2 / 7, rel=0.01)
    assert few["prevalence"]["low"] < 1 / 6 < few["prevalence"]["high"]
    window = answer["window"]
    assert (window["seconds"], window["predictions"]) == (7 * 24 * 3600, 1_800)
    assert window["reference"] == "uniform"
    since = datetime.fromisoformat(window["since"]).timestamp()
    assert 0 <= time.time() - since < 600, "the time of the first prediction, not the window's"


@pytest.mark.parametrize("path", ["/classes", f"/classes/{LOST}", "/classes/red"])
def test_the_intervals_of_shares_are_not_computed_by_the_event_loop(
    lost: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """They take milliseconds, and anybody can ask for them."""
    threads: list[str] = []

    def noted(*arguments: Any) -> Any:
        threads.append(current_thread().name)
        return binomial_interval(*arguments)

    monkeypatch.setattr("taillift.service.tail.state.binomial_interval", noted)
    assert lost.get(path).is_success
    assert threads
    assert all(name.startswith(("asyncio_", "uvloop_")) for name in threads), threads


def test_get_one_class_shows_the_same_and_how_soon_a_change_would_be_found(
    lost: httpx.Client,
) -> None:
    listed = {info["label"]: info for info in lost.get("/classes").json()["classes"]}
    shown = lost.get(f"/classes/{LOST}").json()
    assert shown["live"].keys() == listed[LOST]["live"].keys()
    assert shown["live"] == pytest.approx(listed[LOST]["live"])
    details = shown["details"]
    assert details["verdict"] == "silent"
    assert 0 <= details["chance"] < 1e-9
    assert details["silence_evidence"] > 1.8
    assert 0 < details["silence_delay"] < details["doubling_delay"] < 10_000
    red = lost.get("/classes/red").json()["details"]
    assert red["verdict"] == "as expected"
    assert red["silence_delay"] is red["silence_evidence"] is None


def test_an_unknown_class_gives_404_and_the_nearest_label(lost: httpx.Client) -> None:
    response = lost.get("/classes/blak")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "urn:taillift:problem:unknown-class"
    assert response.json()["detail"] == "unknown class `blak`: did you mean `black`?"
    assert "GET /classes lists them" in lost.get("/classes/%25%2F").json()["detail"]


def test_a_class_with_any_label_can_be_requested(tmp_path: Path) -> None:
    labels = ("a/b", "é ?", "#", "c\\d", "%2F", "e&f", "g")
    classes = tuple(
        ClassInfo(label=label, prompt=label, count=1, group="few", prior=1 / 7) for label in labels
    )
    with running(write_bundle(tmp_path / "odd", classes=classes)) as client:
        for label in labels:
            assert client.get(f"/classes/{quote(label)}").json()["label"] == label


def test_a_class_can_be_requested_in_both_unicode_forms(tmp_path: Path) -> None:
    labels = ("caf\u00e9", "nai\u0308ve", "\u212b", "d", "e", "f", "g")
    others = ("cafe\u0301", "na\u00efve", "\u00c5")
    classes = tuple(
        ClassInfo(label=label, prompt=label, count=1, group="few", prior=1 / 7) for label in labels
    )
    with running(write_bundle(tmp_path / "accents", classes=classes)) as client:
        for label, other in zip(labels[:3], others, strict=True):
            assert client.get(f"/classes/{quote(other)}").json()["label"] == label
            query = f"/confidence?classes={quote(other)}"
            answer = client.post(query, content=photo((9, 9, 9))).json()
            assert [one["label"] for one in answer["results"][0]["classes"]] == [label]


def test_predictions_count_under_the_uniform_prior_for_any_requested_prior(bundle: Path) -> None:
    with running(bundle) as client:
        # A colour between black and red, nearer to black; red has 60 times the training images.
        body = photo((117, 0, 0))
        for prior, label in (("uniform", "black"), ("train", "red")):
            query = {"prior": prior, "ensemble": "off"}
            answer = client.post("/classify", params=query, content=body).json()
            assert answer["results"][0]["predictions"][0]["label"] == label
        counter = "taillift_class_predictions_total"
        assert sample(client, counter, class_="black", group="few") == 2
        assert sample(client, counter, class_="red", group="many") == 0


def test_a_restart_loses_nothing(known: Path, tmp_path: Path) -> None:
    flags = ["--reference", "uniform", "--tail-file", str(tmp_path / "tail.sqlite")]
    with process(known, *flags) as (server, client):
        send(client, REST * 300)
        before = client.get("/classes").json()
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0
    with process(known, *flags) as (_, client):
        assert client.get("/classes").json() == before
        assert sample(client, "taillift_class_silent", class_=LOST, group="few") == 1
        # Prometheus expects counters to start at 0 again.
        assert sample(client, "taillift_predictions_total", group="few") == 0
    assert before["window"]["predictions"] == 1_800


def test_another_bundle_version_begins_anew(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tail.sqlite"
    with running(known, tail_file=file) as client:
        send(client, ["red"])
    monkeypatch.setattr(palette, "SHARPNESS", 21.0)
    other = write_bundle(tmp_path / "other")
    with running(other, tail_file=file) as client:
        assert client.get("/classes").json()["window"]["predictions"] == 0


@pytest.mark.parametrize("text", ["", "true,predicted,photos\nred,red,1\n"])
def test_confusions_that_were_changed_are_refused_before_they_are_read(
    known: Path, tmp_path: Path, text: str
) -> None:
    bundle = shutil.copytree(known, tmp_path / "bundle")
    (bundle / "report" / "confusion.csv").write_text(text)
    with pytest.raises(UserError, match=r"confusion\.csv is not the file that the manifest lists"):
        Engine(read_settings(bundle=bundle))


def test_confusions_that_nobody_lists_are_not_used(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied = shutil.copytree(bundle, tmp_path / "bundle")
    (copied / "report").mkdir()
    (copied / "report" / "confusion.csv").write_text("not a table")
    engine = Engine(read_settings(bundle=copied))
    assert not engine.bundle.monitoring.monitor.profile.pairs
    (line,) = [line for line in caplog.messages if "confusion.csv" in line]
    assert line.endswith("is not used, because the manifest does not list it")


def test_an_upgrade_of_the_bundle_goes_on_counting(
    known: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, file = shutil.copytree(known, tmp_path / "bundle"), tmp_path / "tail.sqlite"
    version = make_first_schema(bundle).version
    with running(bundle, tail_file=file) as client:
        send(client, ["red", "blue"])
    assert upgrade(bundle).version != version
    with running(bundle, tail_file=file) as client:
        assert sample(client, "taillift_window_predictions") == 2
        send(client, ["red"])
    assert f"the tail goes on from what was counted for the same files as version {version}" in (
        caplog.messages
    )
    with running(bundle, tail_file=file) as client:
        assert sample(client, "taillift_window_predictions") == 3


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tail is saved every 20 milliseconds."""
    monkeypatch.setattr("taillift.service.monitoring.recorder.SAVE_SECONDS", 0.02)


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("after", ["removed", "moved", "folder removed"])
def test_a_tail_file_that_is_gone_is_written_again(known: Path, tmp_path: Path, after: str) -> None:
    file = tmp_path / "tail" / "tail.sqlite"
    with running(known, tail_file=file) as client:
        send(client, ["red"] * 3)
        match after:
            case "removed":
                file.unlink()
            case "moved":
                file.rename(tmp_path / "elsewhere")
            case _:
                shutil.rmtree(file.parent)
        until(file.exists)
        assert sample(client, "taillift_tail_save_failures_total") == 0
    with running(known, tail_file=file) as client:
        assert sample(client, "taillift_window_predictions") == 3


@pytest.mark.usefixtures("quickly")
def test_saves_that_fail_are_counted_and_told_once(
    known: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tail" / "tail.sqlite"
    with running(known, tail_file=file) as client:
        send(client, ["red"])
        shutil.rmtree(file.parent)
        file.parent.write_text("in the way")
        until(lambda: sample(client, "taillift_tail_save_failures_total") > 2)
        send(client, ["red"])
        file.parent.unlink()
        until(file.exists)
    told = [line for line in caplog.messages if "the tail's statistics are" in line]
    assert ["not saved" in line for line in told] == [True, False]
    with running(known, tail_file=file) as client:
        assert sample(client, "taillift_window_predictions") == 2


@pytest.mark.usefixtures("quickly")
def test_a_file_that_is_removed_before_anything_was_counted_is_read_again(
    known: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tail.sqlite"
    with running(known, tail_file=file):
        file.unlink()
        until(file.exists)
    with running(known, tail_file=file) as client:
        assert sample(client, "taillift_window_predictions") == 0


def saved_arrays(known: Path, file: Path) -> dict[str, Array]:
    """Count some predictions, and return what the file holds then."""
    with running(known, tail_file=file) as client:
        send(client, ["red", "blue", "black"] * 5)
    with Store(file) as store:
        return store.load(read_manifest(known).version)


NAMES = [
    "judged by",
    "last seen",
    "sightings/digests",
    "sightings/next",
    "predictions",
    "held",
    "dependence/labels",
    "dependence/sums",
    "drift/wealth",
    "group drift/predictions",
    "silence/wealth",
    "drift/band",
    "group drift/learned",
]


def test_a_damaged_array_is_one_line_at_the_start(known: Path, tmp_path: Path) -> None:
    arrays = saved_arrays(known, tmp_path / "tail.sqlite")
    assert set(NAMES) < set(arrays)
    (window,) = [name for name in arrays if name.startswith("window/")]
    longer = {name: np.concatenate([arrays[name].reshape(1, -1)] * 2) for name in NAMES}
    unlike = {name: arrays[name].astype(np.complex128) for name in (*NAMES, window)}
    damages: list[tuple[dict[str, Array], str]] = [
        *(({name: arrays[name] for name in arrays if name != gone}, gone) for gone in NAMES),
        *((arrays | {name: array}, name) for name, array in longer.items()),
        *((arrays | {name: array}, name) for name, array in unlike.items()),
        (arrays | {window: arrays[window][:-1]}, window),
        (arrays | {"held": np.array([99])}, "held"),
        (arrays | {"dependence/labels": np.array([-1])}, "dependence/labels"),
        (arrays | {"drift/wealth": arrays["drift/wealth"] * np.nan}, "drift/wealth"),
    ]
    for number, (damaged, name) in enumerate(damages):
        file = tmp_path / f"{number}.sqlite"
        with Store(file) as store:
            store.save(read_manifest(known).version, damaged)
        with pytest.raises(UserError, match=f"is damaged .*{name!r}.*: move it away") as caught:
            Engine(read_settings(bundle=known, tail_file=file))
        assert "\n" not in str(caught.value)


def test_a_file_of_the_first_version_is_read(known: Path, tmp_path: Path) -> None:
    arrays = saved_arrays(known, tmp_path / "tail.sqlite")
    later = ("sightings/", "held", "predictions", "began", "dependence/")
    old = {name: array for name, array in arrays.items() if not name.startswith(later)}
    with Store(tmp_path / "old.sqlite") as store:
        store.save(read_manifest(known).version, old)
    with running(known, tail_file=tmp_path / "old.sqlite") as client:
        assert sample(client, "taillift_window_predictions") == 15


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tail-file", "{damaged}"], ["damaged.sqlite", "is damaged", "move it away"]),
        (["--reference", "measured"], ["no held-out photos"]),
        (["--reference", "{missing}"], ["missing.csv", "No such file"]),
        (["--tail-level", "1.5"], ["tail_level", "less than 1"]),
        (["--tail-level", "1e-300"], ["tail_level", "greater than or equal to 0.000001"]),
        (["--tail-level", "5e-324"], ["tail_level", "greater than or equal to 0.000001"]),
        (["--tail-level", "-1"], ["tail_level", "greater than or equal to 0.000001"]),
        (["--tail-level", "nan"], ["tail_level", "finite number"]),
        (["--tail-window-seconds", "inf"], ["tail_window_seconds", "finite number"]),
    ],
)
def test_a_bad_setting_of_the_monitor_is_one_line_at_the_start(
    bundle: Path, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 20)
    paths = {"damaged": damaged, "missing": tmp_path / "missing.csv"}
    given = [flag.format(**paths) for flag in flags]
    error = CliRunner().invoke(app, ["serve", str(bundle), *given]).exception
    assert isinstance(error, UserError)
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


def test_the_reference_of_the_operator_is_used(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    weights = {label: 93 if label == "red" else 1 for label in CLASSES}
    rows = [f"{label},{weight}" for label, weight in weights.items()]
    file.write_text("\n".join(["class,weight", *rows]))
    with running(bundle, reference=str(file)) as client:
        assert client.get("/classes").json()["window"]["reference"] == "own"
        assert sample(client, "taillift_expected_rate", group="many") > 0.7


def test_openapi_describes_both_endpoints(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "200" in paths["/classes"]["get"]["responses"]
    one_class = next(path for name, path in paths.items() if name.startswith("/classes/"))
    assert {"200", "404"} <= set(one_class["get"]["responses"])


def window_predictions(client: httpx.Client) -> int:
    predictions: int = client.get("/classes").json()["window"]["predictions"]
    return predictions


def omissions(client: httpx.Client, reason: str) -> float:
    return sample(client, "taillift_tail_omissions_total", reason=reason)


def test_identical_photos_are_answered_and_count_once(known: Path) -> None:
    with running(known, reference="uniform") as client:
        for name in ("a", "b"):
            files = form((name, PHOTOS["red"]), (name, PHOTOS["red"]), (name, PHOTOS["white"]))
            results = client.post("/classify", files=files).json()["results"]
            assert [len(one["predictions"]) for one in results] == [5, 5, 5]
        assert window_predictions(client) == 2
        assert omissions(client, "repeated") == 4
        assert sample(client, "taillift_predictions_total", group="few") == 2


def test_photos_of_one_group_count_once(known: Path) -> None:
    shots = [photo((250 - number, 0, 0)) for number in range(4)]
    with running(known, reference="uniform") as client:
        for shot, group in zip(shots, ["shoe", "shoe", "hat", ""], strict=True):
            client.post("/classify", content=shot, headers={"X-Taillift-Group": group})
        assert window_predictions(client) == 3
        # A shot that did not count is known all the same.
        client.post("/classify", content=shots[1])
        assert window_predictions(client) == 3


def test_a_probe_is_answered_and_left_out(known: Path) -> None:
    with running(known, reference="uniform") as client:
        headers = {"X-Taillift-Count": "no"}
        answer = client.post("/classify", content=PHOTOS["red"], headers=headers)
        assert answer.json()["results"][0]["predictions"][0]["label"] == "red"
        assert window_predictions(client) == 0
        assert omissions(client, "asked") == 1
        assert sample(client, "taillift_predictions_total", group="many") == 0
        # It was not seen either: the same photo counts if another client sends it.
        client.post("/classify", content=PHOTOS["red"])
        assert window_predictions(client) == 1
        wrong = client.post("/classify", content=PHOTOS["red"], headers={"X-Taillift-Count": "1"})
        assert wrong.status_code in (400, 422)
