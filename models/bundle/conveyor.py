"""Many photos on the way through a bundle: threads decode the next ones while the graph runs."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles, Pixels
from taillift.models.bundle.classifier import BATCH_VIEWS, AnyImage, Classifier
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs
from taillift.models.bundle.images import ImageError, ModelFailureError
from taillift.models.bundle.predictor import Prediction
from taillift.models.errors import UserError, first_line

# Batches that are decoded in advance. They, and the images that the threads hold, are all that is
# in memory at once.
AHEAD: Final = 2


def predictions(
    classifier: Classifier,
    images: Iterable[AnyImage | ImageError],
    ensemble: Ensemble,
    threads: int,
    log_prior: Doubles | None = None,
    coverage: float | None = None,
) -> Iterator[Prediction | ImageError]:
    """Yield each image's prediction in order, or the reason why there is none.

    `threads` images are decoded at the same time; the other arguments are those of
    `Classifier.predictions`. Raises what `outputs` raises.
    """
    for output in outputs(classifier, images, ensemble, threads):
        if isinstance(output, ImageError):
            yield output
        else:
            yield classifier.predictor.predict(output, ensemble, log_prior, coverage)


def outputs(
    classifier: Classifier,
    images: Iterable[AnyImage | ImageError],
    ensemble: Ensemble,
    threads: int,
) -> Iterator[ImageOutputs | ImageError]:
    """Yield each image's outputs in order, or the reason why there are none.

    An error among the images stays in its place.

    Raises `UserError` if `ensemble` is adaptive and the bundle has no exit rule, or if the model
    fails on every image.
    """
    classifier.predictor.stages(ensemble)  # Raises before any image is read.
    length, source = BATCH_VIEWS // ensemble.views, iter(images)
    waiting: deque[Future[Pixels | ImageError]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")

    def decode(image: AnyImage | ImageError) -> Pixels | ImageError:
        if isinstance(image, ImageError):
            return image
        try:
            return classifier.canvas(image)
        except ImageError as error:
            return error

    def refill() -> None:
        new = islice(source, AHEAD * length - len(waiting))
        waiting.extend(pool.submit(decode, image) for image in new)

    try:
        refill()
        while waiting:
            batch = [waiting.popleft() for _ in range(min(length, len(waiting)))]
            refill()
            yield from answers(classifier, [task.result() for task in batch], ensemble)
    finally:
        pool.shutdown(cancel_futures=True)


def answers(
    classifier: Classifier, batch: list[Pixels | ImageError], ensemble: Ensemble
) -> list[ImageOutputs | ImageError]:
    """Return the outputs of a batch of canvases; an error in it stays in its place.

    If the model fails on the batch, each image is run alone, so that only the one that it fails on
    is lost. Raises `UserError` if it fails on a black image, too.
    """
    good = [canvas for canvas in batch if not isinstance(canvas, ImageError)]
    try:
        found = iter(list(classifier.outputs(good, ensemble)))
    except Exception as error:  # ONNX Runtime's errors have no common base.
        if len(batch) > 1:
            return [answers(classifier, [canvas], ensemble)[0] for canvas in batch]
        size, reason = classifier.manifest.preprocessing.size, first_line(error)
        try:
            classifier.run(np.zeros((1, size, size, 3), np.uint8))
        except Exception:
            raise UserError(f"the model fails on every image: {reason}") from error
        return [ModelFailureError(f"the model fails on the image: {reason}")]
    return [canvas if isinstance(canvas, ImageError) else next(found) for canvas in batch]
