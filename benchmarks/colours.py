"""Measure what colour profiles change in a bundle's answers, and what reading photos costs.

    python -m benchmarks.colours [BUNDLE] [--before CHECKOUT] [--rounds 61]

The test photos of wardrobe-lt are stored as JPEGs of quality 95 in sRGB and in four wider spaces,
whose profiles are made here from their primaries. The table gives the accuracy as served and
the share of answers that differ from those for sRGB. Saving in sRGB at another quality or as a PNG
shows how much the answers depend on a JPEG's rounding alone, and a conversion here in double
precision how much on that of the code that serves. With --before, photos without a profile are also
decoded by the code of another checkout, in alternating rounds. Results are written to
benchmarks/results/colours.md.
"""

import argparse
import io
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from benchmarks.photos import SAMPLE
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.images import decode
from taillift.training.data.dataset import Dataset, load_dataset

Point = tuple[float, float]
D65: Final[Point] = (0.3127, 0.3290)
D50: Final[Point] = (0.3457, 0.3585)
# Bradford's cone responses, by which a white is adapted to another.
BRADFORD: Final = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
# Parameters g, a, b, c, d of sRGB's and Rec. 2020's curves: (a x + b)^g from d on, else c x.
SRGB_CURVE: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
REC2020_CURVE: Final = (1 / 0.45, 1 / 1.0993, 0.0993 / 1.0993, 1 / 4.5, 0.0812)


@dataclass(frozen=True)
class ColourSpace:
    """An RGB space: the chromaticities of red, green, blue and white, and its curve.

    `curve` has one number, a gamma, or five, those of ICC's parametric curve of type 3.
    """

    primaries: tuple[Point, Point, Point]
    white: Point
    curve: tuple[float, ...]


SRGB: Final = ColourSpace(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, SRGB_CURVE)
WIDER: Final = {
    "Display P3": ColourSpace(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65, SRGB_CURVE),
    "Adobe RGB": ColourSpace(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, (563 / 256,)),
    "ProPhoto": ColourSpace(((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50, (1.8,)),
    "Rec. 2020": ColourSpace(((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65, REC2020_CURVE),
}


def matrix_profile(space: ColourSpace, name: str = "a space", version: int = 4) -> bytes:
    """Return an ICC profile of a display with this space (ICC.1:2022, sections 7.2, 8.3 and 10).

    Version 2 has its curve as a table or a gamma, version 4 as parameters.
    """
    if version == 2:
        text = name.encode("ascii") + b"\0"
        described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
        curve = _sampled_curve(space.curve)
    else:
        text = name.encode("utf-16-be")
        described = b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(text), 28) + text
        kind = 0 if len(space.curve) == 1 else 3
        curve = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _fixed(space.curve)
    white = b"XYZ \0\0\0\0" + _fixed(_xyz(D50))
    tags = {b"desc": described, b"cprt": described, b"wtpt": white}
    for letter, column in zip((b"r", b"g", b"b"), primaries_at_d50(space).T, strict=True):
        tags |= {letter + b"XYZ": b"XYZ \0\0\0\0" + _fixed(column), letter + b"TRC": curve}
    return packed_profile(tags, version)


def primaries_at_d50(space: ColourSpace) -> Doubles:
    """Return the matrix [3, 3] from linear RGB to the XYZ of a profile, whose white is D50."""
    columns = np.array([_xyz(point) for point in space.primaries]).T
    white, target = _xyz(space.white), _xyz(D50)
    columns = columns * np.linalg.solve(columns, white)
    scale = np.diag((BRADFORD @ target) / (BRADFORD @ white))
    adapted: Doubles = np.linalg.inv(BRADFORD) @ scale @ BRADFORD @ columns
    return adapted


def linear(values: Doubles, curve: tuple[float, ...]) -> Doubles:
    """Return values of 0 to 1 in a space's curve as linear light."""
    if len(curve) == 1:
        return values ** curve[0]
    gamma, a, b, c, d = curve
    return np.where(values >= d, (a * values + b).clip(0) ** gamma, c * values)


def converted_exactly(photo: bytes, space: ColourSpace) -> Image.Image:
    """Return a JPEG in this space in sRGB, computed in double precision and rounded once."""
    values = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"), np.float64) / 255
    matrix = np.linalg.inv(primaries_at_d50(SRGB)) @ primaries_at_d50(space)
    light = (linear(values, space.curve) @ matrix.T).clip(0, 1)
    encoded = np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    return Image.fromarray((255 * encoded).round().clip(0, 255).astype(np.uint8))


def packed_profile(tags: dict[bytes, bytes], version: int, space: bytes = b"RGB ") -> bytes:
    """Return a profile with these tags: header, table of tags, and the tags at multiples of 4."""
    start = 128 + 4 + 12 * len(tags)
    table, contents = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(contents), len(data))
        contents += data + bytes(-len(data) % 4)
    header = struct.pack(
        ">I4sI4s4s4s", start + len(contents), bytes(4), version << 24, b"mntr", space, b"XYZ "
    )
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    return (header + _fixed(_xyz(D50))).ljust(128, b"\0") + table + contents


def _xyz(point: Point) -> Doubles:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _fixed(numbers: Sequence[float] | Doubles) -> bytes:
    return b"".join(struct.pack(">i", round(float(number) * 65536)) for number in numbers)


def _sampled_curve(curve: tuple[float, ...]) -> bytes:
    if len(curve) == 1:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(curve[0] * 256)) + bytes(2)
    light = 65535 * linear(np.linspace(0, 1, 1024), curve)
    return b"curv\0\0\0\0" + struct.pack(">I", len(light)) + light.round().astype(">u2").tobytes()


def stored_in(
    image: Image.Image, profile: bytes | None, tagged: bool = True, quality: int = 95
) -> bytes:
    """Return an sRGB image as a JPEG in the colours of a profile, which is in it if `tagged`."""
    file = io.BytesIO()
    if profile is not None:
        source = ImageCms.createProfile("sRGB")
        target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        image = ImageCms.buildTransform(source, target, "RGB", "RGB").apply(image)
    image.save(file, "JPEG", quality=quality, icc_profile=profile if tagged else None)
    return file.getvalue()


def as_png(image: Image.Image) -> bytes:
    """Return an image as a PNG, which loses nothing."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def predicted(classifier: Classifier, photos: Sequence[bytes]) -> NDArray[np.int64]:
    """Return the most probable class of each photo."""
    canvases = (classifier.canvas(photo) for photo in photos)
    outputs = classifier.outputs(canvases, classifier.predictor.usual_ensemble)
    return np.array([int(output.logits.argmax()) for output in outputs], np.int64)


def accuracies(
    classifier: Classifier, answers: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the accuracy of few-shot classes and the mean over all classes, in percent."""
    rates = np.array([(answers[labels == one] == one).mean() for one in np.unique(labels)])
    groups = [classifier.manifest.classes[one].group for one in np.unique(labels)]
    few = np.array([group == "few" for group in groups])
    return 100 * float(rates[few].mean()), 100 * float(rates.mean())


def compare_spaces(classifier: Classifier, dataset: Dataset) -> str:
    """Return the table of accuracies and changed answers."""
    assert dataset.test is not None
    order = {label: index for index, label in enumerate(classifier.manifest.labels)}
    labels = np.array([order[dataset.classes[label]] for label in dataset.test.labels])
    images = [decode(photo.read(), 4096) for photo in dataset.test.photos]
    plain = predicted(classifier, [stored_in(image, None) for image in images])
    stored = {"sRGB": plain}
    for quality in (94, 96):
        files = [stored_in(image, None, quality=quality) for image in images]
        stored[f"sRGB at quality {quality}"] = predicted(classifier, files)
    stored["sRGB as PNG"] = predicted(classifier, [as_png(image) for image in images])
    for name, space in WIDER.items():
        profile = matrix_profile(space, name)
        for tagged in (True, False):
            files = [stored_in(image, profile, tagged) for image in images]
            stored[name if tagged else f"{name}, profile lost"] = predicted(classifier, files)
            if tagged:
                exact = [as_png(converted_exactly(file, space)) for file in files]
                stored[f"{name}, converted exactly"] = predicted(classifier, exact)
    rows = []
    for name, answers in stored.items():
        few, mean = accuracies(classifier, answers, labels)
        changed = 100 * float((answers != plain).mean())
        rows.append([name, f"{few:.2f}", f"{mean:.2f}", f"{changed:.2f} %"])
    return markdown(["stored in", "few-shot", "mean class", "answers changed"], rows)


# Reads pickled photos, then decodes all of them for every line that it gets.
WORKER: Final = """
import pickle, sys, time
from pathlib import Path
from taillift.models.bundle.images import decode
photos = pickle.loads(Path(sys.argv[1]).read_bytes())
for _ in sys.stdin:
    start = time.thread_time()
    for photo in photos:
        decode(photo, 248)
    print((time.thread_time() - start) / len(photos), flush=True)
"""


def compare_checkouts(before: Path, photos: Sequence[bytes], rounds: int) -> str:
    """Return the table of milliseconds to decode a photo, in another checkout and in this one."""
    checkouts = {"before": before, "now": Path(__file__).parents[1]}
    times: dict[str, list[float]] = {name: [] for name in checkouts}
    with tempfile.NamedTemporaryFile() as file:
        file.write(pickle.dumps(list(photos)))
        file.flush()
        workers = {
            name: subprocess.Popen(
                [sys.executable, "-c", WORKER, file.name],
                cwd=folder,
                env={"PYTHONPATH": str(folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            for name, folder in checkouts.items()
        }
        for round_ in range(rounds):
            for name in sorted(workers, reverse=bool(round_ % 2)):
                stdin, stdout = workers[name].stdin, workers[name].stdout
                assert stdin is not None
                assert stdout is not None
                stdin.write("\n")
                times[name].append(1_000 * float(stdout.readline()))
        for worker in workers.values():
            worker.communicate()
    ratio = median(now / then for then, now in zip(times["before"], times["now"], strict=True))
    rows = [[name, f"{median(times[name]):.3f}", f"{min(times[name]):.3f}"] for name in times]
    rows.append(["now / before, median of rounds", f"{ratio:.3f}", ""])
    return markdown(["photos without a profile", "ms a photo, median", "least"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--before", type=Path, help="another checkout of taillift")
    parser.add_argument("--rounds", type=int, default=61)
    options = parser.parse_args()
    dataset = load_dataset(SAMPLE)
    assert dataset.test is not None
    parts = []
    if options.bundle is not None:
        parts.append(compare_spaces(Classifier.open(options.bundle), dataset))
    if options.before is not None:
        photos = [photo.read() for photo in dataset.test.photos]
        parts.append(compare_checkouts(options.before.resolve(), photos, options.rounds))
    write_result(RESULTS / "colours.md", parts)


if __name__ == "__main__":
    main()
