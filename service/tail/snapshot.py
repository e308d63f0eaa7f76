"""The state of a monitor as named arrays, to be saved and restored."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from taillift.service.tail.distributions import Doubles
from taillift.service.tail.drift import ConfidenceBand, Evidence
from taillift.service.tail.monitor import TailMonitor
from taillift.service.tail.window import Bucket

Array = npt.NDArray[Any]

# Names in the file; they must stay, or a restart would begin anew.
BUCKET: Final = "window/"
SETTINGS: Final = "judged by"


def to_arrays(monitor: TailMonitor) -> dict[str, Array]:
    """Return everything counted so far; the arrays stay as they are when the monitor goes on."""
    arrays = {SETTINGS: _settings(monitor), "last seen": monitor.last_seen.copy()}
    for bucket in monitor.window.buckets:
        arrays[f"{BUCKET}{bucket.number}"] = bucket.histogram.copy()
    for name, evidence in _evidences(monitor).items():
        arrays[f"{name}/wealth"] = evidence.wealth.copy()
        arrays[f"{name}/predictions"] = np.array(evidence.predictions)
    for name, band in _bands(monitor).items():
        arrays[f"{name}/band"] = band.narrowest.copy()
        arrays[f"{name}/counts"] = band.counts.copy()
        arrays[f"{name}/learned"] = np.array([band.predictions, band.narrowed_at])
    return arrays


def restore(monitor: TailMonitor, arrays: Mapping[str, Array]) -> None:
    """Continue from arrays of the same bundle version; without any, change nothing.

    Under another reference, level or tolerance the evidence begins anew, because it answered
    another question. The window, with its counts and confidences, is kept if it is as long.
    """
    if SETTINGS not in arrays:
        return
    monitor.last_seen = arrays["last seen"].copy()
    before, now = arrays[SETTINGS], _settings(monitor)
    if before[0] == now[0]:
        numbers = sorted(int(name[len(BUCKET) :]) for name in arrays if name.startswith(BUCKET))
        monitor.window.restore(
            [Bucket(number, arrays[f"{BUCKET}{number}"].copy()) for number in numbers]
        )
    if not np.array_equal(before, now):
        return
    for name, evidence in _evidences(monitor).items():
        evidence.wealth = arrays[f"{name}/wealth"].copy()
        evidence.predictions = int(arrays[f"{name}/predictions"])
    for name, band in _bands(monitor).items():
        band.narrowest = arrays[f"{name}/band"].copy()
        band.counts = arrays[f"{name}/counts"].copy()
        band.predictions, band.narrowed_at = (int(n) for n in arrays[f"{name}/learned"])
    for drift in (monitor.drift, monitor.group_drift):
        drift.place_bets()


def _settings(monitor: TailMonitor) -> Doubles:
    """Return everything that the evidence depends on; the window's length comes first."""
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


def _bands(monitor: TailMonitor) -> dict[str, ConfidenceBand]:
    return {"drift": monitor.drift.band, "group drift": monitor.group_drift.band}
