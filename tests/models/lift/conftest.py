from collections.abc import Iterator

import pytest
import torch

from taillift.models.lift.backbone import Backbone, load_backbone


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """The built-in backbone, shared by all tests: do not change it."""
    return load_backbone()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: the layers of a tiny tower take less time than starting more of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
