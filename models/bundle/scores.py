"""`calibration.PRECISION.npz`: what a bundle's prediction sets are computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models import UserError
from models.bundle.coverage import Labels
from models.bundle.ensemble import Ensemble, Floats
from models.bundle.folder import read_arrays
from models.bundle.precision import Precision


@dataclass(frozen=True)
class HeldOutScores:
    """Of each held-out photo its class int64 [N] and, by ensemble, its score float32 [N]."""

    labels: Labels
    ensembles: Mapping[Ensemble, Floats]


def scores_file(precision: Precision) -> str:
    return f"calibration.{precision}.npz"


def write_scores(folder: Path, precision: Precision, scores: HeldOutScores) -> None:
    """Keep the scores beside the model."""
    ensembles = {_key(ensemble): values for ensemble, values in scores.ensembles.items()}
    np.savez_compressed(
        folder / scores_file(precision),
        allow_pickle=False,
        labels=scores.labels.astype(np.int32),
        **ensembles,
    )


def read_scores(
    folder: Path, precision: Precision, ensembles: Sequence[Ensemble], classes: int
) -> HeldOutScores:
    """What `write_scores` wrote for these `ensembles`; raises `UserError` where it is not that."""
    path = folder / scores_file(precision)
    labels, *scores = read_arrays(path, ["labels", *map(_key, ensembles)])
    if not (
        (labels.dtype, labels.ndim) == (np.dtype(np.int32), 1)
        and all((one.dtype, one.shape) == (np.dtype(np.float32), labels.shape) for one in scores)
        and _within(labels, 0, classes - 1)
        and all(_within(one, 0, 1) for one in scores)
    ):
        raise UserError(
            f"{path} does not hold classes int32 [N] below {classes} and scores float32 [N] from "
            f"0 to 1 for {', '.join(ensembles)}: export the bundle again"
        )
    return HeldOutScores(labels.astype(np.int64), dict(zip(ensembles, scores, strict=True)))


def _key(ensemble: Ensemble) -> str:
    return f"score_{ensemble}"


def _within(values: np.ndarray, least: float, most: float) -> bool:
    """NaN is within nothing."""
    return bool(((values >= least) & (values <= most)).all())
