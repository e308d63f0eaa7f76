"""The version of the model that a request is answered by, held until its answer is made."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs
from taillift.service.inference.challenge import IdTaker
from taillift.service.inference.engine import Engine
from taillift.service.inference.pipeline import Copier
from taillift.service.inference.served_version import ServedVersion
from taillift.service.problems import NoSuchVersionError

VERSION: Final = "X-Taillift-Version"
# The query parameter with which a request asks for a version.
PIN: Final = "version"
# Routes whose answers depend on the version.
LEASED: Final = frozenset({"/classify", "/confidence", "/classes", "/model"})
BELOW: Final = "/classes/"
# Those of the Open Inference Protocol, which have the version in the address.
MODELS: Final = re.compile(r"/v2/models/[^/]+(?:/versions/(?P<version>[^/]+))?(?:/[a-z]+)?")


class Lease:
    """A request's hold on one version, which stays in memory until `end`."""

    def __init__(self, engine: Engine, wanted: str | None) -> None:
        """Raises `NoSuchVersionError` if the `wanted` role or number is not loaded."""
        self.chosen = wanted is not None
        self._engine = engine
        self._wanted = wanted
        self._held = ExitStack()
        self._hold(engine.champion if wanted is None else engine.resident(wanted))
        # Of the images that were copied for a challenger: what waits for the ids of their answers.
        self._copies: dict[int, IdTaker] = {}

    def _hold(self, version: ServedVersion) -> None:
        self.version = version
        self._held.enter_context(version.lease())

    @contextmanager
    def while_reading(self) -> Iterator[None]:
        """Let the version go while the block reads the body, if another is to take its place.

        With `swap=replace` nobody is answered until the old version is let go, which must not wait
        for a slow client. Afterwards the version is held again, or, if it was replaced meanwhile,
        the one that answers now. Raises `NotReadyError` if there is none yet, and
        `NoSuchVersionError` if the request asks for the old one.
        """
        engine = self._engine
        if engine.settings.swap != "replace":
            yield
            return
        self._held.close()
        yield
        version = self.version
        if version not in engine.in_service:
            engine.require_ready()
            wanted = self._wanted
            version = engine.champion if wanted is None else engine.resident(wanted)
        self._hold(version)

    def choose(self, key: str) -> None:
        """Let a canary, if there is one, choose the version by the key of who asks.

        It chooses once, before anything of the answer exists.
        """
        challenge = self._engine.challenge
        self.chosen = True
        if challenge is not None and challenge.chooses(key):
            self._hold(challenge.challenger)

    @property
    def open(self) -> bool:
        """Whether a canary may still choose."""
        challenge = self._engine.challenge
        return not self.chosen and challenge is not None and challenge.plan.canary is not None

    @property
    def copier(self) -> Copier | None:
        """The function that copies the request's images for a challenger, if they are copied."""
        challenge = self._engine.challenge
        if challenge is None or not challenge.copies(self.version):
            return None

        def copy(image: int, views: Pixels, ensemble: Ensemble, outputs: ImageOutputs) -> None:
            if (taker := challenge.offer(image, views, ensemble, outputs)) is not None:
                self._copies[image] = taker

        return copy

    def is_copied(self, image: int) -> bool:
        """Return whether a challenger sees a copy of this image of the request."""
        return image in self._copies

    def identify(self, image: int, answer_id: str) -> None:
        """Tell a challenger that sees a copy of an image the id of the answer."""
        if self.is_copied(image):
            self._copies.pop(image)(answer_id)

    def end(self) -> None:
        self._held.close()


class VersionLease:
    """ASGI middleware that leases a version to each request and names it in the answer."""

    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        model = MODELS.fullmatch(path)
        if scope["type"] != "http" or not (model or path in LEASED or path.startswith(BELOW)):
            await self._app(scope, receive, send)
            return
        pins = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get(PIN)
        wanted = model["version"] if model else pins[-1] if pins else None
        try:
            lease = Lease(self._engine, wanted)
        except NoSuchVersionError as problem:
            # The route raises it, once it has seen an API key.
            scope.setdefault("state", {})["lease"] = problem
            await self._app(scope, receive, send)
            return

        async def send_with_version(message: Message) -> None:
            is_start = message["type"] == "http.response.start"
            if is_start and message["status"] != 401 and lease.version.number is not None:
                MutableHeaders(scope=message)[VERSION] = str(lease.version.number)
            if is_start:
                lease.end()  # The answer is made: a client that reads it slowly holds nothing.
            await send(message)

        scope.setdefault("state", {})["lease"] = lease
        try:
            await self._app(scope, receive, send_with_version)
        finally:
            lease.end()
