"""Which of a bundle's graphs is served if the precision is `auto`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np

from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.device import Device, Provider
from taillift.models.bundle.manifest import Scores
from taillift.models.bundle.schema import Precision
from taillift.models.errors import UserError

# Points of accuracy that a variant may lose against fp32, plus a hair for their arithmetic.
TOLERANCE: Final = 0.3 + 1e-9
VARIANTS: Final = {
    Provider.CPU: frozenset({Precision.INT8}),
    Provider.CUDA: frozenset({Precision.FP16}),
}
MEASURES: Final = {"mean_class": "mean-class", "few": "few-shot"}

TIMED_VIEWS: Final = 5
ROUNDS: Final = 4


@dataclass(frozen=True)
class Choice:
    """A precision, and the reason: one sentence that begins with the precision."""

    precision: Precision
    reason: str


def choose(
    scores: Mapping[Precision, Scores | None],
    seconds: Mapping[Precision, float],
    provider: Provider,
    rare: bool,
) -> Choice:
    """Choose the fastest graph that `provider` can run and that is near fp32's accuracy.

    `scores` are those of each of the bundle's variants on held-out photos with all views, None if
    it was not measured. `seconds` is the time of a view here, for fp32 and what was tried. A
    variant is near if its mean-class accuracy is at most 0.3 points below fp32's and, if there are
    `rare` classes, their few-shot accuracy is, too.
    """
    able = VARIANTS.get(provider, frozenset()) & scores.keys() & seconds.keys()
    if not able:
        return Choice(Precision.FP32, f"fp32: there is nothing else to run on {provider}")
    faults = {variant: _disqualification(variant, scores, seconds, rare) for variant in able}
    fit = [variant for variant, fault in faults.items() if fault is None]
    if fit:
        fastest = min(fit, key=lambda variant: seconds[variant])
        return Choice(fastest, _advantage(fastest, scores, seconds))
    reasons = "; ".join(f"{variant} {faults[variant]}" for variant in sorted(able))
    return Choice(Precision.FP32, f"fp32: {reasons}")


def _disqualification(
    variant: Precision,
    scores: Mapping[Precision, Scores | None],
    seconds: Mapping[Precision, float],
    rare: bool,
) -> str | None:
    measured, fp32 = scores[variant], scores.get(Precision.FP32)
    if measured is None or fp32 is None:
        return "was not measured against it on held-out photos"
    lost = losses(measured, fp32)
    if rare and "few" not in lost:
        return "was not measured on photos of few-shot classes"
    worst = max(lost, key=lambda name: lost[name])
    if lost[worst] > TOLERANCE:
        return f"loses {lost[worst]:.1f} points of {MEASURES[worst]} accuracy"
    if seconds[variant] >= seconds[Precision.FP32]:
        return "is not faster here"
    return None


def _advantage(
    variant: Precision,
    scores: Mapping[Precision, Scores | None],
    seconds: Mapping[Precision, float],
) -> str:
    measured, fp32 = scores[variant], scores[Precision.FP32]
    assert measured is not None
    assert fp32 is not None
    times = seconds[Precision.FP32] / seconds[variant]
    parts = [f"{variant}: {times:.1f} times as fast as fp32 here"]
    for name, loss in losses(measured, fp32).items():
        points = f"{abs(loss):.1f}"
        relation = f"{points} points {'below' if loss > 0 else 'above'}"
        if float(points) == 0:
            relation = "equal to"
        parts.append(f"{MEASURES[name]} accuracy {relation} fp32's")
    return ", ".join(parts)


def losses(measured: Scores, fp32: Scores) -> dict[str, float]:
    """Return by how many points each of `MEASURES` is below fp32's, if both were measured."""
    pairs = {name: (getattr(measured, name), getattr(fp32, name)) for name in MEASURES}
    return {
        name: before - after
        for name, (after, before) in pairs.items()
        if after is not None and before is not None
    }


def open_classifier(
    bundle: Path,
    precision: str,
    device: Device,
    clock: Callable[[], float] = perf_counter,
    verified: bool = False,
) -> tuple[Classifier, str]:
    """Open the graph of a precision, or the best one, and say in one sentence why it is this one.

    For `auto` every graph that the provider may run is opened and timed. If a variant does not work
    there, fp32 is chosen. `clock` gives the seconds. Files that are `verified` are not hashed
    again. Raises `UserError`.
    """
    open_graph = partial(Classifier.open, bundle, device, verified=verified)
    if precision != "auto":
        chosen = Precision(precision)
        graph = graph_of(chosen, device.provider)
        reason = f"{chosen}: it was asked for"
        if chosen is not graph:
            reason += (
                f"; TensorRT makes it of the {graph} graph, whose accuracy and calibration these "
                "are"
            )
        return open_graph(graph), reason
    fp32 = open_graph(Precision.FP32)
    opened = {Precision.FP32: fp32}
    variants = fp32.manifest.variants
    for variant in VARIANTS.get(device.provider, frozenset()) & variants.keys():
        try:
            opened[variant] = open_graph(variant)
        except UserError as error:
            return fp32, f"fp32: {variant} does not work here ({error})"
    evaluations = {variant: variants[variant].evaluation for variant in opened}
    scores = {
        variant: evaluation.full if evaluation else None
        for variant, evaluation in evaluations.items()
    }
    rare = any(info.group == "few" for info in fp32.manifest.classes)
    seconds = view_seconds(opened, clock) if len(opened) > 1 else {}
    choice = choose(scores, seconds, device.provider, rare)
    return opened[choice.precision], choice.reason


def graph_of(precision: Precision, provider: Provider) -> Precision:
    """Return the precision of the graph that a provider runs at `precision`.

    They differ for TensorRT, which makes fp16 of the fp32 graph by itself. Raises `UserError` if
    the provider cannot run it.
    """
    if precision is Precision.FP16 and provider is Provider.TENSORRT:
        return Precision.FP32
    if precision in {Precision.FP32, *VARIANTS.get(provider, frozenset())}:
        return precision
    raise UserError(
        f"provider {provider} does not run {precision}: set the precision to auto, or choose "
        "another provider"
    )


def view_seconds(
    opened: Mapping[Precision, Classifier], clock: Callable[[], float] = perf_counter
) -> dict[Precision, float]:
    """Measure the seconds of a view for each graph, in turns, so that a busy moment hits all."""
    size = next(iter(opened.values())).manifest.preprocessing.size
    pixels = np.zeros((TIMED_VIEWS, size, size, 3), np.uint8)
    times: dict[Precision, list[float]] = {variant: [] for variant in opened}
    for _ in range(ROUNDS):
        for variant, classifier in opened.items():
            start = clock()
            classifier.session.run(pixels)
            times[variant].append(clock() - start)
    # The first round warms up.
    return {variant: min(taken[1:]) / TIMED_VIEWS for variant, taken in times.items()}
