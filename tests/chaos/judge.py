"""Checks each answer against the one that the model gives offline."""

import json
from collections.abc import Mapping
from math import inf
from typing import Any, Final

from taillift.models.bundle.ensemble import Ensemble
from tests.chaos.photos import TOLERANCE, Photo
from tests.chaos.requests import Request
from tests.chaos.wire import Exchange, Reply

OVERLOADED: Final = 429
NOT_READY: Final = 503

# A request sent so shortly before the signal may have reached the service after it.
ON_THE_WAY: Final = 0.5

Wrong = str


class Judge:
    """Checks answers; the service was told to stop at `stopped`, and ready again at `back`."""

    def __init__(self, labels: list[str]) -> None:
        self._labels = labels
        self.stopped = inf
        self.back = inf

    def turned_away(self, done: Exchange) -> bool:
        """Whether the service rightly took no notice: it was stopping, down or starting."""
        if done.reply is not None and done.reply.status != NOT_READY:
            return False
        accepted = done.sent is not None and done.sent < self.stopped - ON_THE_WAY
        return not accepted and done.ended > self.stopped and done.began < self.back

    def wrong(self, request: Request, done: Exchange) -> Wrong | None:
        """Return the fault of an exchange, or None."""
        if request.leave:
            return None
        if done.reply is None:
            return f"lost: {done.trouble}"
        reply = done.reply
        if reply.status == OVERLOADED:
            return None if int(reply.headers["retry-after"]) >= 1 else "429 with no time to wait"
        if reply.status not in request.statuses:
            return f"status {reply.status}, not {set(request.statuses)}: {reply.body[:80]!r}"
        if not request.photos:
            return None
        return self._wrong_answer(request, reply)

    def _wrong_answer(self, request: Request, reply: Reply) -> Wrong | None:
        answer = json.loads(reply.body)
        if reply.status == 200:
            results = answer["results"]
        else:
            results = [{"error": one} for one in answer.get("images", [answer])]
        if len(results) != len(request.photos):
            return f"{len(results)} results for {len(request.photos)} images"
        for place, (result, photo) in enumerate(zip(results, request.photos, strict=True)):
            if trouble := self._wrong_result(result, photo, request.ensemble):
                return f"image {place}: {trouble}"
            if result.get("filename") not in (None, str(place)):
                return f"image {place} is called {result['filename']}"
        return None

    def _wrong_result(
        self, result: Mapping[str, Any], photo: Photo, ensemble: Ensemble
    ) -> Wrong | None:
        if photo.problem:
            problem = result.get("error", {}).get("type")
            return None if problem == photo.problem else f"{problem}, not {photo.problem}"
        if "error" in result:
            return f"{result['error']['detail']}, and it is a good image"
        right = photo.right[ensemble]
        if result["views"] != right.views:
            return f"{result['views']} views, not {right.views}"
        expected = dict(zip(self._labels, right.probabilities.tolist(), strict=True))
        named = result.get("predictions") or result["classes"]
        off = max(abs(one["confidence"] - expected[one["label"]]) for one in named)
        if off > TOLERANCE:
            return f"another answer than offline, by {off:.3g}"
        surest = max(named, key=lambda one: one["confidence"])
        if expected[surest["label"]] < right.probabilities.max() - TOLERANCE:
            return "the surest class is another than offline"
        return None
