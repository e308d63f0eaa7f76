"""One running service for the tests that need nothing special of it."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import httpx
import pytest
from PIL import Image

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.images import load_opened
from taillift.models.bundle.schema import Preprocessing
from tests.support.palette import write_bundle, write_confusion
from tests.support.serving import running


@pytest.fixture(scope="session")
def client(bundle: Path) -> Iterator[httpx.Client]:
    with running(bundle, max_images=8) as client:
        yield client


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """No image is decoded until it is set."""
    gate = Event()

    def waits(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
        gate.wait()
        return load_opened(image, preprocessing)

    monkeypatch.setattr("taillift.service.inference.decoder.load_opened", waits)
    yield gate
    gate.set()


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The palette bundle with held-out photos, which were all recognised."""
    bundle = write_bundle(tmp_path_factory.mktemp("known") / "palette")
    write_confusion(bundle, {})
    return bundle
