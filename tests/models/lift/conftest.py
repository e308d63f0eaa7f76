import pytest

from models.lift.backbone import Backbone, load_backbone


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """The embedded one; read only."""
    return load_backbone()
