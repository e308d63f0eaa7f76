"""One running service for the tests that need nothing special of it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from palette import write_bundle, write_confusion
from serving import running


@pytest.fixture(scope="session")
def client(bundle: Path) -> Iterator[httpx.Client]:
    with running(bundle, max_images=8) as client:
        yield client


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The palette bundle with held-out photos, which were all recognised."""
    bundle = write_bundle(tmp_path_factory.mktemp("known") / "palette")
    write_confusion(bundle, {})
    return bundle
