"""The counters and histograms of one service, as Prometheus scrapes them, and spans of stages."""

from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, perf_counter_ns, time_ns
from typing import Final, Literal, get_args

from opentelemetry import trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.process_collector import ProcessCollector

from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.review import Decision
from taillift.models.bundle.schema import GROUPS, Group
from taillift.service.problems import LATE, REASONS, Late

Rebuild = Literal["ready", "failed"]
REBUILDS: Final[tuple[Rebuild, ...]] = ("ready", "failed")
DECISIONS: Final[tuple[Decision, ...]] = get_args(Decision)
PASSES: Final = ("first", "second")
Omission = Literal["repeated", "asked"]
OMISSIONS: Final[tuple[Omission, ...]] = get_args(Omission)

LabelKind = Literal["sampled", "volunteered"]
LABEL_KINDS: Final[tuple[LabelKind, ...]] = get_args(LabelKind)
NO_GROUP: Final = "none"

Stage = Literal["read", "decode_queue", "decode", "queue", "infer", "post"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
CONFIDENCES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
SET_SIZES: Final = (1, 2, 3, 5, 10, 20, 50, 100, 500)
BATCHES: Final = (1, 2, 5, 10, 20, 40, 80, 160, 320)


class Metrics:
    """The metrics of one service, in a registry of its own.

    Every label value exists from the first scrape on: a rare class that has never been predicted
    is a zero, not an absence.
    """

    def __init__(self, manifest: Manifest, provider: str) -> None:
        self.registry = CollectorRegistry()
        # Images by label and group of the top class, of all versions that were served.
        self.class_predictions: Counts[tuple[str, Group]] = Counts()
        # It makes spans of sampled requests; without a collector no request is sampled.
        self.tracer: trace.Tracer = trace.NoOpTracer()
        # Those among them that the tail does not count, because they show what was counted before.
        self.class_repetitions: Counts[tuple[str, Group]] = Counts()
        self._provider = provider
        self._declare()
        self._model = Info("taillift_model", "The model that is served", registry=self.registry)
        self.name_model(manifest)
        ProcessCollector(registry=self.registry)

    def name_model(self, manifest: Manifest) -> None:
        """Say which model is served from now on."""
        self._model.info(
            {
                "name": manifest.name,
                "version": manifest.version,
                "backbone": manifest.backbone.architecture,
                "method": manifest.method.name,
                "provider": self._provider,
            }
        )

    def _declare(self) -> None:
        registry = self.registry
        self._predictions = Counter(
            "taillift_predictions", "Images by group of the top class", ["group"], registry=registry
        )
        self._confidence = Histogram(
            "taillift_confidence",
            "Confidence in the top class",
            ["group"],
            buckets=CONFIDENCES,
            registry=registry,
        )
        self._views_used = Histogram(
            "taillift_views_used",
            "Views that an image's answer used",
            ["ensemble"],
            buckets=range(1, VIEWS + 1),
            registry=registry,
        )
        self._reviews = Counter(
            "taillift_reviews",
            "Answers by whether a person should review them",
            ["group", "decision"],
            registry=registry,
        )
        self._set_size = Histogram(
            "taillift_set_size",
            "Labels in a prediction set",
            ["group"],
            buckets=SET_SIZES,
            registry=registry,
        )
        self._stages = Histogram(
            "taillift_stage_seconds",
            "Seconds per request (read, post), per image (decode_queue, decode, queue) or per "
            "batch (infer)",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_views = Histogram(
            "taillift_batch_views", "Views in a batch", buckets=BATCHES, registry=registry
        )
        self.queue_views = Gauge(
            "taillift_queue_views", "Views that wait for the device", registry=registry
        )
        self._pass_views = Counter(
            "taillift_pass_views",
            "Views sent to the device, in an image's first pass or in a later one",
            ["pass"],
            registry=registry,
        )
        self.predicted_wait = Gauge(
            "taillift_predicted_wait_seconds",
            "Seconds until an image that arrives now would be answered",
            registry=registry,
        )
        self._deadlines = Counter(
            "taillift_deadline_drops",
            "Requests dropped because of their deadline, by the stage they were in",
            ["stage"],
            registry=registry,
        )
        self._rebuilds = Counter(
            "taillift_session_rebuilds",
            "Attempts to load the model again after the device failed",
            ["outcome"],
            registry=registry,
        )
        self._rejections = Counter(
            "taillift_rejections",
            "Requests and images that were not answered",
            ["reason"],
            registry=registry,
        )
        self._omissions = Counter(
            "taillift_tail_omissions",
            "Images that were answered but not counted for the tail",
            ["reason"],
            registry=registry,
        )
        self._labels = Counter(
            "taillift_labels",
            "Labels that came back, by the group of the label (none: not a class) and by whether "
            "the image was chosen for labelling",
            ["group", "kind"],
            registry=registry,
        )
        self._none_of_the_classes = Counter(
            "taillift_none_of_the_classes",
            "Labels that came back and say that an image shows none of the classes",
            registry=registry,
        )
        self.tail_save_failures = Counter(
            "taillift_tail_save_failures",
            "Saves of the tail's statistics that failed",
            registry=registry,
        )
        self.ready = Gauge("taillift_ready", "1 if /readyz answers 200", registry=registry)
        for group in GROUPS:
            self._predictions.labels(group)
            self._confidence.labels(group)
            self._set_size.labels(group)
            for decision in DECISIONS:
                self._reviews.labels(group, decision)
        for group_or_none in (*GROUPS, NO_GROUP):
            for kind in LABEL_KINDS:
                self._labels.labels(group_or_none, kind)
        for stage in STAGES:
            self._stages.labels(stage)
        for reason in REASONS:
            self._rejections.labels(reason)
        for ensemble in Ensemble:
            self._views_used.labels(ensemble)
        for name in PASSES:
            self._pass_views.labels(name)
        for late in LATE:
            self._deadlines.labels(late)
        for omission in OMISSIONS:
            self._omissions.labels(omission)
        for outcome in REBUILDS:
            self._rebuilds.labels(outcome)

    def count_prediction(self, group: Group, confidence: float) -> None:
        """Count one image by the group of its top class."""
        self._predictions.labels(group).inc()
        self._confidence.labels(group).observe(confidence)

    def count_decision(self, group: Group, decision: Decision) -> None:
        """Count an answer by whether a person should review it."""
        self._reviews.labels(group, decision).inc()

    def count_set(self, group: Group, labels: int) -> None:
        """Count a prediction set by its size and the group of its answer."""
        self._set_size.labels(group).observe(labels)

    def count_omission(self, reason: Omission) -> None:
        """Count an image that was answered but not counted for the tail."""
        self._omissions.labels(reason).inc()

    def count_label(self, group: Group | None, kind: LabelKind) -> None:
        """Count a label that came back; without a group it is none of the classes."""
        self._labels.labels(group or NO_GROUP, kind).inc()
        if group is None:
            self._none_of_the_classes.inc()

    def count_views(self, views: int, ensemble: Ensemble) -> None:
        """Count one image's answer and the views that it used."""
        self._views_used.labels(ensemble).observe(views)

    def count_pass(self, number: int, views: int) -> None:
        """Count views that go to the device in an image's pass `number`, from 1."""
        self._pass_views.labels(PASSES[min(number, len(PASSES)) - 1]).inc(views)

    def count_missed_deadline(self, stage: Late) -> None:
        """Count a request that missed its deadline or would miss it."""
        self._deadlines.labels(stage).inc()

    def count_rebuild(self, outcome: Rebuild) -> None:
        """Count an attempt to load the model again."""
        self._rebuilds.labels(outcome).inc()

    def count_rejection(self, reason: str) -> None:
        """Count a request or image that was not answered; `reason` is one of `REASONS`."""
        self._rejections.labels(reason).inc()

    def record_stage(self, stage: Stage, seconds: float) -> None:
        """Record the duration of a stage."""
        self._stages.labels(stage).observe(seconds)

    def record_span(self, stage: Stage, start: float, end: float) -> None:
        """Add a stage to the trace of the current request, if it is sampled.

        `start` and `end` are on the clock of `perf_counter`.
        """
        if trace.get_current_span().is_recording():
            ahead = time_ns() - perf_counter_ns()
            span = self.tracer.start_span(stage, start_time=ahead + round(1e9 * start))
            span.end(ahead + round(1e9 * end))

    @contextmanager
    def time_stage(self, stage: Stage) -> Iterator[None]:
        """Record the duration of the block, even if it raises, and its span."""
        start = perf_counter()
        try:
            yield
        finally:
            end = perf_counter()
            self.record_stage(stage, end - start)
            self.record_span(stage, start, end)
