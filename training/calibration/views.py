"""Every view's logits, through the code that serves."""

from collections.abc import Sequence

import numpy as np

from models.bundle.ensemble import Floats
from models.bundle.manifest import Preprocessing
from models.bundle.session import Session
from training.data.split import Split
from training.inputs import evaluation_photos, first_copies
from training.progress import track

BATCH = 8


def view_logits(
    sessions: Sequence[Session], split: Split, preprocessing: Preprocessing, title: str
) -> list[Floats]:
    """Logits float32 [N, 5, C] of each session; a photo is decoded once for all of them.

    `title` stands before the progress bar. Raises `UserError` where a photo cannot be read.
    """
    photos = evaluation_photos(split, preprocessing)
    batches = photos.batches(first_copies(len(split)), BATCH)
    parts: list[list[Floats]] = [[] for _ in sessions]
    for rows, _ in track(batches, title, -(-len(split) // BATCH)):
        for part, session in zip(parts, sessions, strict=True):
            part.append(session.run(rows.numpy()).logits)
    return [np.concatenate(part).reshape(len(split), photos.rows, -1) for part in parts]
