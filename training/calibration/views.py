"""Every view's logits, through the code that serves."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from models.bundle.ensemble import Floats
from models.bundle.posterior import Doubles, without_prior
from models.bundle.precision import Precision
from models.bundle.preprocessing import Preprocessing
from models.bundle.session import Session
from training.data.split import Split
from training.inputs import evaluation_photos, first_copies
from training.progress import track

BATCH: Final = 8

# Float32 [N, 5, C], the centre view first.
ViewLogits = dict[Precision, Floats]


def view_logits(
    sessions: Mapping[Precision, Session],
    log_prior: Doubles,
    split: Split,
    preprocessing: Preprocessing,
    title: str,
) -> ViewLogits:
    """Logits float32 [N, 5, C] of each session; a photo is decoded once for all of them.

    The `log_prior` [C] that the graph's logits carry is taken out. `title` stands before the
    progress bar. Raises `UserError` where a photo cannot be read.
    """
    photos = evaluation_photos(split, preprocessing)
    batches = photos.batches(first_copies(len(split)), BATCH)
    parts: dict[Precision, list[Floats]] = {precision: [] for precision in sessions}
    for rows, _ in track(batches, title, -(-len(split) // BATCH)):
        for precision, session in sessions.items():
            logits = session.run(rows.numpy()).logits
            parts[precision].append(without_prior(logits, log_prior))
    shape = len(split), photos.rows, -1
    return {one: np.concatenate(part).reshape(shape) for one, part in parts.items()}
