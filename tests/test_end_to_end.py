"""The demo bundle, served over HTTP, against the same model in torch, on every test photo."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from taillift.models.bundle.ensemble import Ensemble, mean_over_views
from taillift.models.bundle.folder import DELTA, MODEL, read_manifest
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import Precision
from taillift.models.bundle.session import Session
from taillift.models.bundle.temperature import Temperatures
from taillift.training.data.dataset import Dataset, load_dataset
from taillift.training.evaluation import view_logits
from taillift.training.fit.checkpoint import restore
from taillift.training.fit.inputs import centre_photos, evaluation_photos
from taillift.training.train_cli import keep_freed_memory
from tests.support.serving import form, running

DEMO = Path(__file__).parents[1] / "docker" / "demo-bundle.tar.gz"
PHOTOS_A_REQUEST = 16
# All five views of a photo go through the same graph, so torch sees those of every tenth photo,
# two of each class, and the centre view of all.
TENTH = 10
# Some 3,000 views over HTTP and 500 in torch: a minute and a half on a quiet core.
pytestmark = pytest.mark.timeout(900)

# Confidences [N, C] and views taken [N].
Answers = dict[Ensemble, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "demo"
    with tarfile.open(DEMO) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def wardrobe() -> Dataset:
    return load_dataset("wardrobe-lt")


@pytest.fixture(scope="module")
def client(demo: Path) -> Iterator[httpx.Client]:
    with running(demo) as client:
        yield client


@pytest.fixture(scope="module")
def answers(client: httpx.Client, wardrobe: Dataset) -> Answers:
    """The answers of HTTP to every test photo, by ensemble, under the uniform prior."""
    assert wardrobe.test is not None
    photos = wardrobe.test.photos
    every = {}
    for ensemble in Ensemble:
        rows, views = [], []
        for start in range(0, len(photos), PHOTOS_A_REQUEST):
            chunk = photos[start : start + PHOTOS_A_REQUEST]
            files = form(*((photo.name, photo.read()) for photo in chunk))
            answer = client.post("/confidence", params={"ensemble": ensemble}, files=files)
            assert answer.status_code == 200, answer.text
            for photo, result in zip(chunk, answer.json()["results"], strict=True):
                assert result["filename"] == photo.name
                rows.append([one["confidence"] for one in result["classes"]])
                views.append(result["views"])
        every[ensemble] = np.array(rows), np.array(views)
    return every


@pytest.fixture(scope="module")
def served(answers: Answers) -> np.ndarray:
    """Confidences [N, C] with five views."""
    return answers[Ensemble.FULL][0]


@pytest.fixture(scope="module")
def in_torch(demo: Path, wardrobe: Dataset) -> dict[Ensemble, np.ndarray]:
    """The same from the unmerged model in torch, calibrated as the manifest says.

    With the centre view, of every photo; with five views, of every tenth.
    """
    keep_freed_memory()  # As `taillift export` does: it takes half as long.
    model, facts = restore(demo / DELTA)
    assert wardrobe.test is not None
    some = wardrobe.test.only(range(0, len(wardrobe.test), TENTH))
    device = torch.device("cpu")
    one = view_logits(model, centre_photos(wardrobe.test, facts.preprocessing), device)
    five = view_logits(model, evaluation_photos(some, facts.preprocessing), device)
    manifest = read_manifest(demo)
    calibration = manifest.variants[Precision.FP32].calibration
    assert calibration is not None

    def confidences(logits: np.ndarray, temperatures: Temperatures) -> np.ndarray:
        mean = mean_over_views(logits.reshape(-1, logits.shape[-1]), logits.shape[1])
        best = [manifest.classes[index].group for index in mean.argmax(-1)]
        divisors = torch.tensor([[temperatures.groups[group]] for group in best])
        return (torch.from_numpy(mean) / divisors).softmax(-1).numpy()

    return {
        Ensemble.OFF: confidences(one, calibration.off),
        Ensemble.FULL: confidences(five, calibration.full),
    }


@pytest.mark.parametrize(
    ("ensemble", "step", "photos"), [(Ensemble.OFF, 1, 332), (Ensemble.FULL, TENTH, 34)]
)
def test_http_gives_torchs_label_and_confidence(
    answers: Answers,
    in_torch: dict[Ensemble, np.ndarray],
    ensemble: Ensemble,
    step: int,
    photos: int,
) -> None:
    served, expected = answers[ensemble][0][::step], in_torch[ensemble]
    assert served.shape == expected.shape == (photos, 17)
    assert (served.argmax(-1) == expected.argmax(-1)).all()
    assert np.abs(served - expected).max() < 1e-3


@pytest.mark.parametrize("batch", [1, 2, 5, 32])
def test_the_graph_takes_any_batch(demo: Path, batch: int) -> None:
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    outputs = Session(demo / MODEL).run(pixels)
    model, _ = restore(demo / DELTA)
    with torch.no_grad():
        logits, _ = model.eval()(torch.from_numpy(pixels))
    assert outputs.logits.shape == (batch, 17)
    assert np.abs(outputs.logits - logits.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "ensemble"),
    [("single", Ensemble.OFF), ("full", Ensemble.FULL), ("adaptive", Ensemble.ADAPTIVE)],
)
def test_the_report_holds_the_accuracy_that_is_served(
    demo: Path, answers: Answers, wardrobe: Dataset, name: str, ensemble: Ensemble
) -> None:
    assert wardrobe.test is not None
    metrics = json.loads((demo / "report/metrics.json").read_text())["fp32"]
    confidences, views = answers[ensemble]
    labels = np.array(wardrobe.test.labels)
    right = confidences.argmax(-1) == labels
    assert metrics[name]["overall"] == pytest.approx(100 * right.mean())
    rates = [right[labels == label].mean() for label in range(17)]
    assert metrics[name]["mean_class"] == pytest.approx(100 * np.mean(rates))
    assert metrics[name]["few"] == pytest.approx(100 * np.mean(rates[-6:]))
    most = {"single": 1, "full": VIEWS, "adaptive": metrics["adaptive_views"]}
    assert views.mean() == pytest.approx(most[name])


def test_the_demo_bundle_keeps_what_the_readme_promises(demo: Path) -> None:
    evaluation = read_manifest(demo).variants[Precision.FP32].evaluation
    assert evaluation is not None
    assert evaluation.full.mean_class >= 60
    assert evaluation.full.few is not None
    assert evaluation.full.few >= 45


def test_the_demo_bundle_is_of_the_embedded_backbone_and_the_sample_photos(
    demo: Path, wardrobe: Dataset
) -> None:
    manifest = read_manifest(demo)
    assert manifest.labels == list(wardrobe.classes)
    assert manifest.counts == wardrobe.counts
    assert manifest.method.name == "lift"


def test_classify_names_the_surest_class_of_each_photo(
    client: httpx.Client, served: np.ndarray, wardrobe: Dataset
) -> None:
    assert wardrobe.test is not None
    photo = wardrobe.test.photos[0]
    headers = {"content-type": "image/jpeg"}
    answer = client.post(
        "/classify?ensemble=full&top_k=2", content=photo.read(), headers=headers
    ).json()
    (result,) = answer["results"]
    order = np.argsort(-served[0])[:2]
    assert [one["label"] for one in result["predictions"]] == [
        wardrobe.classes[index] for index in order
    ]
    assert result["predictions"][0]["confidence"] == pytest.approx(served[0].max(), abs=1e-5)
