"""Tests that the scores behind prediction sets are read whole, or refused in one line."""

from pathlib import Path

import numpy as np
import pytest

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import HeldOutScores, read_scores, scores_file, write_scores
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError

FP32 = Precision.FP32
OFF, FULL = Ensemble.OFF, Ensemble.FULL
FILE = scores_file(FP32)

LABELS = np.array([0, 1, 1, 2])
SCORES = {
    OFF: np.array([0.1, 0.2, 0.3, 1.0], np.float32),
    FULL: np.array([0.0, 0.25, 0.5, 0.75], np.float32),
}


def refusal(folder: Path, classes: int = 3) -> str:
    with pytest.raises(UserError) as caught:
        read_scores(folder, FP32, [OFF, FULL], classes)
    assert "\n" not in str(caught.value)
    assert FILE in str(caught.value)
    return str(caught.value)


def test_scores_come_back_as_written(tmp_path: Path) -> None:
    write_scores(tmp_path, FP32, HeldOutScores(LABELS, SCORES))
    read = read_scores(tmp_path, FP32, [FULL, OFF], 3)
    assert read.labels.dtype == np.int64
    assert read.labels.tolist() == LABELS.tolist()
    assert list(read.ensembles) == [FULL, OFF]
    for ensemble, values in SCORES.items():
        np.testing.assert_array_equal(read.ensembles[ensemble], values)


def test_scores_of_no_photo_are_read_too(tmp_path: Path) -> None:
    none = np.zeros(0, np.float32)
    write_scores(tmp_path, FP32, HeldOutScores(np.zeros(0, np.int64), {OFF: none, FULL: none}))
    assert len(read_scores(tmp_path, FP32, [OFF, FULL], 3).labels) == 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "is missing" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 200, -20])
def test_a_truncated_file_is_damaged(tmp_path: Path, keep: int) -> None:
    write_scores(tmp_path, FP32, HeldOutScores(LABELS, SCORES))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:keep])
    assert "is damaged" in refusal(tmp_path)


def test_a_way_that_the_file_lacks_is_damage(tmp_path: Path) -> None:
    write_scores(tmp_path, FP32, HeldOutScores(LABELS, {OFF: SCORES[OFF]}))
    assert "score_full" in refusal(tmp_path)


@pytest.mark.parametrize(
    "scores",
    [
        np.array([0.1, 0.2, 0.3], np.float32),
        np.array([0.1, 0.2, 0.3, 0.4]),
        np.array([0.1, 0.2, 0.3, np.nan], np.float32),
        np.array([0.1, 0.2, 0.3, 1.5], np.float32),
        np.array([[0.1, 0.2, 0.3, 0.4]], np.float32),
    ],
    ids=["too-few", "float64", "nan", "above-one", "two-dimensional"],
)
def test_scores_of_another_kind_are_refused(tmp_path: Path, scores: np.ndarray) -> None:
    write_scores(tmp_path, FP32, HeldOutScores(LABELS, {**SCORES, FULL: scores}))
    assert "does not hold" in refusal(tmp_path)


@pytest.mark.parametrize("classes", [1, 2])
def test_classes_that_the_bundle_lacks_are_refused(tmp_path: Path, classes: int) -> None:
    write_scores(tmp_path, FP32, HeldOutScores(LABELS, SCORES))
    assert f"below {classes}" in refusal(tmp_path, classes)


def test_each_precision_has_its_own(tmp_path: Path) -> None:
    write_scores(tmp_path, Precision.INT8, HeldOutScores(LABELS, SCORES))
    assert "calibration.fp32.npz is missing" in refusal(tmp_path)
