from collections.abc import Iterator

import pytest
import torch

from taillift.models.lift.backbone import Backbone, load_backbone


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """The embedded one; read only."""
    return load_backbone()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny towers, whose layers take less time than threads take to start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
