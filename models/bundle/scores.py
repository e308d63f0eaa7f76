"""`calibration.npz`: what a bundle's prediction sets are computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from models import UserError
from models.bundle.coverage import Labels
from models.bundle.ensemble import Floats
from models.bundle.folder import read_arrays

CALIBRATION: Final = "calibration.npz"


@dataclass(frozen=True)
class HeldOutScores:
    """Of each held-out photo its class int64 [N] and, by way to answer, its score float32 [N]."""

    labels: Labels
    ways: Mapping[str, Floats]


def write_scores(folder: Path, scores: HeldOutScores) -> None:
    """Keep the scores beside the model."""
    ways = {_key(way): values for way, values in scores.ways.items()}
    np.savez_compressed(
        folder / CALIBRATION, allow_pickle=False, labels=scores.labels.astype(np.int32), **ways
    )


def read_scores(folder: Path, ways: Sequence[str], classes: int) -> HeldOutScores:
    """What `write_scores` wrote for these `ways`; raises `UserError` where it is not that."""
    path = folder / CALIBRATION
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


def _key(way: str) -> str:
    return f"score_{way}"


def _within(values: np.ndarray, least: float, most: float) -> bool:
    """NaN is within nothing."""
    return bool(((values >= least) & (values <= most)).all())
