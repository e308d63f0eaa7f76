"""Frozen features from the cache are, to the bit, those that would be computed, or not used."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from taillift.models.bundle.schema import Preprocessing
from taillift.models.lift.backbone import Backbone, load_backbone
from taillift.training.data.dataset import Dataset, Split
from taillift.training.data.photo import StoredPhoto
from taillift.training.fit import frozen_features
from taillift.training.fit.build import build_model, preprocessing_for
from taillift.training.fit.frozen_features import FEW_ROWS, FrozenStages
from taillift.training.fit.inputs import Batch, Photos, Pick, training_photos
from taillift.training.recipe.recipe import Augmentation, Recipe
from taillift.training.train import Run, Trainer
from tests.support.tiny import write_photo
from tests.support.trainings import interrupt

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
HEAD = Recipe(name="head", epochs=3, precision="fp32")
LIFT = Recipe.model_validate(
    {
        "name": "lift",
        "tuners": [{"name": "adaptformer", "rank": 1}],
        "epochs": 3,
        "precision": "fp32",
    }
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache; the embedding of any tower is worth keeping there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TAILLIFT_CACHE_GIB")
    monkeypatch.setattr(frozen_features, "WORTHWHILE", 0.0)
    return tmp_path / "taillift/features"


@pytest.fixture
def cropped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The photos whose rows were made from pixels, in order."""
    photos: list[int] = []
    batches = Photos.batches

    def counted(self: Photos, order: Sequence[Pick], size: int) -> Iterator[Batch]:
        photos.extend(photo for photo, _ in order)
        return batches(self, order, size)

    monkeypatch.setattr(Photos, "batches", counted)
    return photos


@pytest.fixture(scope="module")
def backbone(tiny_backbone: str) -> Backbone:
    return load_backbone(tiny_backbone)


def weights(run: Run) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in run.model.trained().values()])


def results(dataset: Dataset, backbone: Backbone, *recipes: Recipe) -> list[Tensor]:
    """Return the trained weights and the logits on test/ of each recipe, from one trainer."""
    trainer = Trainer(dataset, backbone, CPU)
    found = []
    for recipe in recipes:
        run = trainer.train(recipe)
        assert dataset.test is not None
        logits = torch.from_numpy(trainer.view_logits(run, dataset.test)).flatten()
        found.append(torch.cat([weights(run), logits]))
    return found


def test_runs_with_a_cold_a_warm_and_no_cache_are_the_same_to_the_bit(
    colours: Dataset,
    backbone: Backbone,
    cropped: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    cache: Path,
) -> None:
    """And so are those that share a trainer, in any order, and those that do not."""
    cold = results(colours, backbone, HEAD, LIFT)
    crops = len(cropped) - 6
    assert crops == 3 * len(colours.train), "what lies behind further stages comes from these"
    lines = capfd.readouterr().err.splitlines()
    kept = f"Frozen features are kept in {cache} (at most 8 GiB; TAILLIFT_CACHE_GIB=0 turns it off)"
    assert lines.count(kept) == 1
    told = f"Running the frozen stages on crops: {crops:,} of {crops:,} come from the cache"
    assert lines.count(told) == 1, "LIFT takes those of the head alone"
    cropped.clear()
    warm = results(colours, backbone, LIFT) + results(colours, backbone, HEAD)
    assert not cropped
    assert capfd.readouterr().err.splitlines().count(told) == 2
    monkeypatch.setenv("TAILLIFT_CACHE_GIB", "0")
    alone = results(colours, backbone, HEAD) + results(colours, backbone, LIFT)
    assert len(cropped) == 2 * (crops + 6)
    assert "cache" not in capfd.readouterr().err
    for first, second, third in zip(cold, reversed(warm), alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_a_run_that_was_interrupted_ends_the_same_whatever_the_cache_holds(
    colours: Dataset, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(Trainer(colours, backbone, CPU).train(LIFT))
    state = tmp_path / "lift.resume"
    for first, then in (("0", "8"), ("8", "0")):
        monkeypatch.setenv("TAILLIFT_CACHE_GIB", first)
        interrupt(Trainer(colours, backbone, CPU), LIFT, state, 2)
        monkeypatch.setenv("TAILLIFT_CACHE_GIB", then)
        assert torch.equal(weights(Trainer(colours, backbone, CPU).train(LIFT, state)), whole)
        state.unlink()


def test_a_longer_training_takes_the_crops_that_a_shorter_one_has_made(
    colours: Dataset, backbone: Backbone, cropped: list[int]
) -> None:
    """In three epochs a blue photo has three crops, in five it has five; others have two."""
    few = Augmentation(crops=25)
    three, five = (
        HEAD.model_copy(update={"augmentation": few, "epochs": epochs}) for epochs in (3, 5)
    )
    results(colours, backbone, three)
    cropped.clear()
    results(colours, backbone, five)
    blue = colours.classes.index("blue")
    assert {colours.train.labels[photo] for photo in cropped} == {blue}
    assert len(cropped) == 2 * colours.counts[blue]


def test_damaged_features_are_computed_again(
    colours: Dataset, backbone: Backbone, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cold = results(colours, backbone, LIFT)
    files = sorted(cache.glob("*.safetensors"))
    for path in files:
        damaged = bytearray(path.read_bytes())
        damaged[-3] ^= 64
        path.write_bytes(damaged)
    again = results(colours, backbone, LIFT)
    assert torch.equal(cold[0], again[0])
    assert len(caplog.messages) == len(files)


def crops_of(split: Split, preprocessing: Preprocessing, **changes: Any) -> Photos:
    settings: dict[str, Any] = {"augmentation": Augmentation(), "epochs": 5, "seed": 0} | changes
    return training_photos(split, preprocessing, **settings)


def test_the_key_changes_with_all_that_changes_a_crop_and_with_nothing_else(
    colours: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    split, usual = colours.train, preprocessing_for(backbone.image)
    path = tmp_path / "other.png"
    write_photo(path, (9, 9, 9))
    stored = [photo for photo in split.photos if isinstance(photo, StoredPhoto)]
    other = replace(stored[1], root=path.parent, file=path.name, size=path.stat().st_size)
    others = replace(split, photos=(stored[0], other, *stored[2:]))
    touched = replace(split, photos=tuple(replace(photo, changed=0) for photo in stored))
    order = [(1, 0), (2, 0)]
    growing = Augmentation(name="minimalist")
    found = [
        *(crops_of(split, usual).fingerprint(picks) for picks in (order, order[::-1], order[:1])),
        crops_of(split, usual).fingerprint([(1, 1), (2, 1)]),
        crops_of(others, usual).fingerprint(order),
        *(
            crops_of(split, usual.model_copy(update=change)).fingerprint(order)
            for change in ({"interpolation": "bilinear"}, {"size": 16})
        ),
        *(
            crops_of(split, usual, **change).fingerprint(order)
            for change in (
                {"seed": 1},
                {"augmentation": Augmentation(flip=False)},
                {"augmentation": growing},
                {"augmentation": growing, "epochs": 9},
                {"augmentation": growing.model_copy(update={"schedule": "min"})},
            )
        ),
    ]
    assert None not in found
    assert len(set(found)) == len(found)
    for same in (
        crops_of(split, usual, epochs=9),
        crops_of(split, usual, augmentation=Augmentation(crops=9, copies=2)),
        crops_of(touched, usual),
    ):
        assert same.fingerprint(order) == found[0]


def test_the_key_changes_with_weights_stages_threads_and_versions(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(backbone, HEAD, torch.zeros(3, backbone.tower.width))

    def fingerprint(cuts: list[int], rows: int = FEW_ROWS, name: str = "a") -> str:
        return FrozenStages(CPU, name).fingerprint(model, cuts, rows)

    few = FEW_ROWS - 1
    found = [fingerprint([1]), fingerprint([1, 4]), fingerprint([4]), fingerprint([4], few)]
    found.append(fingerprint([1], name="b"))
    assert fingerprint([1], few) == found[0], "few rows go through the same embedding"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 64)
        found.append(fingerprint([1]))
    for name in ("versions", "machine", "FORMAT"):
        with monkeypatch.context() as patch:
            patch.setattr(frozen_features, name, lambda: {"numpy": "another"})
            found.append(fingerprint([1]))
    monkeypatch.setattr("PIL.features.version", lambda _: "another")
    found.append(fingerprint([1]))
    with torch.no_grad():
        next(model.tower[0].parameters()).view(-1)[0] += 1
    found.append(fingerprint([1]))
    assert len(set(found)) == len(found)
