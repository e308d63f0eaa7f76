"""The state of a monitor as named arrays, to be saved and restored."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.schema import GROUPS
from taillift.service.tail.distributions import Doubles
from taillift.service.tail.drift import ConfidenceBand, Evidence
from taillift.service.tail.monitor import Findings, TailMonitor
from taillift.service.tail.window import BINS, Bucket

Array = npt.NDArray[Any]

# Names in the file; they must stay, or a restart would begin anew.
BUCKET: Final = "window/"
SETTINGS: Final = "judged by"
DEPENDENCE: Final = "dependence/"
LAST_SEEN: Final = "last seen"
LIVE: Final = "live/"
# Arrays of classes, in the order of the predictions.
STREAMS: Final = {"held", f"{DEPENDENCE}labels"}
# Times that are not a number before the first prediction.
TIMES: Final = {LAST_SEEN, "began", f"{LIVE}as of"}
# Beginnings of the names that files of version 0.1.0 lack.
LATER: Final = ("sightings/", "predictions", "held", DEPENDENCE)


def to_arrays(monitor: TailMonitor) -> dict[str, Array]:
    """Return everything counted so far; the arrays stay as they are when the monitor goes on."""
    arrays = {SETTINGS: _settings(monitor), LAST_SEEN: monitor.last_seen.copy()}
    sightings, dependence = monitor.sightings, monitor.dependence
    arrays["sightings/digests"] = sightings.digests.copy()
    arrays["sightings/times"] = sightings.times.copy()
    arrays["sightings/next"] = np.array(sightings.next)
    arrays["predictions"] = np.array(monitor.predictions)
    arrays["began"] = np.array(monitor.began)
    arrays["held"] = monitor.held.copy()
    arrays[f"{DEPENDENCE}counts"] = dependence.counts.copy()
    arrays[f"{DEPENDENCE}labels"] = dependence.labels.copy()
    arrays[f"{DEPENDENCE}predictions"] = np.array(dependence.predictions)
    arrays[f"{DEPENDENCE}sums"] = dependence.sums.copy()
    arrays[f"{DEPENDENCE}class sums"] = dependence.class_sums.copy()
    if (live := monitor.live) is not None:
        as_of = live.current.as_of
        arrays[f"{LIVE}counts"] = live.counts.copy()
        arrays[f"{LIVE}recent"] = live.recent.copy()
        arrays[f"{LIVE}images"] = np.array(live.images)
        arrays[f"{LIVE}shares"] = np.array([live.current.shares.get(group, 0) for group in GROUPS])
        arrays[f"{LIVE}as of"] = np.array(np.nan if as_of is None else as_of)
    for bucket in monitor.window.buckets:
        arrays[f"{BUCKET}{bucket.number}"] = bucket.histogram.copy()
    for name, evidence in _evidences(monitor.settled).items():
        arrays[f"{name}/wealth"] = evidence.wealth.copy()
        arrays[f"{name}/predictions"] = np.array(evidence.predictions)
    for name, band in _bands(monitor.settled).items():
        arrays[f"{name}/band"] = band.narrowest.copy()
        arrays[f"{name}/counts"] = band.counts.copy()
        arrays[f"{name}/learned"] = np.stack(
            np.broadcast_arrays(band.predictions, band.narrowed_at)
        )
    return arrays


def restore(monitor: TailMonitor, arrays: Mapping[str, Array]) -> None:
    """Continue from arrays of the same bundle; without any, change nothing.

    Under another reference, level or tolerance the evidence begins anew, because it answered
    another question. The window, with its counts and confidences, is kept if it is as long. Without
    an estimate of the dependence, from version 0.1.0, that alone begins anew. Raises `ValueError`
    if the arrays are not those of such a monitor.
    """
    if not arrays:
        return
    check_arrays(monitor, arrays)
    monitor.last_seen = arrays[LAST_SEEN].copy()
    monitor.began = float(arrays.get("began", np.nan))
    if "sightings/digests" in arrays:
        monitor.sightings.restore(
            arrays["sightings/digests"], arrays["sightings/times"], int(arrays["sightings/next"])
        )
    if monitor.live is not None and f"{LIVE}counts" in arrays:
        monitor.live.restore(
            arrays[f"{LIVE}counts"],
            int(arrays[f"{LIVE}images"]),
            arrays[f"{LIVE}recent"],
            arrays[f"{LIVE}shares"],
            float(arrays[f"{LIVE}as of"]),
        )
    before, now = arrays[SETTINGS], _settings(monitor)
    if before[0] == now[0]:
        numbers = sorted(int(name[len(BUCKET) :]) for name in arrays if name.startswith(BUCKET))
        monitor.window.restore(
            [Bucket(number, arrays[f"{BUCKET}{number}"].copy()) for number in numbers]
        )
    if not np.array_equal(before, now):
        return
    for name, evidence in _evidences(monitor.settled).items():
        evidence.restore(
            arrays[f"{name}/wealth"].copy(), arrays[f"{name}/predictions"].astype(np.float64)
        )
    for name, band in _bands(monitor.settled).items():
        band.narrowest = arrays[f"{name}/band"].copy()
        band.counts = arrays[f"{name}/counts"].copy()
        predictions, narrowed_at = arrays[f"{name}/learned"]
        band.predictions, band.narrowed_at = (
            predictions.astype(np.float64),
            float(narrowed_at.max()),
        )
    for drift in (monitor.settled.drift, monitor.settled.group_drift):
        drift.place_bets()
    monitor.predictions = int(arrays.get("predictions", arrays["drift/predictions"]).max())
    if f"{DEPENDENCE}sums" in arrays:
        monitor.held = arrays["held"].copy()
        monitor.dependence.counts = arrays[f"{DEPENDENCE}counts"].copy()
        monitor.dependence.labels = arrays[f"{DEPENDENCE}labels"].copy()
        monitor.dependence.predictions = int(arrays[f"{DEPENDENCE}predictions"])
        monitor.dependence.sums = arrays[f"{DEPENDENCE}sums"].copy()
        monitor.dependence.class_sums = arrays[f"{DEPENDENCE}class sums"].copy()
        monitor.measure()


def check_arrays(monitor: TailMonitor, arrays: Mapping[str, Array]) -> None:
    """Raise `ValueError` unless `arrays` could have come from `to_arrays` of this monitor."""
    expected = to_arrays(monitor)
    later = {name for name in expected if name.startswith(LATER)}
    needed = expected.keys() if later & arrays.keys() else expected.keys() - later
    live = {name for name in expected if name.startswith(LIVE)}
    optional = {"began"} | (set() if live & arrays.keys() else live)
    for name in sorted(needed - arrays.keys() - optional):
        raise ValueError(f"the array {name!r} is missing")
    shapes = {name: [array.shape] for name, array in expected.items()}
    for name, evidence in _evidences(monitor.settled).items():
        shapes[f"{name}/predictions"] = [(), evidence.wealth.shape[1:]]
    for name, band in _bands(monitor.settled).items():
        shapes[f"{name}/learned"] = [(2,), (2, *band.counts.shape)]
    for name in STREAMS & arrays.keys():
        shapes[name] = [arrays[name].shape[:1]]
    for name in arrays:
        if name.startswith(BUCKET):
            expected[name] = np.zeros((len(monitor.last_seen), BINS), np.uint32)
            shapes[name] = [expected[name].shape]
    for name in expected.keys() & arrays.keys():
        array = arrays[name]
        if array.shape not in shapes[name] or not np.can_cast(array.dtype, expected[name].dtype):
            raise ValueError(
                f"the array {name!r} has another size or type: {array.dtype}{list(array.shape)}"
            )
        if name not in TIMES and not np.isfinite(array).all():
            raise ValueError(f"the array {name!r} has numbers that are not finite")
        if name in STREAMS and not ((array >= 0) & (array < len(monitor.last_seen))).all():
            raise ValueError(f"the array {name!r} has classes that the bundle lacks")


def _settings(monitor: TailMonitor) -> Doubles:
    """Return everything that the evidence depends on; the window's length comes first."""
    rules = monitor.rules
    rates = monitor.expected.classes
    settings = [rules.window_seconds, rules.level, rules.tolerance]
    return np.concatenate([settings, monitor.reference.prior, rates.a, rates.b])


def _evidences(findings: Findings) -> dict[str, Evidence]:
    return {
        "drift": findings.drift.evidence,
        "group drift": findings.group_drift.evidence,
        "silence": findings.silence.evidence,
    }


def _bands(findings: Findings) -> dict[str, ConfidenceBand]:
    return {"drift": findings.drift.band, "group drift": findings.group_drift.band}
