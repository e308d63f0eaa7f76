"""`calibration.PRECISION.npz`: what a bundle's prediction sets are computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models import UserError
from models.bundle.coverage import Labels
from models.bundle.ensemble import Floats
from models.bundle.folder import read_arrays
from models.bundle.precision import Precision
from models.bundle.temperature import Way


@dataclass(frozen=True)
class HeldOutScores:
    """Of each held-out photo its class int64 [N] and, by way to answer, its score float32 [N]."""

    labels: Labels
    ways: Mapping[Way, Floats]


def scores_file(precision: Precision) -> str:
    return f"calibration.{precision}.npz"


def write_scores(folder: Path, precision: Precision, scores: HeldOutScores) -> None:
    """Keep the scores beside the model."""
    ways = {_key(way): values for way, values in scores.ways.items()}
    np.savez_compressed(
        folder / scores_file(precision),
        allow_pickle=False,
        labels=scores.labels.astype(np.int32),
        **ways,
    )


def read_scores(
    folder: Path, precision: Precision, ways: Sequence[Way], classes: int
) -> HeldOutScores:
    """What `write_scores` wrote for these `ways`; raises `UserError` where it is not that."""
    path = folder / scores_file(precision)
    labels, *scores = read_arrays(path, ["labels", *map(_key, ways)])
    if not (
        (labels.dtype, labels.ndim) == (np.dtype(np.int32), 1)
        and all((one.dtype, one.shape) == (np.dtype(np.float32), labels.shape) for one in scores)
        and _within(labels, 0, classes - 1)
        and all(_within(one, 0, 1) for one in scores)
    ):
        raise UserError(
            f"{path} does not hold classes int32 [N] below {classes} and scores float32 [N] from "
            f"0 to 1 for {', '.join(ways)}: export the bundle again"
        )
    return HeldOutScores(labels.astype(np.int64), dict(zip(ways, scores, strict=True)))


def _key(way: Way) -> str:
    return f"score_{way}"


def _within(values: np.ndarray, least: float, most: float) -> bool:
    """NaN is within nothing."""
    return bool(((values >= least) & (values <= most)).all())
