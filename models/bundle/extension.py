"""Bundles with more classes, or fewer, than the bundle they are made from; the tower stays."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Floats
from taillift.models.bundle.atomic import check_replaceable, file_sha256
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.conveyor import outputs
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.feature_statistics import STATISTICS, FeatureStatistics
from taillift.models.bundle.folder import (
    DELTA,
    MANIFEST,
    MODEL,
    new_bundle,
    read_golden,
    write_golden,
)
from taillift.models.bundle.head_training import DRAWS, new_rows, train_head
from taillift.models.bundle.images import ImageError
from taillift.models.bundle.manifest import ClassInfo, Manifest, Variant
from taillift.models.bundle.photo_sources import entries_of, is_photo, is_system_name
from taillift.models.bundle.schema import MAX_PIXELS, Precision
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.models.names import canonical, indices_by_name, indices_of_names, refuse_two_forms

logger = logging.getLogger(__name__)

# The name of a checkpoint's metadata, and of its head's rows.
KEY, ROWS = "taillift", "head.weight"
SPLITS: Final = ("train", "val", "test")
# Names of classes in a note.
MOST_NAMES: Final = 10
# How far apart the lengths of a cosine head's rows may be, as a share of them.
LENGTH_TOLERANCE: Final = 1e-3
# How far logits may be from the product of features and head, and features from the old tower's.
LOGIT_TOLERANCE: Final = 1e-3
FEATURE_TOLERANCE: Final = 1e-5


@dataclass(frozen=True)
class ChangedBundle:
    """The manifest of a bundle with other classes, and in lines what it does not have any more."""

    manifest: Manifest
    left_out: tuple[str, ...]


def extend(
    bundle: Path,
    photos: Path,
    target: Path,
    *,
    more: bool = False,
    replace: bool = False,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> ChangedBundle:
    """Make a bundle at `target` that also knows the classes of `photos`, CLASS/*.jpg.

    Nobody needs the old photos: while the head is trained, their classes are drawn from the
    bundle's statistics, equally often. The tower stays as it is. Only if `more`, photos may be of
    classes that the bundle has already.

    Raises `UserError` if the bundle is damaged, has no statistics or not a cosine head, if a class
    is known and `more` is false, if a class has no photo that can be used, or if `target` exists
    and `replace` is false.
    """
    check_replaceable(target, MANIFEST if replace else None)
    old = OldBundle(bundle, max_pixels)
    statistics = old.statistics()
    by_class = photos_by_class(photos)
    known = indices_by_name(old.manifest.labels)
    if (again := [label for label in by_class if label in known]) and not more:
        raise UserError(
            f"{photos} has photos of {again[0]!r}, and so has {bundle}: pass --more if these are "
            "more photos of the class, or rename the folder"
        )
    features, names = features_of(old.classifier, by_class)
    classes, rows = classes_with(old.manifest, names)
    places = indices_by_name([info.label for info in classes])
    labels = np.array([places[name] for name in names], np.int64)

    # The head: old rows from where they are, new ones from the means of their classes.
    before = old.weight / np.float32(old.scale)
    new = FeatureStatistics.of(features, labels, len(classes))
    joined = statistics.only(rows).joined(new)
    is_old = np.array([row is not None for row in rows])
    start = new_rows(before, statistics.means, joined.means)
    start[is_old] = before[[row for row in rows if row is not None]]
    draws = np.where(is_old, DRAWS, 0)
    directions = train_head(start, old.scale, features, labels, joined, draws, seed)

    tail = chosen_tail(old.manifest)
    prior = "other" if tail else "uniform"
    method = old.manifest.method.model_copy(update={"prior": prior})
    changes = {"classes": tuple(classes), "method": method}
    note = f"photos of {first_names(list(by_class))} were added to bundle {old.manifest.version}"
    weight = (old.scale * directions).astype(np.float32)
    manifest = old.manifest.model_copy(update=changes)
    return old.write(target, replace, manifest, weight, joined, note)


def forget(
    bundle: Path, labels: Iterable[str], target: Path, *, replace: bool = False
) -> ChangedBundle:
    """Make a bundle at `target` without the classes `labels`: no row of the head, no mean feature.

    The other rows stay as they are. Raises `UserError` if the bundle is damaged, has no cosine
    head, lacks a class, or would have fewer than two, or if `target` exists and `replace` is false.
    """
    check_replaceable(target, MANIFEST if replace else None)
    old = OldBundle(bundle)
    gone = indices_of_names(labels, old.manifest.labels, str(bundle))
    kept = [index for index in range(len(old.manifest.classes)) if index not in gone]
    if len(kept) < 2:
        raise UserError(f"{bundle} would keep {len(kept)} of its classes: keep at least 2")
    infos = [old.manifest.classes[index] for index in kept]
    total = sum(info.prior for info in infos)
    classes = tuple(
        info.model_copy(update={"prior": info.prior / total, "accuracy": None}) for info in infos
    )
    manifest = old.manifest.model_copy(update={"classes": classes})
    statistics = old.statistics().only([*kept]) if STATISTICS in old.manifest.files else None
    forgotten = first_names([old.manifest.labels[index] for index in gone])
    note = f"bundle {old.manifest.version} also knew {forgotten}"
    return old.write(target, replace, manifest, old.weight[kept], statistics, note)


class OldBundle:
    """A bundle whose head is read, to be written again with other rows.

    `weight` [C, D] are the rows of its cosine head; `scale` is their length.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS) -> None:
        """Raise `UserError` if the bundle is damaged or its head is not a cosine head."""
        if path.is_file():
            raise UserError(
                f"{path} is not a bundle: make one of a checkpoint with `taillift export`, and "
                "change that"
            )
        try:
            import onnx
            import safetensors.numpy  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name} is not installed, and the head of a graph cannot be replaced "
                "without it: pip install onnx safetensors"
            ) from error
        self.path = path
        self.classifier = Classifier.open(path, max_pixels=max_pixels)
        self.manifest = self.classifier.manifest
        self._graph = onnx.load(str(path / MODEL))
        constants = {constant.name: constant for constant in self._graph.graph.initializer}
        (node,) = (node for node in self._graph.graph.node if "logits" in node.output)
        not_cosine = UserError(
            f"{path} has no cosine head, the only kind that can be changed: train with "
            "head.kind=cosine, and export"
        )
        if not (
            node.op_type in {"Gemm", "MatMul"}
            and len(node.input) == 2
            and node.input[0] == "features"
            and node.input[1] in constants
        ):
            raise not_cosine
        self._constant = constants[node.input[1]]
        self._transposed = any(part.name == "transB" and part.i for part in node.attribute)
        stored = onnx.numpy_helper.to_array(self._constant)
        self.weight: Floats = stored if self._transposed else stored.T
        lengths = np.linalg.norm(self.weight, axis=1)
        self.scale = float(lengths.mean())
        if np.ptp(lengths) > LENGTH_TOLERANCE * self.scale:
            raise not_cosine
        # The golden views, and what the tower and the rows make of them.
        self._pixels, logits = read_golden(path)
        self._features = self.classifier.session.run(self._pixels).features
        if not close(self._features @ self.weight.T, logits, LOGIT_TOLERANCE):
            raise not_cosine

    def statistics(self) -> FeatureStatistics:
        """Return the bundle's statistics; raises `UserError` if it has none."""
        if STATISTICS not in self.manifest.files:
            raise UserError(
                f"{self.path} has no {STATISTICS}, because an older taillift made it: export it "
                "again from its checkpoint and photos"
            )
        return FeatureStatistics.read(self.path, *self.weight.shape)

    def write(
        self,
        target: Path,
        replace: bool,
        manifest: Manifest,
        weight: Floats,
        statistics: FeatureStatistics | None,
        note: str,
    ) -> ChangedBundle:
        """Write the bundle with the classes of `manifest` and the rows `weight` [C, D].

        `note` says what was changed. The new graph must give the old features, and the product of
        features and rows as logits, on the golden views; raises `UserError` if it does not.
        """
        left_out = []
        if variants := [str(one) for one in self.manifest.variants if one is not Precision.FP32]:
            left_out.append(
                f"{', '.join(variants)}: made from the old graph; `taillift export` makes new "
                "ones, with the photos of all classes"
            )
        had = self.manifest.variants[Precision.FP32]
        if had.calibration or had.exit or had.sets or had.review or had.evaluation:
            left_out.append(
                "calibration and report: they were of the old classes; `taillift calibrate` makes "
                "new ones, with val/ photos of all classes"
            )
        with new_bundle(target, replace) as new:
            self._write_graph(new.path / MODEL, weight)
            side = self.manifest.preprocessing.size
            outputs = Session(new.path / MODEL, side=side).run(self._pixels)
            if not (
                close(outputs.features, self._features, FEATURE_TOLERANCE)
                and close(outputs.logits, self._features @ weight.T, LOGIT_TOLERANCE)
            ):
                raise UserError(
                    f"no bundle was written: with another head {self.path / MODEL} gives other "
                    "features on its golden views; export it again"
                )
            write_golden(new.path, self._pixels, outputs.logits)
            if statistics:
                statistics.save(new.path)
            if DELTA in self.manifest.files:
                write_delta(self.path / DELTA, new.path / DELTA, manifest, weight / self.scale)
            changes = {
                "taillift_version": version("taillift"),
                "variants": {Precision.FP32: Variant(notes=(note, *left_out))},
            }
            written = new.finish(
                lambda files: manifest.model_copy(update=changes | {"files": files})
            )
        return ChangedBundle(written, tuple(left_out))

    def _write_graph(self, path: Path, weight: Floats) -> None:
        """Write the graph with other rows of the head; nothing else in it changes."""
        import onnx

        stored = np.ascontiguousarray(weight if self._transposed else weight.T)
        graph = onnx.ModelProto()
        graph.CopyFrom(self._graph)
        for constant in graph.graph.initializer:
            if constant.name == self._constant.name:
                constant.CopyFrom(onnx.numpy_helper.from_array(stored, constant.name))
        for output in graph.graph.output:
            if output.name == "logits":
                output.type.tensor_type.shape.dim[1].dim_value = len(weight)
        onnx.save(graph, str(path))


def write_delta(source: Path, target: Path, manifest: Manifest, rows: Floats) -> None:
    """Write a checkpoint with other classes, and the rows [C, D] of its head.

    `taillift calibrate` reads it. Raises `UserError` if `source` is not a checkpoint.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    try:
        with safe_open(source, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            document = json.loads((file.metadata() or {})[KEY])
        names = dict(zip(document["classes"], document["names"], strict=True))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{source} is not a checkpoint ({error}): export the bundle again"
        ) from error
    document |= {
        "classes": manifest.labels,
        "names": [names.get(label, label) for label in manifest.labels],
        "counts": manifest.counts,
        "prompts": [info.prompt for info in manifest.classes],
    }
    tensors[ROWS] = np.ascontiguousarray(rows, np.float32)
    save_file(tensors, target, {KEY: json.dumps(document)})


def photos_by_class(folder: Path) -> dict[str, list[Path]]:
    """Return the photos of each class of `folder/CLASS/` or `folder/train/CLASS/`, by name.

    Of files with the same content in one class, the first counts. Raises `UserError` if there is
    no class, or a class without photos.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: put new photos into {folder}/CLASS/")
    root = folder / "train" if (folder / "train").is_dir() else folder
    places = sorted(
        path for path in root.iterdir() if path.is_dir() and not is_system_name(path.name)
    )
    if not places or (root is folder and {place.name for place in places} <= {*SPLITS}):
        raise UserError(f"{root} has no classes: put the photos of each into a folder of its name")
    refuse_two_forms((place.name for place in places), str(root))
    by_class: dict[str, list[Path]] = {}
    for place in places:
        photos = sorted(filter(is_photo, entries_of(place, recursive=True)))
        if not photos:
            raise UserError(f"{place} has no photos: add some, or remove the folder")
        distinct: dict[str, Path] = {}
        for photo in photos:
            distinct.setdefault(file_sha256(photo).hexdigest(), photo)
        if copies := len(photos) - len(distinct):
            logger.warning("%s: %d copies of other photos are left out", place, copies)
        by_class[canonical(place.name)] = list(distinct.values())
    return by_class


def classes_with(
    manifest: Manifest, names: Sequence[str]
) -> tuple[list[ClassInfo], list[int | None]]:
    """Return all classes after photos of the classes `names` [N] are added, under a uniform prior.

    They are in the order of their counts, equal ones by name, as in a set of photos. With them
    comes the index that each has in `manifest`, None for a new one. If the tau of the answers was
    chosen, the prior holds its shift for the new counts.
    """
    added, known = Counter(names), indices_by_name(manifest.labels)
    new = [label for label in added if label not in known]
    share = 1 / (len(manifest.classes) + len(new))
    pairs: list[tuple[ClassInfo, int | None]] = []
    for index, info in enumerate(manifest.classes):
        count = info.count + added[canonical(info.label)]
        changes: dict[str, object] = {"prior": share, "accuracy": None}
        if count != info.count:
            changes |= {"count": count, "group": manifest.thresholds.group(count)}
        pairs.append((info.model_copy(update=changes), index))
    for label in new:
        group = manifest.thresholds.group(added[label])
        info = ClassInfo(label=label, prompt=label, count=added[label], group=group, prior=share)
        pairs.append((info, None))
    pairs.sort(key=lambda pair: (-pair[0].count, pair[0].label))
    weights = np.array([info.count for info, _ in pairs]) ** chosen_tail(manifest)
    priors = (weights / weights.sum()).tolist()
    infos = [
        info.model_copy(update={"prior": prior})
        for (info, _), prior in zip(pairs, priors, strict=True)
    ]
    return infos, [index for _, index in pairs]


def chosen_tail(manifest: Manifest) -> float:
    """Return how far answers lean toward the rare classes: tau - 1, and 0 without a choice."""
    tau = manifest.method.tau
    return 0.0 if tau is None else tau - 1


def features_of(
    classifier: Classifier, by_class: dict[str, list[Path]]
) -> tuple[Floats, list[str]]:
    """Return the unit features [N, D] of the photos' centre views, and the class of each.

    A photo that cannot be used is left out with a warning. Raises `UserError` if a class has no
    other.
    """
    pairs = [(label, photo) for label, photos in by_class.items() for photo in photos]
    found = outputs(
        classifier, (photo for _, photo in pairs), Ensemble.OFF, threads=os.cpu_count() or 1
    )
    rows, labels = [], []
    for (label, photo), output in zip(pairs, found, strict=True):
        if isinstance(output, ImageError):
            logger.warning("%s is left out: %s", photo, output)
        else:
            rows.append(output.features)
            labels.append(label)
    for label, photos in by_class.items():
        if label not in labels:
            raise UserError(f"{photos[0].parent} has no photo that can be used: add one")
    return np.stack(rows).astype(np.float32), labels


def first_names(names: Sequence[str]) -> str:
    """Return the first few of many names, and how many more there are."""
    others = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + others


def close(values: Floats, expected: Floats, tolerance: float) -> bool:
    """Return whether two arrays have one shape and differ by at most `tolerance`; false for NaN."""
    return values.shape == expected.shape and bool(np.abs(values - expected).max() <= tolerance)
