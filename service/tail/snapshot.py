"""What a monitor knows, as arrays to keep and to go on from."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from taillift.service.tail.drift import Band, Evidence
from taillift.service.tail.monitor import TailMonitor
from taillift.service.tail.window import Bucket

Array = npt.NDArray[Any]
BUCKET: Final = "window/"


def remember(monitor: TailMonitor) -> dict[str, Array]:
    """Everything counted by the last look; the arrays do not change when the monitor goes on."""
    arrays = {"judged by": _judged_by(monitor), "last seen": monitor.last_seen.copy()}
    for bucket in monitor.window.buckets:
        arrays[f"{BUCKET}{bucket.number}"] = bucket.histogram.copy()
    for name, evidence in _evidences(monitor).items():
        arrays[f"{name}/wealth"] = evidence.wealth.copy()
        arrays[f"{name}/predictions"] = np.array(evidence.predictions)
    for name, band in _bands(monitor).items():
        arrays[f"{name}/band"] = band.narrowest.copy()
        arrays[f"{name}/counts"] = band.counts.copy()
        arrays[f"{name}/learned"] = np.array([band.predictions, band.taught])
    return arrays


def recall(monitor: TailMonitor, arrays: Mapping[str, Array]) -> None:
    """Go on from what was remembered of the same bundle version, if anything.

    Under another reference, level or tolerance the evidence begins anew: it was for another
    question. The window, with its counts and confidences, is kept where it is as long.
    """
    if "judged by" not in arrays:
        return
    monitor.last_seen = arrays["last seen"].copy()
    before, now = arrays["judged by"], _judged_by(monitor)
    if before[0] == now[0]:
        numbers = sorted(int(name[len(BUCKET) :]) for name in arrays if name.startswith(BUCKET))
        monitor.window.restore([Bucket(one, arrays[f"{BUCKET}{one}"].copy()) for one in numbers])
    if not np.array_equal(before, now):
        return
    for name, evidence in _evidences(monitor).items():
        evidence.wealth = arrays[f"{name}/wealth"].copy()
        evidence.predictions = int(arrays[f"{name}/predictions"])
    for name, band in _bands(monitor).items():
        band.narrowest = arrays[f"{name}/band"].copy()
        band.counts = arrays[f"{name}/counts"].copy()
        band.predictions, band.taught = (int(one) for one in arrays[f"{name}/learned"])
    for drift in (monitor.drift, monitor.group_drift):
        drift.bet()


def _judged_by(monitor: TailMonitor) -> npt.NDArray[np.float64]:
    rules = monitor.rules
    rates = monitor.expected.classes
    settings = [rules.window_seconds, rules.level, rules.tolerance]
    return np.concatenate([settings, monitor.reference.prior, rates.a, rates.b])


def _evidences(monitor: TailMonitor) -> dict[str, Evidence]:
    return {
        "drift": monitor.drift.evidence,
        "group drift": monitor.group_drift.evidence,
        "silence": monitor.silence.evidence,
    }


def _bands(monitor: TailMonitor) -> dict[str, Band]:
    return {"drift": monitor.drift.band, "group drift": monitor.group_drift.band}
