"""Accuracy along the tail."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from taillift.models.bundle.arrays import Floats
from taillift.models.bundle.ensemble import ExitRule, mean_over_views, run_stages
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.manifest import Accuracy, Evaluation, Scores
from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.lift.model import Model
from taillift.training.fit.inputs import Inputs, first_copies
from taillift.training.fit.loop import network_behind

Indices = npt.NDArray[np.int64]
Rates = npt.NDArray[np.float64]
EVALUATION_BATCH = 16
# A class that is never recognised counts as this share in the harmonic mean (as LIFT's does).
HARMONIC_FLOOR = 1e-5


def class_rates(predicted: Indices, labels: Indices, classes: int) -> Rates:
    """[C], the share of each class's images that were recognised; NaN without an image."""
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    totals = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.where(totals > 0, hits / totals, np.nan)


def scores(predicted: Indices, labels: Indices, groups: Sequence[Group]) -> Scores:
    """Accuracies in per cent of predictions [N]; `groups` has one entry a class.

    A class without images belongs to no mean, and shifts no other class.
    """
    rates = class_rates(predicted, labels, len(groups))
    present = rates[~np.isnan(rates)]
    by_group = {group: _mean(rates[[one == group for one in groups]]) for group in GROUPS}
    return Scores(
        overall=100 * float((predicted == labels).mean()),
        mean_class=100 * float(present.mean()),
        worst_class=100 * float(present.min()),
        harmonic_mean=100 * float(1 / (1 / present.clip(HARMONIC_FLOOR)).mean()),
        **by_group,
    )


def evaluate(
    data: str,
    view_logits: Floats,
    labels: Indices,
    groups: Sequence[Group],
    rule: ExitRule | None = None,
) -> Evaluation:
    """Scores for one view, for all and as `rule` stops, of logits [N, 5, C], the centre first."""
    single, full = predictions(view_logits)
    adaptive, taken = run_stages(rule, view_logits) if rule else (None, None)
    return Evaluation(
        data=data,
        images=len(labels),
        single=scores(single, labels, groups),
        full=scores(full, labels, groups),
        adaptive=None if adaptive is None else scores(adaptive.argmax(-1), labels, groups),
        adaptive_views=None if taken is None else float(taken.mean()),
    )


def predictions(view_logits: Floats) -> tuple[Indices, Indices]:
    """Predicted classes [N] with one view and with all, of logits [N, 5, C]."""
    full = mean_over_views(view_logits.reshape(-1, view_logits.shape[-1]), VIEWS)
    return view_logits[:, 0].argmax(-1), full.argmax(-1)


def class_accuracies(view_logits: Floats, labels: Indices, classes: int) -> list[Accuracy | None]:
    """For each class, in per cent; None without an image."""
    single, full = (class_rates(one, labels, classes) for one in predictions(view_logits))
    return [
        None if np.isnan(one) else Accuracy(single=100 * float(one), full=100 * float(every))
        for one, every in zip(single, full, strict=True)
    ]


def confusion(view_logits: Floats, labels: Indices, classes: int) -> Indices:
    """Counts [true, predicted] with all views."""
    _, full = predictions(view_logits)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, full), 1)
    return counts


@torch.no_grad()
def view_logits(model: Model, inputs: Inputs, device: torch.device) -> Floats:
    """Logits float32 [N, 5, C] of every view, in torch without autocast."""
    model.to(device).eval()
    network = network_behind(model, inputs.stage)
    parts = [
        model.head(network(rows.to(device)))[0].cpu().numpy()
        for rows, _ in inputs.batches(first_copies(len(inputs.labels)), EVALUATION_BATCH)
    ]
    model.cpu()
    logits = np.concatenate(parts)
    return logits.reshape(len(inputs.labels), inputs.rows, -1)


def _mean(rates: Rates) -> float | None:
    present = rates[~np.isnan(rates)]
    return 100 * float(present.mean()) if len(present) else None
