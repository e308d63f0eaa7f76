"""The metrics as Prometheus reads them, written at most once a second."""

from time import monotonic
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

# Writing them takes the event loop 24 ms with a thousand classes. Who asks sooner gets the same.
FRESH_SECONDS: Final = 1.0


class Page(NamedTuple):
    """One rendering of the metrics, and when it was made on the clock of `monotonic`."""

    content: bytes
    made: float


class Exposition:
    """The metrics of a registry in each format that somebody has asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._pages: dict[str, Page] = {}

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that `accept` prefers, and their Content-Type."""
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # A version that is not a number.
            encoder, content_type = choose_encoder("")
        page = self._pages.get(content_type)
        if page is None or monotonic() - page.made >= FRESH_SECONDS:
            page = Page(encoder(self._registry), monotonic())
            self._pages[content_type] = page
        return page.content, content_type
