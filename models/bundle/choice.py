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
) -> Choice:
    """The quickest of what `provider` can run, fp32 among it, that is near fp32's accuracy.

    `scores` are those of each variant of the bundle on held-out photos with all views, None where
    it was not measured; `seconds` a view takes here, of fp32 and of what was tried. A variant is
    near where its mean-class and few-shot accuracy are at most 0.3 points below fp32's.
    """
    able = VARIANTS.get(provider, frozenset()) & scores.keys() & seconds.keys()
    if not able:
        return Choice(Precision.FP32, f"fp32: there is nothing else to run on {provider}")
    objections = {one: _objection(one, scores, seconds) for one in able}
    fit = [one for one, objection in objections.items() if objection is None]
    if fit:
        quickest = min(fit, key=lambda one: seconds[one])
        return Choice(quickest, _praise(quickest, scores, seconds))
    reasons = "; ".join(f"{one} {objections[one]}" for one in sorted(able))
    return Choice(Precision.FP32, f"fp32: {reasons}")


def _objection(
    one: Precision, scores: Mapping[Precision, Scores | None], seconds: Mapping[Precision, float]
) -> str | None:
    found, fp32 = scores[one], scores.get(Precision.FP32)
    if found is None or fp32 is None:
        return "was not measured against it on held-out photos"
    losses = _losses(found, fp32)
    worst = max(losses, key=lambda name: losses[name])
    if losses[worst] > TOLERANCE:
        return f"loses {losses[worst]:.1f} points of {MEASURES[worst]} accuracy"
    if seconds[one] >= seconds[Precision.FP32]:
        return "is not faster here"
    return None


def _losses(found: Scores, fp32: Scores) -> dict[str, float]:
    """Points below fp32; a group without photos loses nothing."""
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
    loss = round(fp32.mean_class - found.mean_class, 1)
    place = f"{abs(loss):.1f} points {'below' if loss > 0 else 'above'}" if loss else "equal to"
    return f"{one}: {times:.1f} times as fast as fp32 here, mean-class accuracy {place} fp32's"
