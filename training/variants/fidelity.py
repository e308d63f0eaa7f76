"""How near a variant's logits are to those of fp32."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.bundle.chunks import chunks
from models.bundle.ensemble import Floats
from models.bundle.images import Pixels
from models.bundle.session import Session

BATCH: Final = 8


@dataclass(frozen=True)
class Fidelity:
    """`error` is the root mean square of the logits' differences, as a share of their spread.

    `agreement` is the share of views whose first class stays, averaged over the classes that fp32
    gives them, so that a rare class counts as much as a common one.
    """

    error: float
    agreement: float

    def __str__(self) -> str:
        return (
            f"logits are off by {100 * self.error:.2g} % of their spread, and "
            f"{100 * self.agreement:.1f} % of training views keep their first class"
        )


def fidelity(found: Floats, expected: Floats) -> Fidelity:
    """Of logits [N, C], over all views; the spread is that of a view's logits over the classes."""
    spread = expected - expected.mean(axis=1, keepdims=True)
    same = found.argmax(1) == expected.argmax(1)
    classes = expected.argmax(1)
    shares = [same[classes == one].mean() for one in np.unique(classes)]
    return Fidelity(
        error=float(np.sqrt(np.square(found - expected).mean() / np.square(spread).mean())),
        agreement=float(np.mean(shares)),
    )


def logits_of(session: Session, pixels: Pixels) -> Floats:
    """float32 [N, C] of a graph."""
    return in_batches(lambda rows: session.run(rows).logits, pixels)


def in_batches(run: Callable[[Pixels], Floats], pixels: Pixels) -> Floats:
    """What `run` gives for each of the pixels, in batches that any machine has memory for."""
    rows = chunks(range(len(pixels)), BATCH)
    return np.concatenate([run(pixels[list(one)]) for one in rows])
