"""Tests of the reader of CIFAR-100's files."""

import io
import logging
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taillift.models.errors import UserError
from taillift.training.data.dataset import Dataset, load_dataset
from taillift.training.data.readers.cifar import read_cifar
from tests.support.cifar_files import class_names, pickled, write_binary, write_python

EACH = [label for label in range(100) for _ in range(3)]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 60,000 black photos, whose classes follow each other in turn."""
    folder = tmp_path_factory.mktemp("full") / "cifar-100-python"
    return write_python(folder, list(range(100)) * 500, list(range(100)) * 100)


@pytest.mark.parametrize(("ratio", "total"), [(10, 19_573), (50, 12_608), (100, 10_847)])
def test_the_long_tails_have_their_published_counts(full: Path, ratio: float, total: int) -> None:
    dataset = load_dataset(str(full), imbalance=ratio)
    assert dataset.name == f"cifar-100-ir{ratio}"
    counts = dict(zip(dataset.classes, dataset.counts, strict=True))
    expected = [int(500 * ratio ** (-label / 99)) for label in range(100)]
    assert [counts[name.decode()] for name in class_names()] == expected
    assert len(dataset.train) == total
    assert dataset.test is not None
    assert len(dataset.test) == 10_000
    assert dataset.names[0] == "class 00"


def test_the_photos_that_stay_are_those_of_the_published_sets(full: Path) -> None:
    """Cao et al. 2019 seed with 0 and shuffle each class's indices, in label order."""
    dataset = load_dataset(str(full), imbalance=100)
    labels = np.array(list(range(100)) * 500)
    random = np.random.RandomState(0)
    expected = set()
    for label in range(100):
        indices = np.where(labels == label)[0]
        random.shuffle(indices)
        expected.update(indices[: int(500 * 0.01 ** (label / 99))].tolist())
    assert {photo.name for photo in dataset.train.photos} == {
        f"train/{index}" for index in expected
    }


def test_pixels_come_through_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 3072), np.uint8)
    listing = read_cifar(write_python(tmp_path / "c", EACH, EACH, pixels))
    image = np.asarray(Image.open(io.BytesIO(listing.splits["train"].photos[7].read())))
    assert image.shape == (32, 32, 3)
    assert np.array_equal(image, pixels[7].reshape(3, 32, 32).transpose(1, 2, 0))


def contents(dataset: Dataset) -> tuple[object, ...]:
    assert dataset.test is not None
    return dataset.classes, dataset.train.labels, dataset.test.labels


def test_every_form_of_the_files_is_the_same_set(tmp_path: Path) -> None:
    python = write_python(tmp_path / "a/cifar-100-python", EACH, EACH[::2])
    binary = write_binary(tmp_path / "b/cifar-100-binary", EACH, EACH[::2])
    packed = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(packed, "w:gz", compresslevel=1) as archive:
        archive.add(python, "cifar-100-python")
    expected = contents(load_dataset(str(python)))
    for source in (python.parent, binary, binary.parent, packed):
        assert contents(load_dataset(str(source))) == expected
    photo = load_dataset(str(binary)).train.photos[5]
    assert np.all(np.asarray(Image.open(io.BytesIO(photo.read()))) == 5)


class Malice:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("name", ["train", "meta"])
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_python(tmp_path / "c", EACH, EACH)
    (folder / name).write_bytes(pickle.dumps({b"data": Malice(tmp_path / "ran")}))
    with pytest.raises(
        UserError, match=rf"{name} is damaged or not a CIFAR file \(it asks for .*syst"
    ):
        load_dataset(str(folder))
    assert not (tmp_path / "ran").exists()


def cut(path: Path) -> None:
    """Remove the last 100 bytes of a file."""
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: cut(folder / "train"), "train is damaged"),
        (lambda folder: (folder / "meta").unlink(), "lacks CIFAR-100's file meta"),
        (lambda folder: (folder / "test").write_bytes(b""), "test is damaged"),
        (lambda folder: (folder / "test").write_bytes(pickled({})), "test has no uint8 data"),
        (
            lambda folder: (folder / "test").write_bytes(
                pickled({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [100]})
            ),
            "test has labels from 100 to 100, and there are 100 classes",
        ),
        (
            lambda folder: (folder / "meta").write_bytes(pickle.dumps([1])),
            "meta is not a CIFAR file",
        ),
        (lambda folder: (folder / "meta").write_bytes(pickled({})), "meta has no list"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = write_python(tmp_path / "c", EACH, EACH)
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_dataset(str(folder))
    assert "\n" not in str(error.value)


def test_a_cut_binary_file_is_named(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "c", EACH, EACH)
    cut(folder / "train.bin")
    with pytest.raises(UserError, match=r"train\.bin has 922,100 bytes, not 3,074 a photo"):
        load_dataset(str(folder))


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    packed = tmp_path / "cifar.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(write_python(tmp_path / "c", EACH, EACH), "cifar-100-python")
    cut(packed)
    with pytest.raises(UserError, match=r"cifar\.tar\.gz is damaged"):
        load_dataset(str(packed))
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(Path(__file__), "other")
    with pytest.raises(UserError, match="lacks CIFAR-100's file train"):
        load_dataset(str(packed))


def test_an_entry_that_is_not_cifars_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_python(tmp_path / "cifar-100-python", EACH, EACH)
    for name in ("file.txt~", "coarse_label_names.txt", "mine.npy"):
        (folder / name).touch()
    with caplog.at_level(logging.WARNING):
        load_dataset(str(folder))
    assert caplog.messages[0] == f"{folder}: 1 entries are not used, such as mine.npy"
