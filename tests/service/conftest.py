"""One running service for the tests that need nothing special of it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import running


@pytest.fixture(scope="session")
def client(bundle: Path) -> Iterator[httpx.Client]:
    with running(bundle, max_images=8) as client:
        yield client
