"""Which of a bundle's graphs is served."""

from collections.abc import Mapping
from time import perf_counter
from typing import Final

import numpy as np

from models import UserError
from models.bundle.choice import VARIANTS, choose
from models.bundle.classifier import Classifier
from models.bundle.device import Provider
from models.bundle.precision import Precision
from service.settings import Settings

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
