"""`taillift watch --prometheus`: one monitor of the tail for all replicas of a service.

Each of N replicas sees an N-th of the images, and finds a lost class N times later, or never. The
tests count predictions, so one monitor that is fed with the counts of all replicas finds what a
single service would have found.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from math import ceil
from threading import Event, Lock
from time import time
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import GaugeMetricFamily

from taillift.models.errors import UserError
from taillift.models.terminal import say
from taillift.service.monitoring.exporter import ClassSeries, TailSeries
from taillift.service.monitoring.prometheus import PrometheusHistory, Scrape
from taillift.service.tail.dependence import SETTLED
from taillift.service.tail.distributions import Indices
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.state import TailState, tail_state

# Scrapes that Prometheus has only just begun are waited for.
LAG_SECONDS: Final = 10.0
# Looked at before the beginning, so that what a replica had counted then is known.
LOOK_BACK: Final = 300.0
# The first scrape of a replica counts from 0 if the replica started so many seconds before it.
NEW_SECONDS: Final = 900.0
# Scrapes of so much time are asked for at once, and of less if there are more classes than these:
# all of their samples are in memory.
SECONDS_AT_ONCE: Final = 3600.0
CLASSES_AT_ONCE: Final = 200
# They are the sums of the replicas' own, or cannot be told from counts.
NOT_OF_A_FLEET: Final = {
    "taillift_class_predictions",
    "taillift_class_repetitions",
    "taillift_confidence_quantile",
}


class Fleet:
    """The tail of all replicas that serve one bundle.

    The clock is that of the scrapes, so that the same scrapes give the same findings whenever they
    are read.
    """

    def __init__(self, profile: ModelProfile, rules: Rules, warn: Callable[[str], None]) -> None:
        """`warn` is called with a line for each replica that cannot be counted.

        Raises `UserError` if the reference is unusable.
        """
        self.now = 0.0
        self.monitor = TailMonitor(profile, rules, lambda: self.now)
        self.counts: Indices = np.zeros(len(profile.labels), np.int64)
        self.replicas = 0
        self._last: dict[str, Scrape] = {}
        self._effects: dict[str, float] = {}
        self._warn = warn
        self._warned: dict[str, str] = {}

    @property
    def repetitions(self) -> Indices:
        """Zeros [C]: the replicas leave out what they have counted before."""
        return np.zeros_like(self.counts)

    def state(self) -> TailState:
        """Return the current state of every class and group."""
        return tail_state(self.monitor)

    def remember(self, scrapes: Iterable[Scrape]) -> None:
        """Take what the replicas have counted so far as counted before the beginning."""
        self._last |= {scrape.replica: scrape for scrape in scrapes if scrape.counts is not None}

    def look(self, scrapes: Iterable[Scrape], now: float) -> None:
        """Count what the replicas have predicted since the last look, which ends at `now`."""
        counts = np.zeros_like(self.counts)
        effects, replicas = dict[str, float](), set[str]()
        for scrape in scrapes:
            is_ours = self._is_ours(scrape)
            if scrape.counts is None:
                continue
            new, self._last[scrape.replica] = self._new_counts(scrape), scrape
            if is_ours:
                counts += new
                replicas.add(scrape.replica)
                if scrape.counts.sum() >= SETTLED:
                    effects[scrape.replica] = scrape.effect
        self.now, self.replicas = now, len(replicas)
        oldest = now - self.monitor.rules.window_seconds
        self._last = {name: one for name, one in self._last.items() if one.time > oldest}
        self._effects = effects or self._effects
        self.monitor.dependence.told = max([1.0, *self._effects.values()])
        for label in spread(counts).tolist():
            self.monitor.observe(label, 0.0)
        self.counts += counts
        self.monitor.refresh()

    def _is_ours(self, scrape: Scrape) -> bool:
        """Return whether a scrape counts predictions of this bundle; if not, say so once."""
        if scrape.version != self.monitor.profile.version:
            reason = f"serves another bundle ({scrape.version})"
        elif scrape.counts is None:
            reason = "does not export every class of the bundle: set class_metrics=on"
        else:
            self._warned.pop(scrape.replica, None)
            return True
        if self._warned.get(scrape.replica) != reason:
            self._warn(f"{scrape.replica} is not counted, because it {reason}")
        self._warned[scrape.replica] = reason
        return False

    def _new_counts(self, scrape: Scrape) -> Indices:
        """Return what a replica has counted [C] since its last scrape, or since it started."""
        assert scrape.counts is not None
        last = self._last.get(scrape.replica)
        if last is None or last.counts is None:
            is_new = scrape.time - scrape.start < NEW_SECONDS
            return scrape.counts if is_new else np.zeros_like(scrape.counts)
        new: Indices = scrape.counts - last.counts
        is_restarted = scrape.start > last.start or bool((new < 0).any())
        return scrape.counts if is_restarted else new


def spread(counts: Indices) -> Indices:
    """Return labels [N] with these counts [C], each class at equal distances.

    Counts have no order. This one has no more bursts than there must be.
    """
    labels = np.repeat(np.arange(len(counts)), counts)
    ranks = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return labels[np.argsort((ranks + 0.5) / counts[labels], kind="stable")]


class FleetSeries(TailSeries):
    """A collector of the fleet's statistics: a service's series, but for what counts cannot tell.

    Replicas add up in Prometheus, so their counters are not repeated here.
    """

    def __init__(self, fleet: Fleet, which: ClassSeries, lock: Lock) -> None:
        """`lock` is held while the fleet is read."""
        super().__init__(fleet, which)
        self._fleet = fleet
        self._lock = lock

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            yield from (one for one in super().collect() if one.name not in NOT_OF_A_FLEET)
            yield GaugeMetricFamily(
                "taillift_fleet_replicas", "Replicas counted at the last look", self._fleet.replicas
            )
            yield GaugeMetricFamily(
                "taillift_fleet_look_timestamp_seconds",
                "Time up to which predictions are counted, in seconds since 1970",
                self._fleet.now,
            )


class FleetWatch:
    """Looks at a fleet again and again, and exports what was found."""

    def __init__(self, history: PrometheusHistory, fleet: Fleet, interval: float) -> None:
        """A look is at each whole multiple of `interval`, in seconds."""
        self.history = history
        self.fleet = fleet
        self._interval = interval
        self._lock = Lock()
        self._is_away = False

    def serve(self, host: str, port: int, which: ClassSeries) -> int:
        """Export the series at an address, and return the port; raises `UserError` if it is taken.

        A port of 0 picks a free one.
        """
        registry = CollectorRegistry()
        registry.register(FleetSeries(self.fleet, which, self._lock))
        try:
            server, _ = start_http_server(port, host, registry)
        except OSError as error:
            raise UserError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another port"
            ) from error
        return server.server_port

    def run(self, ended: Event, clock: Callable[[], float] = time) -> None:
        """Look at the past as far as the window goes, and then at each interval until `ended`.

        While Prometheus cannot be asked, nothing is lost: later looks catch up.
        """
        window = self.fleet.monitor.rules.window_seconds
        begin = (clock() - window) // self._interval * self._interval
        while (before := self._read(begin - LOOK_BACK, begin)) is None:
            if ended.wait(self._interval):
                return
        self.fleet.remember(before)
        while not ended.is_set():
            # Not all of a long past at once, so that a signal ends it.
            soon = begin + self._lag + max(SECONDS_AT_ONCE, self._interval) + self._interval / 2
            begin = self.catch_up(begin, min(clock(), soon))
            due = begin + self._interval + self._lag - clock()
            ended.wait(self._interval if self._is_away else min(due, self._interval))

    @property
    def _lag(self) -> float:
        return min(self._interval, LAG_SECONDS)

    def catch_up(self, begin: float, now: float) -> float:
        """Look at all that has not been looked at since `begin`; return up to when it has."""
        part = min(1.0, CLASSES_AT_ONCE / len(self.fleet.counts))
        at_once = max(1, int(part * SECONDS_AT_ONCE // self._interval))
        while (looks := int((now - self._lag - begin) // self._interval)) > 0:
            end = begin + min(looks, at_once) * self._interval
            scrapes = self._read(begin, end)
            if scrapes is None:
                break
            for number, together in groupby(scrapes, partial(self._look_of, begin)):
                with self._lock:
                    self.fleet.look(together, begin + number * self._interval)
            if self.fleet.now < end:
                with self._lock:
                    self.fleet.look((), end)
            begin = end
        return begin

    def _look_of(self, begin: float, scrape: Scrape) -> int:
        return ceil((scrape.time - begin) / self._interval)

    def _read(self, after: float, until: float) -> list[Scrape] | None:
        """Return the scrapes, or None if Prometheus is away, of which it says one line."""
        try:
            scrapes = self.history.scrapes(after, until)
        except UserError as error:
            if not self._is_away:
                say(f"{error}; trying again every {self._interval:g} s", err=True)
            self._is_away = True
            return None
        if self._is_away:
            say(f"Prometheus at {self.history.url} answers again", err=True)
        self._is_away = False
        return scrapes
