"""Fixtures and settings for all tests: the palette bundle, graphs that are written once, a disk."""

import hashlib
import io
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

# This makes torchvision importable, and must happen before a test imports open_clip.
import taillift.models.lift  # noqa: F401
from taillift.models.lift.onnx_export import write_graph
from tests.support.palette import write_bundle

# A shell's background jobs ignore SIGINT, and processes that tests start would inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests compute frozen features; those of the cache itself ask for it.
os.environ["TAILLIFT_CACHE_GIB"] = "0"

# The time of an example depends on how busy the machine is, so it must not fail a test.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


ROOT = Path(__file__).parents[1]
# Files that `scripts/test --quick` leaves out: those that train, or start a browser, Prometheus or
# whole processes, and others that take several seconds. A new file that does belongs here.
SLOW = frozenset(
    f"tests/{name}.py"
    for name in (
        "test_end_to_end",
        "test_labelling_loop",
        "test_tail_end_to_end",
        "test_wheel",
        "chaos/test_judge",
        "docker/test_alerts",
        "docker/test_kubernetes",
        "docker/test_monitoring",
        "docker/test_ray_serve",
        "fuzz/test_fuzz",
        "models/bundle/test_arrays",
        "models/bundle/test_extension",
        "models/bundle/test_version_store",
        "models/lift/test_average",
        "models/lift/test_catalogue",
        "models/lift/test_convert",
        "models/lift/test_merge",
        "models/lift/test_weight_file",
        "models/test_duel",
        "service/feedback/test_calibration_evidence",
        "service/http/test_access",
        "service/http/test_admin",
        "service/http/test_connection",
        "service/http/test_feedback",
        "service/http/test_framing",
        "service/http/test_live_prior_query",
        "service/http/test_oip",
        "service/http/test_oip_request",
        "service/http/test_openapi",
        "service/http/test_proxy",
        "service/http/test_request_id",
        "service/inference/test_adapted_prior",
        "service/inference/test_challenge",
        "service/inference/test_deadline",
        "service/inference/test_folder_run",
        "service/inference/test_load",
        "service/inference/test_part_folder",
        "service/inference/test_readiness",
        "service/inference/test_swap",
        "service/monitoring/test_fleet",
        "service/monitoring/test_recorder",
        "service/monitoring/test_tracing",
        "service/monitoring/test_watch_command",
        "service/page/test_label_tab",
        "service/page/test_page",
        "service/review/test_review_sampler",
        "service/review/test_reviewer",
        "service/page/test_sheet",
        "service/tail/test_drift",
        "service/tail/test_live_prior",
        "service/tail/test_monitor",
        "service/tail/test_prevalence",
        "service/test_server",
        "training/calibration/test_cross_fit",
        "training/calibration/test_exit_rule",
        "training/calibration/test_temperature_fit",
        "training/comparison/test_compare",
        "training/comparison/test_soup",
        "training/data/test_survey",
        "training/data/readers/test_cifar",
        "training/data/readers/test_registry",
        "training/export/test_export",
        "training/export/test_extended",
        "training/export/test_fp16",
        "training/export/test_int8",
        "training/export/test_recalibrate",
        "training/fit/test_checkpoint",
        "training/fit/test_feature_cache",
        "training/fit/test_frozen_features",
        "training/fit/test_same_pixels",
        "training/fit/test_scale",
        "training/report/test_bundle_report",
        "training/report/test_comparison_report",
        "training/report/test_figures",
        "training/test_train",
        "training/test_train_cli",
        "training/test_training_loop",
        "training/unlabelled/test_teacher",
        "training/unlabelled/test_weak_strong",
    )
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, and begin with them, so that both processes end together."""
    for item in items:
        if item.path.relative_to(ROOT).as_posix() in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the palette bundle."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "palette")


@pytest.fixture(scope="session", autouse=True)
def same_graph_once() -> Iterator[None]:
    """Training and export write the graph of the same module, weights and all, only once.

    torch's exporter takes seconds even for a tiny model, and most of a test's time.
    """
    graphs: dict[tuple[object, ...], tuple[bytes, int]] = {}

    def write_once(
        module: nn.Module,
        example: Tensor,
        path: Path,
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> int:
        saved = io.BytesIO()
        torch.save(module, saved)
        digest = hashlib.sha256(saved.getvalue()).digest()
        key = digest, example.dtype, tuple(example.shape), tuple(inputs), tuple(outputs)
        if key not in graphs:
            nodes = write_graph(module, example, path, inputs, outputs)
            graphs[key] = path.read_bytes(), nodes
        content, nodes = graphs[key]
        path.write_bytes(content)
        return nodes

    with pytest.MonkeyPatch.context() as patch:
        for room in ("fit.frozen_features", "export.graphs"):
            patch.setattr(f"taillift.training.{room}.write_graph", write_once)
        yield


@pytest.fixture(autouse=True)
def fresh_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scrape of a service in this process shows what has just happened."""
    monkeypatch.setattr("taillift.service.monitoring.exporter.FRESH_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that runs in this process does not lower the priority of all later tests."""
    monkeypatch.setattr(os, "nice", lambda _: 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a real file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    result = subprocess.run(mount, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"no file system can be mounted here: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
