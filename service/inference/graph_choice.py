"""Which of a bundle's precisions `--precision auto` takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.device import Provider
from taillift.models.bundle.manifest import Scores
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError
from taillift.service.settings import Settings

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


TIMED_VIEWS: Final = 5
ROUNDS: Final = 4


def open_classifier(settings: Settings) -> tuple[Classifier, str]:
    """The classifier of the precision that was asked for, and a sentence that says why this one.

    For `auto` every graph that the provider may run is opened and timed; where a variant does not
    work there it is fp32. Raises `UserError`.
    """
    device, bundle = settings.device, settings.bundle
    if settings.precision != "auto":
        precision = Precision(settings.precision)
        graph = _graph_of(precision, device.provider)
        return Classifier.open(bundle, device, graph), _asked(precision, graph)
    opened = {Precision.FP32: Classifier.open(bundle, device)}
    variants = opened[Precision.FP32].manifest.variants
    for one in VARIANTS.get(device.provider, frozenset()) & variants.keys():
        try:
            opened[one] = Classifier.open(bundle, device, one)
        except UserError as error:
            return opened[Precision.FP32], f"fp32: {one} does not work here ({error})"
    scores = {one: found.full if (found := variants[one].evaluation) else None for one in opened}
    rare = any(one.group == "few" for one in opened[Precision.FP32].manifest.classes)
    seconds = _seconds(opened) if len(opened) > 1 else {}
    choice = choose(scores, seconds, device.provider, rare)
    return opened[choice.precision], choice.reason


def _asked(precision: Precision, graph: Precision) -> str:
    if precision is graph:
        return f"{precision}: it was asked for"
    return (
        f"{precision}: it was asked for; TensorRT makes it of the {graph} graph, whose accuracy "
        "and calibration these are"
    )


def _graph_of(precision: Precision, provider: Provider) -> Precision:
    """TensorRT makes fp16 of the fp32 graph by itself."""
    if precision is Precision.FP16 and provider is Provider.TENSORRT:
        return Precision.FP32
    if precision in {Precision.FP32, *VARIANTS.get(provider, frozenset())}:
        return precision
    raise UserError(
        f"provider {provider} does not run {precision}: set the precision to auto, or choose "
        "another provider"
    )


def _seconds(opened: Mapping[Precision, Classifier]) -> dict[Precision, float]:
    """What a view takes of each, in turns, so that a busy moment meets all."""
    size = next(iter(opened.values())).manifest.preprocessing.size
    pixels = np.zeros((TIMED_VIEWS, size, size, 3), np.uint8)
    taken: dict[Precision, list[float]] = {one: [] for one in opened}
    for _ in range(ROUNDS):
        for one, classifier in opened.items():
            start = perf_counter()
            classifier.session.run(pixels)
            taken[one].append(perf_counter() - start)
    return {one: min(times[1:]) / TIMED_VIEWS for one, times in taken.items()}
