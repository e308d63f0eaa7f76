"""The loop on photos of wardrobe-lt: predictions, labels, training, a verdict, the next version.

Every part is real: the embedded backbone, a service with a store and a queue of photos to label,
and the commands as a user runs them. The truth comes from training photos that were held back.
"""

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import httpx
import numpy as np
import pytest

from taillift import cli as front_door
from taillift.models.bundle.folder import read_manifest
from taillift.service.feedback.prediction_id import Signer
from taillift.service.inference.engine import Engine
from taillift.service.settings import read_settings
from taillift.training.data.dataset import Dataset, load_dataset
from taillift.training.data.photo import Photo, Split
from tests.support.serving import form, serving, top_labels, until

# Of each class, so many photos are trained on at first. The last three are few-shot classes.
TRAINED = {"t-shirt": 20, "dress": 4, "hat": 3, "shorts": 2}
FEW = ("dress", "hat", "shorts")
# Of each class, so many photos are sent to the service, and so many others measure both versions.
SENT, MEASURED = 7, 5
ADMIN_KEY, SIGNING_KEY = "an-admin-key-of-the-tests", "a-key-that-signs-the-ids"
Run = Callable[..., str]
Photos = list[tuple[str, bytes]]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command of taillift in the test's folder, and return what it prints."""
    monkeypatch.chdir(tmp_path)

    def ran(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["taillift", *map(str, arguments)])
        with pytest.raises(SystemExit) as raised:
            front_door.main()
        printed = capfd.readouterr()
        assert int(raised.value.code or 0) == status, printed.err
        return printed.out if status == 0 else printed.err

    return ran


def photos_of(wardrobe: Dataset, split: Split, label: str) -> list[Photo]:
    index = wardrobe.classes.index(label)
    return [photo for photo, own in zip(split.photos, split.labels, strict=True) if own == index]


def write_set(wardrobe: Dataset, root: Path) -> tuple[Photos, Photos]:
    """Write the set to train on, and return the photos to send and to measure, with their truth."""
    assert wardrobe.test is not None
    to_send: Photos = []
    to_measure: Photos = []
    for label, trained in TRAINED.items():
        known = photos_of(wardrobe, wardrobe.train, label)
        held_out = photos_of(wardrobe, wardrobe.test, label)
        for split, photos in (("train", known[:trained]), ("test", held_out[:1])):
            (root / split / label).mkdir(parents=True)
            for number, photo in enumerate(photos):
                (root / split / label / f"{number}.jpg").write_bytes(photo.read())
        to_send += [(label, photo.read()) for photo in known[trained : trained + SENT]]
        to_measure += [(label, photo.read()) for photo in held_out[1 : 1 + MEASURED]]
    return to_send, to_measure


def train_bundle(run: Run, name: str, *add: str) -> Path:
    """Train a head and export it, quickly: one crop of each photo, one view of each measured."""
    quick = ("--set", "augmentation.copies=1", "--steps", 40, "--out", f"{name}.safetensors")
    run("train", "photos", "--recipe", "head", *quick, *add)
    run("export", f"{name}.safetensors", "photos", "--no-calibration", "--out", name, *add)
    return Path(name)


def answers(client: httpx.Client, photos: Photos, version: str) -> list[str]:
    files = form(*((label, data) for label, data in photos))
    parameters = {"ensemble": "off", "version": version}
    return top_labels(client.post("/classify", params=parameters, files=files))


def rare_recall(truth: Sequence[str], answered: Sequence[str]) -> float:
    """Return the mean share of each few-shot class that was answered rightly, in per cent."""
    right = Counter(label for label, answer in zip(truth, answered, strict=True) if label == answer)
    return float(np.mean([100 * right[label] / MEASURED for label in FEW]))


@contextmanager
def service(folder: Path) -> Iterator[tuple[Engine, httpx.Client]]:
    """Serve the store in a folder, and keep nearly every photo that may be rare for labelling."""
    (folder / "admin.keys").write_text(f"{ADMIN_KEY} ann\n")
    settings = read_settings(
        store=folder / "store",
        port=0,
        admin_keys_file=folder / "admin.keys",
        review_dir=folder / "queue",
        review_per_day=10**6,
        feedback_key=SIGNING_KEY,
        feedback_file=folder / "labels.sqlite",
    )
    engine = Engine(settings)
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        yield engine, client


def label_queue(client: httpx.Client, photos: Photos) -> dict[str, tuple[str, bytes]]:
    """Send photos, label those that the queue keeps, and return these with their truth, by id."""
    sent = {}
    for label, data in photos:
        answer = client.post("/classify", params={"ensemble": "off"}, content=data)
        assert answer.headers["X-Taillift-Version"] == "1"
        sent[answer.json()["results"][0]["id"]] = label, data
    # The ids tell which photos were drawn; another thread writes these to the queue.
    signer = Signer([SIGNING_KEY.encode()])
    drawn = {key: photo for key, photo in sent.items() if signer.read(key).probability}
    assert drawn
    until(lambda: len(client.get("/review", params={"limit": 100}).json()) == len(drawn))
    labels = [{"id": key, "label": label} for key, (label, _) in drawn.items()]
    taken = client.post("/feedback", json={"labels": labels}).json()
    assert taken["accepted"] == len(labels)
    live = client.get("/classes").json()["labelled"]
    assert (live["labels"], live["sampled"]) == (len(labels), len(labels))
    assert client.get("/review").json() == []
    return drawn


def test_photos_that_were_labelled_make_the_next_version(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_send, to_measure = write_set(load_dataset("wardrobe-lt"), tmp_path / "photos")
    # The queue draws at random; which photos it draws must not decide whether this test passes.
    monkeypatch.setattr("taillift.service.review.review_sampler.Random", partial(Random, 0))
    run("models", "add", "store", train_bundle(run, "first"))
    run("models", "promote", "store", 1)
    with service(tmp_path) as (_, client):
        labelled = label_queue(client, to_send)

    # What was labelled is added to the set, once no photo of it is in test/.
    run("review", "export", "labelled", "--review-dir", "queue")
    rows = list(csv.DictReader(Path("labelled/photos.csv").read_text("utf-8").splitlines()))
    assert {row["id"]: row["label"] for row in rows} == {
        key: truth for key, (truth, _) in labelled.items()
    }
    key, (label, data) = next(iter(labelled.items()))
    leak = Path(f"photos/test/{label}/leak.jpg")
    leak.write_bytes(data)
    refused = run("train", "photos", "--recipe", "head", "--add", "labelled", status=1)
    assert f"{key}.jpg is also in test ({leak})" in refused
    leak.unlink()
    second = train_bundle(run, "second", "--add", "labelled")
    added = Counter(row["label"] for row in rows)
    counts = {info.label: info.count for info in read_manifest(second).classes}
    assert counts == {label: count + added[label] for label, count in TRAINED.items()}

    # The next version runs in the shadow, and has its verdict by labels.
    run("models", "add", "store", second)
    run("models", "challenge", "store", 2, "--share", 1, "--few", 1)
    with service(tmp_path) as (engine, client):
        assert client.get("/classes").json()["labelled"]["labels"] == len(labelled)
        until(lambda: engine.challenge is not None)
        before, after = (answers(client, to_measure, role) for role in ("champion", "challenger"))
        admin = {"X-API-Key": ADMIN_KEY}
        until(lambda: client.get("/admin/challenger", headers=admin).json()["agreement"]["images"])
        truth = [label for label, _ in to_measure]
        triples = list(zip(truth, before, after, strict=True))
        table = [",".join(row) for row in (("label", "champion", "challenger"), *triples)]
        Path("verdict.csv").write_text("\n".join(table))
        verdict = json.loads(run("models", "verdict", "store", "verdict.csv", "--json"))
        assert verdict["labels"] == len(truth)
        assert verdict["overall"] == {
            "wins": sum(one != label == other for label, one, other in triples),
            "losses": sum(one == label != other for label, one, other in triples),
        }
        assert verdict["decision"] != "discard"

        # It becomes the champion while the service runs.
        run("models", "promote", "store", 2)
        until(lambda: engine.champion.number == 2)
        assert answers(client, to_measure, "champion") == after
    recalls = rare_recall(truth, before), rare_recall(truth, after)
    print(f"{len(labelled)} labels, rare recall {recalls[0]:.1f} before and {recalls[1]:.1f} after")
