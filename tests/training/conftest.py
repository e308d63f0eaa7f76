from collections.abc import Iterator

import pytest
import torch

from taillift.training.data.dataset import Dataset, load_dataset
from tests.support.tiny import write_backbone, write_photos


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name, ARCH:PATH, of a small random backbone."""
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """30 red, 21 green and 5 blue training photos; two of each in val and test."""
    root = tmp_path_factory.mktemp("photos") / "colours"
    counts = {"red": 30, "green": 21, "blue": 5}
    return load_dataset(str(write_photos(root, counts, ("train", "val", "test"))))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread, because models as small as these spend more time on waiting for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
