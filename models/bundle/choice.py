"""Which of a bundle's precisions `--precision auto` takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from models.bundle.device import Provider
from models.bundle.manifest import Scores
from models.bundle.precision import Precision

# Points of accuracy that a variant may lose against fp32; a hair more, for their arithmetic.
TOLERANCE: Final = 0.3 + 1e-9
VARIANTS: Final = {
    Provider.CPU: frozenset({Precision.INT8}),
    Provider.CUDA: frozenset({Precision.FP16}),
}
MEASURES: Final = {"mean_class": "mean-class", "few": "few-shot"}


@dataclass(frozen=True)
class Choice:
    """`reason` is one sentence that begins with the precision."""

    precision: Precision
    reason: str


def choose(
    scores: Mapping[Precision, Scores | None],
    seconds: Mapping[Precision, float],
    provider: Provider,
    rare: bool,
) -> Choice:
    """The quickest of what `provider` can run, fp32 among it, that is near fp32's accuracy.

    `scores` are those of each variant of the bundle on held-out photos with all views, None where
    it was not measured; `seconds` a view takes here, of fp32 and of what was tried. A variant is
    near where its mean-class accuracy is at most 0.3 points below fp32's and, if there are `rare`
    classes, their few-shot accuracy, too.
    """
    able = VARIANTS.get(provider, frozenset()) & scores.keys() & seconds.keys()
    if not able:
        return Choice(Precision.FP32, f"fp32: there is nothing else to run on {provider}")
    objections = {one: _objection(one, scores, seconds, rare) for one in able}
    fit = [one for one, objection in objections.items() if objection is None]
    if fit:
        quickest = min(fit, key=lambda one: seconds[one])
        return Choice(quickest, _praise(quickest, scores, seconds))
    reasons = "; ".join(f"{one} {objections[one]}" for one in sorted(able))
    return Choice(Precision.FP32, f"fp32: {reasons}")


def _objection(
    one: Precision,
    scores: Mapping[Precision, Scores | None],
    seconds: Mapping[Precision, float],
    rare: bool,
) -> str | None:
    found, fp32 = scores[one], scores.get(Precision.FP32)
    if found is None or fp32 is None:
        return "was not measured against it on held-out photos"
    losses = _losses(found, fp32)
    if rare and "few" not in losses:
        return "was not measured on photos of few-shot classes"
    worst = max(losses, key=lambda name: losses[name])
    if losses[worst] > TOLERANCE:
        return f"loses {losses[worst]:.1f} points of {MEASURES[worst]} accuracy"
    if seconds[one] >= seconds[Precision.FP32]:
        return "is not faster here"
    return None


def _losses(found: Scores, fp32: Scores) -> dict[str, float]:
    """Points below fp32, of what was measured."""
    pairs = {name: (getattr(found, name), getattr(fp32, name)) for name in MEASURES}
    return {
        name: before - after
        for name, (after, before) in pairs.items()
        if after is not None and before is not None
    }


def _praise(
    one: Precision, scores: Mapping[Precision, Scores | None], seconds: Mapping[Precision, float]
) -> str:
    found, fp32 = scores[one], scores[Precision.FP32]
    assert found is not None
    assert fp32 is not None
    times = seconds[Precision.FP32] / seconds[one]
    places = [
        f"{MEASURES[name]} accuracy {_place(loss)} fp32's"
        for name, loss in _losses(found, fp32).items()
    ]
    return f"{one}: {times:.1f} times as fast as fp32 here, {', '.join(places)}"


def _place(loss: float) -> str:
    points = f"{abs(loss):.1f}"
    if float(points) == 0:
        return "equal to"
    return f"{points} points {'below' if loss > 0 else 'above'}"
