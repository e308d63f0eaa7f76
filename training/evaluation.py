"""Accuracy along the tail: per class, per group, and over all images."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from taillift.models.bundle.arrays import Floats
from taillift.models.bundle.ensemble import ExitRule, mean_over_views, run_stages
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.manifest import Accuracy, Evaluation, Scores
from taillift.models.bundle.posterior import log_shares
from taillift.models.bundle.schema import GROUPS, ROUNDING, Group, Percent, SchemaModel
from taillift.models.errors import UserError
from taillift.models.lift.model import Model
from taillift.training.fit.frozen_features import remaining_network
from taillift.training.fit.inputs import Inputs, first_copies
from taillift.training.recipe.losses import GIVE, LogitAdjusted

Indices = npt.NDArray[np.int64]
Rates = npt.NDArray[np.float64]

# Photos that go through the model at once.
EVALUATION_BATCH = 16
# A class that is never recognised counts as this share in the harmonic mean, as in LIFT.
HARMONIC_FLOOR = 1e-5
# The strengths of the adjustment by which recipes are compared.
TAUS = tuple(step / 4 for step in range(9))


class TauPoint(SchemaModel):
    """Accuracies in per cent as if the logit-adjusted loss had had this `tau`."""

    tau: float
    mean_class: Percent
    many: Percent | None
    medium: Percent | None
    few: Percent | None

    def __str__(self) -> str:
        found = [(group, getattr(self, group)) for group in GROUPS]
        parts = [f"{group} {value:.1f} %" for group, value in found if value is not None]
        return ", ".join([f"mean-class {self.mean_class:.1f} %", *parts])


def tau_curve(
    logits: Floats,
    labels: Indices,
    groups: Sequence[Group],
    counts: Sequence[float],
    taus: Sequence[float] = TAUS,
) -> tuple[TauPoint, ...]:
    """Return the accuracies of logits [N, C] after moving tau, on photos with labels [N].

    The logits carry no prior, as those of a loss with tau = 1; the loss would have moved them by
    -(tau - 1) * log(share of the training photos) (Menon et al. 2021, equations 9 and 10). `groups`
    and `counts` have one entry a class; with unlabelled photos the counts are those of the loss,
    `CheckpointMetadata.prior_counts`.
    """
    shares = log_shares(counts)
    points = []
    for tau in taus:
        predicted: Indices = (logits - (tau - 1) * shares).argmax(1)
        found = scores(predicted, labels, groups)
        points.append(TauPoint(tau=tau, **found.model_dump(include=set(TauPoint.model_fields))))
    return tuple(points)


def check_choosable(
    loss: LogitAdjusted, labels: Sequence[int] | None, groups: Sequence[Group]
) -> None:
    """Raise `UserError` if tau cannot be chosen on val/, whose photos have these `labels`.

    They are None without val/. `groups` has one entry a class.
    """
    if labels is None:
        raise UserError(
            "loss.tau = auto is chosen on val/ and there is none: add val/, or give a number"
        )
    present = {groups[label] for label in labels}
    for group in ("few", "many"):
        if loss.aim == "few" and group not in present:
            raise UserError(
                f"loss.aim = few weighs few-shot against many-shot accuracy, and val/ has no "
                f"photos of {group}-shot classes: set aim to mean-class, or tau to a number"
            )


def best_point(curve: Sequence[TauPoint], loss: LogitAdjusted) -> TauPoint:
    """Return the point of a curve that the loss aims at; of equal ones, the nearest to tau = 1."""
    if loss.aim != "few":
        return max(curve, key=lambda point: (point.mean_class, -abs(point.tau - 1)))
    plain = next(point for point in curve if point.tau == 1)
    give = GIVE if loss.give is None else loss.give
    least = (plain.many or 0.0) - give - ROUNDING
    return max(
        (point for point in curve if (point.many or 0.0) >= least),
        key=lambda point: (point.few or 0.0, point.mean_class, -abs(point.tau - 1)),
    )


def evaluate(
    data: str,
    view_logits: Floats,
    labels: Indices,
    groups: Sequence[Group],
    rule: ExitRule | None = None,
) -> Evaluation:
    """Return the scores of logits [N, 5, C], centre view first, on photos with labels [N].

    There are scores for the centre view alone, for all views and, with a `rule`, for the views
    after which it stops. `groups` has one entry a class.
    """
    single, full = predictions(view_logits)
    adaptive, views = run_stages(rule, view_logits) if rule else (None, None)
    return Evaluation(
        data=data,
        images=len(labels),
        single=scores(single, labels, groups),
        full=scores(full, labels, groups),
        adaptive=None if adaptive is None else scores(adaptive.argmax(-1), labels, groups),
        adaptive_views=None if views is None else float(views.mean()),
    )


def scores(predicted: Indices, labels: Indices, groups: Sequence[Group]) -> Scores:
    """Return the accuracies, in per cent, of predictions [N]; `groups` has one entry a class.

    A class without photos does not count in any mean. A group without photos has no score.

    Means are those of LIFT's code. The geometric mean of the classes' accuracies (G-mean; Sun,
    Kamel and Wang 2006) is 0 if a class is never recognised, and so is that class's F1. Macro-F1 is
    the mean over classes of 2 TP / (2 TP + FP + FN), the averaged F1 of Opitz and Burst 2019.
    """
    rates = class_rates(predicted, labels, len(groups))
    known = ~np.isnan(rates)
    present = rates[known]
    of_groups = {group: rates[known & (np.array(groups) == group)] for group in GROUPS}
    means = {
        group: 100 * float(of_group.mean()) if len(of_group) else None
        for group, of_group in of_groups.items()
    }
    with np.errstate(divide="ignore"):
        geometric_mean = float(np.exp(np.log(present).mean()))
    return Scores(
        overall=100 * float((predicted == labels).mean()),
        mean_class=100 * float(present.mean()),
        worst_class=100 * float(present.min()),
        harmonic_mean=100 * float(1 / (1 / present.clip(HARMONIC_FLOOR)).mean()),
        geometric_mean=100 * geometric_mean,
        macro_f1=100 * float(class_f1(predicted, labels, len(groups))[known].mean()),
        **means,
    )


def class_rates(predicted: Indices, labels: Indices, classes: int) -> Rates:
    """Return [C], the share of each class's photos that were recognised; NaN without a photo."""
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    totals = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.where(totals > 0, hits / totals, np.nan)


def class_f1(predicted: Indices, labels: Indices, classes: int) -> Rates:
    """Return F1 [C] of each class; NaN for a class that is neither in the photos nor predicted."""
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    sums = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    with np.errstate(invalid="ignore"):
        return 2 * hits / sums


def class_accuracies(view_logits: Floats, labels: Indices, classes: int) -> list[Accuracy | None]:
    """Return the accuracies of each class, in per cent; None for a class without a photo."""
    rates = [
        100 * class_rates(predicted, labels, classes) for predicted in predictions(view_logits)
    ]
    return [
        None if np.isnan(single) else Accuracy(single=float(single), full=float(full))
        for single, full in zip(*rates, strict=True)
    ]


def class_hits(view_logits: Floats, labels: Indices, classes: int) -> tuple[str, ...]:
    """Return a text for each class with a digit for each of its photos: 1 if all views get it."""
    _, full = predictions(view_logits)
    digits = (full == labels).astype(int).astype(str)
    return tuple("".join(digits[labels == label]) for label in range(classes))


def confusion(view_logits: Floats, labels: Indices, classes: int) -> Indices:
    """Return how often each class was taken for each other: counts [true, predicted], all views."""
    _, full = predictions(view_logits)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, full), 1)
    return counts


def predictions(view_logits: Floats) -> tuple[Indices, Indices]:
    """Return the classes [N] predicted from logits [N, 5, C], by the centre view and by all."""
    full = mean_over_views(view_logits.reshape(-1, view_logits.shape[-1]), VIEWS)
    return view_logits[:, 0].argmax(-1), full.argmax(-1)


@torch.no_grad()
def view_logits(model: Model, inputs: Inputs, device: torch.device) -> Floats:
    """Return the logits float32 [N, 5, C] of all views, from torch without autocast.

    Leaves the model on the CPU.
    """
    model.to(device).eval()
    network = remaining_network(model, inputs.stage)
    parts = [
        model.head(network(rows.to(device)))[0].cpu().numpy()
        for rows, _ in inputs.batches(first_copies(len(inputs.labels)), EVALUATION_BATCH)
    ]
    model.cpu()
    return np.concatenate(parts).reshape(len(inputs.labels), inputs.rows, -1)
