"""The exports of a service's replicas, as a Prometheus has scraped them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np

from taillift.models.errors import UserError, first_lines
from taillift.models.names import indices_by_name
from taillift.service.settings import is_web_address
from taillift.service.tail.distributions import Indices

PREDICTIONS: Final = "taillift_class_predictions_total"
REPETITIONS: Final = "taillift_class_repetitions_total"
MODEL: Final = "taillift_model_info"
EFFECT: Final = "taillift_tail_design_effect"
START: Final = "process_start_time_seconds"
# The labels that a service gives each series itself; all others say which replica it is.
OWN_LABELS: Final = {
    PREDICTIONS: {"class", "group"},
    REPETITIONS: {"class", "group"},
    MODEL: {"name", "version", "backbone", "method", "provider"},
    EFFECT: set[str](),
    START: set[str](),
}
TIMEOUT_SECONDS: Final = 30.0

Samples = dict[float, float]


@dataclass(frozen=True)
class Scrape:
    """One replica's exports at one time, in seconds since 1970.

    `counts` [C] are the images that it has counted for the tail by top class since it started, at
    `start`; None if it does not export every class of the bundle. `version` is that of the bundle
    that it served, and `effect` the design effect of its own predictions.
    """

    replica: str
    time: float
    version: str
    start: float
    effect: float
    counts: Indices | None


class PrometheusHistory:
    """The scrapes that a Prometheus holds of the replicas of a service."""

    def __init__(self, url: str, labels: list[str], matchers: str = "") -> None:
        """`matchers` select replicas, such as `namespace="shop"`.

        Raises `UserError` if `url` is not the address of a server.
        """
        if "@" in url:
            raise UserError("the address of Prometheus holds a user name, which is never sent")
        if not is_web_address(url):
            raise UserError(f"{url} is not an address such as http://prometheus:9090")
        self.url = url.rstrip("/")
        self._labels = labels
        self._indices = indices_by_name(labels)
        names = f'__name__=~"{"|".join(OWN_LABELS)}"'
        self._selector = "{" + ",".join(part for part in (names, matchers) if part) + "}"

    def scrapes(self, after: float, until: float) -> list[Scrape]:
        """Return all scrapes later than `after` and not later than `until`, the oldest first.

        Raises `UserError` if Prometheus cannot be asked.
        """
        # The samples themselves: `increase` would extrapolate, and forget a replica that ended.
        query = f"{self._selector}[{round(1000 * (until - after))}ms]"
        answer = self._ask(query, until)
        try:
            found = self._scrapes(answer["data"]["result"])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"Prometheus at {self.url} sends no answer of Prometheus: {first_lines(error)}"
            ) from error
        within = [scrape for scrape in found if after < scrape.time <= until]
        return sorted(within, key=lambda scrape: (scrape.time, scrape.replica))

    def _scrapes(self, result: Iterable[Any]) -> list[Scrape]:
        """Return the scrapes that the series of an answer hold."""
        models: defaultdict[str, dict[float, str]] = defaultdict(dict)
        gauges: defaultdict[tuple[str, str], Samples] = defaultdict(dict)
        classes: defaultdict[str, defaultdict[str, dict[int, Samples]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for series in result:
            labels = dict(series["metric"])
            name = labels.pop("__name__")
            own = {key: labels.pop(key, "") for key in OWN_LABELS[name]}
            replica = json.dumps(labels, sort_keys=True)
            samples = {float(time): float(value) for time, value in series["values"]}
            if name == MODEL:
                models[replica] |= dict.fromkeys(samples, own["version"])
            elif name in (EFFECT, START):
                gauges[name, replica] = samples
            elif (index := self._indices.get(own["class"])) is not None:
                classes[replica][name][index] = samples
        return [
            Scrape(
                replica=replica,
                time=time,
                version=version,
                start=gauges[START, replica].get(time, np.nan),
                effect=gauges[EFFECT, replica].get(time, np.nan),
                counts=self._counts(classes[replica], time),
            )
            for replica, versions in models.items()
            for time, version in versions.items()
        ]

    def _counts(self, series: Mapping[str, dict[int, Samples]], time: float) -> Indices | None:
        """Return the predictions without repetitions [C] at `time`, if every class has some.

        A class without a sample has not been counted: that is another thing than 0.
        """
        counts = np.zeros(len(self._labels), np.int64)
        for index in range(len(counts)):
            total = series[PREDICTIONS].get(index, {}).get(time)
            if total is None:
                return None
            counts[index] = total - series[REPETITIONS].get(index, {}).get(time, 0)
        return counts

    def _ask(self, query: str, time: float) -> Any:
        body = urlencode({"query": query, "time": f"{time:.3f}"}).encode()
        where = f"Prometheus at {self.url}"
        try:
            try:
                with urlopen(
                    Request(f"{self.url}/api/v1/query", body), timeout=TIMEOUT_SECONDS
                ) as page:
                    return json.load(page)
            except HTTPError as error:
                with error:  # A proxy may answer with a whole page.
                    reason = " ".join(error.read(10_000).decode(errors="replace").split())[:500]
                raise UserError(f"{where} refuses the query ({error.code}): {reason}") from error
        except (OSError, HTTPException) as error:  # It may break off in the middle, too.
            cause = str(getattr(error, "reason", None) or error).strip()
            raise UserError(f"{where} cannot be asked: {cause}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where} sends no answer of Prometheus: {first_lines(error)}"
            ) from error
