"""An open bundle: images in, predictions out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from io import IOBase
from os import PathLike
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypedDict, TypeVar, Unpack, cast, overload

import numpy as np
from PIL.Image import Image

from taillift.models.bundle import folder as layout
from taillift.models.bundle.arrays import Counts, Doubles, Pixels, chunks
from taillift.models.bundle.device import Device, Provider
from taillift.models.bundle.ensemble import (
    Ensemble,
    ImageOutputs,
    MeanLogits,
    Stages,
    mean_over_views,
    run_stages,
)
from taillift.models.bundle.images import (
    ImageError,
    UnreadableImageError,
    load,
    load_array,
    load_pil,
    views,
)
from taillift.models.bundle.known_counts import OTHER, Assigned, KnownCounts
from taillift.models.bundle.manifest import ClassInfo
from taillift.models.bundle.posterior import Prior, among, leaning, prior_of
from taillift.models.bundle.prediction_sets import LEAST, MOST
from taillift.models.bundle.predictor import Prediction, Predictor
from taillift.models.bundle.review import Decision, DecisionReason
from taillift.models.bundle.schema import FILES, MAX_PIXELS, Group, Precision
from taillift.models.bundle.session import CPU, Outputs, Session
from taillift.models.errors import UserError, did_you_mean, first_line
from taillift.models.names import indices_of_names

BATCH_VIEWS: Final = 40

# A path, an image file's bytes, a PIL image, or an array uint8 [H, W, 3] in RGB.
AnyImage = str | Path | bytes | Image | Pixels
Name = TypeVar("Name", bound=StrEnum)


class ClassifyOptions(TypedDict, total=False):
    """The options of `Classifier.classify`."""

    ensemble: str | None
    prior: str
    tail: float
    top_k: int
    coverage: float | None
    classes: Sequence[str] | None
    counts: Mapping[str, int | str] | None


class RankedClass(NamedTuple):
    label: str
    confidence: float
    group: Group


class AssignedClass(NamedTuple):
    """The class that fits the known counts; "other" has no group.

    `confidence` is its probability against the next best assignment, which gives the image the
    class `instead`: the image whose confidence is lowest is the one to look at.
    """

    label: str
    confidence: float
    group: Group | None
    instead: str

    @classmethod
    def of(cls, assigned: Assigned, classes: Sequence[ClassInfo]) -> "AssignedClass":
        """Name the class that an image was assigned to."""
        info = None if assigned.kind is None else classes[assigned.kind]
        instead = OTHER if assigned.instead is None else classes[assigned.instead].label
        label, group = (info.label, info.group) if info else (OTHER, None)
        return cls(label, assigned.confidence, group, instead)


@dataclass(frozen=True)
class Result:
    """One image's answer from `Classifier.classify`.

    `label`, `confidence` (0 to 1) and `group` are those of the most probable class, the first of
    `ranking`. `views` is the number of views that were looked at. `decision` is "accept" or
    "review", and `reason` its reason; None if the bundle cannot decide, under a prior other than
    the uniform one, or with a `tail`.
    `labels_in_set` is None without a `coverage`, and `assigned` without `counts`.
    """

    label: str
    confidence: float
    group: Group
    views: int
    decision: Decision | None
    ranking: tuple[RankedClass, ...]
    labels_in_set: tuple[str, ...] | None = None
    reason: DecisionReason | None = None
    assigned: AssignedClass | None = None

    @classmethod
    def of(cls, prediction: Prediction, classes: Sequence[ClassInfo], top_k: int) -> "Result":
        """Name the `top_k` most probable classes of a prediction."""
        ranking = tuple(
            RankedClass(
                classes[index].label, float(prediction.requested[index]), classes[index].group
            )
            for index in top(prediction.requested, top_k)
        )
        members = prediction.members
        return cls(
            *ranking[0],
            views=prediction.views,
            decision=prediction.decision,
            ranking=ranking,
            labels_in_set=None
            if members is None
            else tuple(classes[index].label for index in members),
            reason=prediction.reason,
        )


class Classifier:
    """A bundle's session and predictor.

    `classify` is the whole way in one call. `predictions`, `outputs` and `run` are its steps, from
    the last to the first, for callers that do a part of it themselves. Images with more than
    `max_pixels` are refused.
    """

    def __init__(
        self, session: Session, predictor: Predictor, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.session = session
        self.predictor = predictor
        self.manifest = predictor.manifest
        self.max_pixels = max_pixels

    @classmethod
    def open(
        cls,
        bundle: Path,
        device: Device = CPU,
        precision: Precision = Precision.FP32,
        max_pixels: int = MAX_PIXELS,
        verified: bool = False,
    ) -> "Classifier":
        """Open one of a bundle's graphs.

        The files are not hashed again if they are `verified`. Raises `UserError` if a hash, the
        provider, the graph or its logits are not as they must be.
        """
        manifest = layout.read_manifest(bundle)
        if not verified:
            layout.verify_files(bundle, manifest)
        predictor = Predictor.open(bundle, manifest, precision)
        session = Session(bundle / FILES[precision], device, manifest.preprocessing.size)
        check_golden(bundle, predictor, session)
        return cls(session, predictor, max_pixels)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        precision: str,
        provider: str,
        threads: int | None,
        max_pixels: int = MAX_PIXELS,
    ) -> "Classifier":
        """Open a bundle with options that are given by their names; raises `UserError`."""
        graph, runs_on = named(Precision, precision), named(Provider, provider)
        for name, value in (("threads", threads), ("max_pixels", max_pixels)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: give 1 or more")
        if graph is Precision.FP16 and runs_on is Provider.TENSORRT:
            # TensorRT makes fp16 of the fp32 graph by itself.
            device = Device(runs_on, threads, Precision.FP16)
            return cls.open(Path(path), device, max_pixels=max_pixels)
        return cls.open(Path(path), Device(runs_on, threads), graph, max_pixels)

    @overload
    def classify(  # type: ignore[overload-overlap]  # A path is iterable, too.
        self,
        images: AnyImage,
        *,
        errors: Literal["raise"] = "raise",
        **options: Unpack[ClassifyOptions],
    ) -> Result: ...

    @overload
    def classify(
        self,
        images: Iterable[AnyImage],
        *,
        errors: Literal["raise"] = "raise",
        **options: Unpack[ClassifyOptions],
    ) -> list[Result]: ...

    @overload
    def classify(  # type: ignore[overload-overlap]
        self, images: AnyImage, *, errors: Literal["return"], **options: Unpack[ClassifyOptions]
    ) -> Result | ImageError: ...

    @overload
    def classify(
        self,
        images: Iterable[AnyImage],
        *,
        errors: Literal["return"],
        **options: Unpack[ClassifyOptions],
    ) -> list[Result | ImageError]: ...

    def classify(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        ensemble: str | None = None,
        prior: str = "uniform",
        tail: float = 0.0,
        top_k: int = 5,
        coverage: float | None = None,
        classes: Sequence[str] | None = None,
        counts: Mapping[str, int | str] | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> object:
        """Classify one image, or several in batches.

        An image is a path, an image file's bytes, a PIL image or an array uint8 [H, W, 3] in RGB.
        One image gives one result; any other iterable of images (also an array [N, H, W, 3]) gives
        a list of results in the same order.

        `ensemble` is "off", "full" or "adaptive"; by default adaptive if it saves at least a
        quarter of the views, else full. `prior` says how often the classes are expected: "uniform",
        "train", or weights of the groups such as "many:0.6,medium:0.3,few:0.1". `tail`, 0 to 1,
        makes the answers lean toward the rare classes, as if the model had been trained with
        tau = 1 + `tail`.
        `coverage`, 0.5 to 0.99, adds to each result a set of labels that holds the right one so
        often, in rare classes too.

        `classes` are the labels that the images may show, if fewer than all. `counts` say how many
        of the images show each class (12, or "12±2"; "other" for none of the bundle's): each result
        is then also `assigned` the class that fits them best.

        Raises `UserError` for a wrong option and `ImageError`, which names the image and is a
        `UserError`, too, for an image that cannot be used. With `errors="return"` that error is the
        image's result instead. Raises `TypeError` for what is not an image at all.
        """
        if errors not in ("raise", "return"):
            raise UserError(f"errors {errors!r} is not known: choose raise or return")
        if isinstance(images, IOBase | bytearray | memoryview):
            raise not_an_image(images)  # Else its lines or bytes would be taken for images.
        chosen = named(Ensemble, ensemble) if ensemble else self.predictor.usual_ensemble
        counted = self.manifest.counts
        target = leaning(prior_of(prior, self.manifest), tail, counted)
        if classes is not None:
            names_of = [classes] if isinstance(classes, str) else classes
            allowed = indices_of_names(names_of, self.manifest.labels, "classes")
            target = among(target, allowed)
            top_k = min(top_k, len(allowed))
        known = None if counts is None else KnownCounts.of(counts.items(), self.manifest.labels)
        if top_k < 1:
            raise UserError(f"top_k is {top_k}: ask for at least 1 class")
        self.check_coverage(coverage)
        single = isinstance(images, str | Path | bytes | Image) or (
            isinstance(images, np.ndarray) and images.ndim != 4
        )
        names: list[str] = []

        def remembered() -> Iterator[AnyImage]:
            several = cast("Iterable[AnyImage]", [images] if single else images)
            for number, image in enumerate(several):
                names.append(str(image) if isinstance(image, str | Path) else f"image {number}")
                yield image

        results: list[Result | ImageError] = []
        uniform: list[Doubles | None] = []
        changed = prior != Prior.UNIFORM or tail > 0 or classes is not None
        for prediction in self.predictions(
            remembered(), chosen, target if changed else None, coverage
        ):
            uniform.append(None if isinstance(prediction, ImageError) else prediction.uniform)
            if not isinstance(prediction, ImageError):
                results.append(Result.of(prediction, self.manifest.classes, top_k))
            elif errors == "return":
                results.append(prediction)
            else:
                raise type(prediction)(f"{names[len(results)]}: {prediction}") from prediction
        if known is not None:
            pairs = zip(results, known.assign(uniform), strict=True)
            results = [
                replace(result, assigned=AssignedClass.of(assigned, self.manifest.classes))
                if isinstance(result, Result) and assigned
                else result
                for result, assigned in pairs
            ]
        return results[0] if single else results

    def check_coverage(self, coverage: float | None) -> None:
        """Raise `UserError` if the bundle has no sets for this coverage."""
        if coverage is not None and not LEAST <= coverage <= MOST:
            raise UserError(f"coverage {coverage} is not from {LEAST} to {MOST}")
        if coverage is not None and self.predictor.variant.sets is None:
            raise UserError("this bundle has no calibration to make sets from: leave out coverage")

    def predictions(
        self,
        images: Iterable[AnyImage],
        ensemble: Ensemble,
        log_prior: Doubles | None = None,
        coverage: float | None = None,
    ) -> Iterator[Prediction | ImageError]:
        """Yield each image's prediction, or the reason why the image cannot be used.

        The arguments are those of `Predictor.predict`. Raises `UserError` if `ensemble` is adaptive
        and the bundle has no exit rule.
        """
        self.predictor.stages(ensemble)  # Raises before any image is read.
        for batch in chunks(images, BATCH_VIEWS // ensemble.views):
            canvases: list[Pixels | ImageError] = []
            for image in batch:
                try:
                    canvases.append(self.canvas(image))
                except ImageError as error:
                    canvases.append(error)
            good = [canvas for canvas in canvases if not isinstance(canvas, ImageError)]
            outputs = self.outputs(good, ensemble)
            for canvas in canvases:
                if isinstance(canvas, ImageError):
                    yield canvas
                else:
                    yield self.predictor.predict(next(outputs), ensemble, log_prior, coverage)

    def canvas(self, image: AnyImage) -> Pixels:
        """Return an image's canvas, uint8 [height, width, 3]; raises `ImageError`."""
        preprocessing = self.manifest.preprocessing
        match image:
            case bytes():
                return load(image, preprocessing, self.max_pixels)
            case str() | Path():
                try:
                    data = Path(image).read_bytes()
                except OSError as error:
                    raise UnreadableImageError(str(error.strerror)) from error
                except ValueError as error:  # The path has a zero byte.
                    raise UnreadableImageError(str(error)) from error
                return load(data, preprocessing, self.max_pixels)
            case Image():
                return load_pil(image, preprocessing, self.max_pixels)
            case np.ndarray():
                return load_array(image, preprocessing, self.max_pixels)
        raise not_an_image(image)

    def mean_logits(
        self, canvases: Iterable[Pixels], ensemble: Ensemble = Ensemble.FULL
    ) -> MeanLogits:
        """Return the logits of `outputs` and their numbers of views as two arrays."""
        outputs = list(self.outputs(canvases, ensemble))
        logits = np.empty((len(outputs), len(self.manifest.classes)), np.float32)
        for row, output in zip(logits, outputs, strict=True):
            row[:] = output.logits
        return MeanLogits(logits, np.array([output.views for output in outputs], np.int64))

    def outputs(
        self, canvases: Iterable[Pixels], ensemble: Ensemble = Ensemble.FULL
    ) -> Iterator[ImageOutputs]:
        """Yield each image's outputs, which are computed in batches of at most `BATCH_VIEWS` views.

        Raises `UserError` if `ensemble` is adaptive and the bundle has no exit rule.
        """
        rule, size = self.predictor.stages(ensemble), self.manifest.preprocessing.size
        cut = (views(canvas, size, ensemble.views) for canvas in canvases)
        for batch in chunks(cut, BATCH_VIEWS // ensemble.views):
            yield from self._batch_outputs(np.stack(batch), rule)

    def _batch_outputs(self, pixels: Pixels, rule: Stages) -> Iterator[ImageOutputs]:
        """Run views [N, V, S, S, 3], stage by stage."""
        count, most = pixels.shape[:2]
        view_logits = np.empty((count, most, len(self.manifest.classes)), np.float32)
        features: list[list[np.ndarray]] = [[] for _ in range(count)]

        def fill(rows: Counts, first: int, last: int) -> None:
            outputs = self.run(np.concatenate(pixels[rows, first:last]))
            view_logits[rows, first:last] = outputs.logits.reshape(len(rows), last - first, -1)
            for row, part in zip(rows, np.split(outputs.features, len(rows)), strict=True):
                features[row].append(part)

        logits, taken = run_stages(rule, view_logits, fill)
        for row, parts, number in zip(logits, features, taken.tolist(), strict=True):
            yield ImageOutputs(row, mean_over_views(np.concatenate(parts), number)[0], number)

    def run(self, pixels: Pixels) -> Outputs:
        """Run the graph on views uint8 [N, S, S, 3].

        This is the one place that takes out the log prior that a graph's logits may carry. The
        logits of everything behind it carry no prior.
        """
        logits, features = self.session.run(pixels)
        return Outputs(self.predictor.without_prior(logits), features)


def check_golden(bundle: Path, predictor: Predictor, session: Session) -> None:
    """Check that graph, manifest and golden views are of one model, and that it computes alike.

    Raises `UserError` if it does not compute alike.
    """
    manifest, file = predictor.manifest, FILES[predictor.precision]
    pixels, expected = layout.read_golden(bundle, predictor.precision)
    side = manifest.preprocessing.size
    if pixels.shape[1:] != (side, side, 3):
        raise UserError(
            f"{bundle / layout.MANIFEST} says views of {side} x {side} x 3 and {layout.GOLDEN} has "
            f"{' x '.join(map(str, pixels.shape[1:]))}: export the bundle again"
        )
    try:
        logits = session.run(pixels).logits
    except Exception as error:  # ONNX Runtime's errors have no common base.
        raise UserError(
            f"{bundle / file} fails on the views of {layout.GOLDEN} "
            f"({first_line(error)}): try another provider, or export the bundle again"
        ) from error
    if logits.shape != expected.shape:
        raise UserError(
            f"{bundle / file} gives logits {logits.shape} and {layout.GOLDEN} has "
            f"{expected.shape}: export the bundle again"
        )
    if logits.shape[1] != len(manifest.classes):
        raise UserError(
            f"{bundle / layout.MANIFEST} lists {len(manifest.classes)} classes and "
            f"{file} gives {logits.shape[1]} logits: export the bundle again"
        )
    difference = float(np.abs(logits - expected).max())
    if not difference <= session.device.golden_tolerance(predictor.precision):
        raise UserError(
            f"{bundle} gives other logits here than where it was made (they differ by "
            f"{difference:.3g}): the device or its libraries compute wrongly; try another provider"
        )


def not_an_image(thing: object) -> TypeError:
    """Return the error for an object of another type than `AnyImage`."""
    return TypeError(
        "an image is a str or pathlib.Path, bytes, a PIL image or a numpy array, and not "
        f"{type(thing).__name__}"
    )


def top(probabilities: Doubles, k: int) -> Sequence[int]:
    """Return the `k` most probable classes of [C], the most probable first; ties in class order."""
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [int(index) for index in order]


def named(options: type[Name], name: str) -> Name:
    """Return the option with this name; raises `UserError` if there is none."""
    try:
        return options(name)
    except ValueError:
        raise UserError(
            f"{options.__name__.lower()} {name!r} is not known{did_you_mean(str(name), options)}: "
            f"choose one of {', '.join(options)}"
        ) from None
