"""Fixtures for every test: the palette bundle, written once."""

from pathlib import Path

import pytest
from palette import write_bundle

import models.lift  # noqa: F401  (makes torchvision importable before any test imports open_clip)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "palette")
