"""The photos that `scripts/demo` trains on."""

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from taillift.training.data.dataset import load_dataset

SCRIPT = Path(__file__).parents[1] / "scripts/demo.py"


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_keeps_rare_classes_and_test_photos_whole_and_cuts_frequent_classes(
    demo: ModuleType, tmp_path: Path
) -> None:
    sample = load_dataset("wardrobe-lt")
    table = tmp_path / "runs/demo.csv"
    demo.write_table(sample, table)
    short = load_dataset(str(table))
    assert set(short.classes) == set(sample.classes)
    counts, whole = (dict(zip(of.classes, of.counts, strict=True)) for of in (short, sample))
    assert counts == {name: min(60, count) for name, count in whole.items()}
    assert short.test
    assert sample.test
    tested, all_tested = (
        Counter(of.classes[label] for label in of.test.labels) for of in (short, sample) if of.test
    )
    assert tested == all_tested, "so that its accuracy is that on wardrobe-lt"
    assert {str(photo) for photo in short.test.photos} == {
        str(Path(str(photo)).resolve()) for photo in sample.test.photos
    }
    assert short.val
    assert len(short.val) == 6 * len(sample.classes)


def test_the_demo_stops_at_once_if_its_port_is_in_use(demo: ModuleType) -> None:
    with demo.socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port} is in use"):
            demo.require_free(port)
    demo.require_free(port)
