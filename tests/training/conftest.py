"""Fixtures for the tests of training: a small backbone, a small set of photos, one thread."""

from collections.abc import Iterator

import pytest
import torch

from taillift.training.data.dataset import Dataset, load_dataset
from tests.support.tiny import write_backbone, write_photos


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a small random backbone, ARCH:PATH."""
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A set of 30 red, 21 green and 5 blue training photos, and two of each in val and test."""
    root = tmp_path_factory.mktemp("photos") / "colours"
    counts = {"red": 30, "green": 21, "blue": 5}
    return load_dataset(str(write_photos(root, counts, ("train", "val", "test"))))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: in very small models, threads wait longer for each other than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
