"""Bundles with more classes, or fewer, than the bundle they are made from; the tower stays."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from taillift.models.bundle.arrays import Floats, Labels
from taillift.models.bundle.atomic import check_replaceable, file_sha256
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.conveyor import outputs
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.feature_statistics import PREFIX, STATISTICS, FeatureStatistics, unit
from taillift.models.bundle.folder import (
    DELTA,
    MANIFEST,
    MODEL,
    new_bundle,
    read_golden,
    write_golden,
)
from taillift.models.bundle.head_training import extended_head
from taillift.models.bundle.images import ImageError
from taillift.models.bundle.manifest import ClassInfo, Manifest, Variant
from taillift.models.bundle.photo_sources import entries_of, is_photo, is_system_name
from taillift.models.bundle.schema import MAX_PIXELS, Precision, SchemaModel
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.models.names import canonical, indices_by_name, indices_of_names, refuse_two_forms

logger = logging.getLogger(__name__)

# The name of a checkpoint's metadata, and of its head's rows.
KEY, ROWS = "taillift", "head.weight"
# The loss of `extended_head`, as recipes name it.
ADJUSTED: Final = "logit-adjusted"
SPLITS: Final = ("train", "val", "test")
# Names of classes in a note.
MOST_NAMES: Final = 10
# How far apart the lengths of a cosine head's rows may be, as a share of them.
LENGTH_TOLERANCE: Final = 1e-3
# How far logits may be from the product of features and head, and features from the old tower's.
LOGIT_TOLERANCE: Final = 1e-3
FEATURE_TOLERANCE: Final = 1e-5


class ClassChange(SchemaModel):
    """How the classes of a checkpoint or bundle were changed.

    `parent` names what it was made from; of a checkpoint, `sha256` is the hash of the file. `added`
    has the number of new photos of each class, `forgotten` the classes that were removed. `seed`
    and `taillift` are those of the head's training; `tuned` is the number of steps in which the
    tuners were trained, too.
    """

    parent: str
    sha256: str = ""
    added: dict[str, int] = Field(default_factory=dict)
    forgotten: tuple[str, ...] = ()
    seed: int | None = None
    tuned: int = 0
    taillift: str

    def __str__(self) -> str:
        if self.added:
            too = f", in {self.tuned} steps of the tuners" if self.tuned else ""
            return f"photos of {first_names(list(self.added))} were added to {self.parent}{too}"
        return f"{self.parent} also knew {first_names(self.forgotten)}"


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
    if not more:
        refuse_known(by_class, old.manifest.labels, photos, bundle)
    found = outputs(
        old.classifier,
        (photo for members in by_class.values() for photo in members),
        Ensemble.OFF,
        threads=os.cpu_count() or 1,
    )
    features, names = usable_features(
        by_class, (one if isinstance(one, ImageError) else one.features for one in found)
    )
    classes, indices = classes_with(old.manifest, names)
    labels = labels_of(names, [info.label for info in classes])
    directions, joined = extended_head(
        unit(old.weight), old.scale, statistics, indices, features, labels, seed
    )

    tail = chosen_tail(old.manifest)
    prior = "other" if tail else "uniform"
    method = old.manifest.method.model_copy(update={"prior": prior})
    changes = {"classes": tuple(classes), "method": method}
    weight = (old.scale * directions).astype(np.float32)
    manifest = old.manifest.model_copy(update=changes)
    change = old.change(added=dict(Counter(names)), seed=seed)
    return old.write(target, replace, manifest, weight, joined, change)


def forget(
    bundle: Path, labels: Iterable[str], target: Path, *, replace: bool = False
) -> ChangedBundle:
    """Make a bundle at `target` without the classes `labels`: no row of the head, no mean feature.

    The other rows stay as they are. Raises `UserError` if the bundle is damaged, has no cosine
    head, lacks a class, or would have fewer than two, or if `target` exists and `replace` is false.
    """
    check_replaceable(target, MANIFEST if replace else None)
    old = OldBundle(bundle)
    kept, forgotten = kept_classes(labels, old.manifest.labels, bundle)
    infos = [old.manifest.classes[index] for index in kept]
    total = sum(info.prior for info in infos)
    classes = tuple(
        info.model_copy(update={"prior": info.prior / total, "accuracy": None}) for info in infos
    )
    manifest = old.manifest.model_copy(update={"classes": classes})
    statistics = old.statistics().only([*kept]) if STATISTICS in old.manifest.files else None
    change = old.change(forgotten=forgotten)
    return old.write(target, replace, manifest, old.weight[kept], statistics, change)


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
                f"{self.path} has no {STATISTICS}, because an older taillift made it, or it was "
                "exported with photos of some classes alone: export it again from its checkpoint "
                "and all photos"
            )
        return FeatureStatistics.read(self.path, *self.weight.shape)

    def change(self, **changes: Any) -> ClassChange:
        """Return what the provenance says of a bundle that is made from this one."""
        parent = f"bundle {self.manifest.version}"
        return ClassChange(parent=parent, taillift=version("taillift"), **changes)

    def write(
        self,
        target: Path,
        replace: bool,
        manifest: Manifest,
        weight: Floats,
        statistics: FeatureStatistics | None,
        change: ClassChange,
    ) -> ChangedBundle:
        """Write the bundle with the classes of `manifest` and the rows `weight` [C, D].

        `change` goes into its notes. The new graph must give the old features, and the product of
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
            more = weight.shape[1] * (len(weight) - len(self.manifest.classes))
            trained = max(0, manifest.method.trainable_parameters + more)
            if DELTA in self.manifest.files:
                delta = self.path / DELTA, new.path / DELTA
                write_delta(*delta, manifest, weight / self.scale, statistics, change, trained)
            changes = {
                "taillift_version": version("taillift"),
                "method": manifest.method.model_copy(update={"trainable_parameters": trained}),
                "variants": {Precision.FP32: Variant(notes=(str(change), *left_out))},
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


def write_delta(
    source: Path,
    target: Path,
    manifest: Manifest,
    rows: Floats,
    statistics: FeatureStatistics | None,
    change: ClassChange,
    trained: int,
) -> None:
    """Write a checkpoint with other classes, the rows [C, D] of its head and their statistics.

    `trained` is the number of its trained weights. `taillift calibrate` reads it. Raises
    `UserError` if `source` is not a checkpoint.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    try:
        with safe_open(source, "np") as file:
            kept = [name for name in file.keys() if not name.startswith(PREFIX)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in kept}
            document = json.loads((file.metadata() or {})[KEY])
        names = dict(zip(document["classes"], document["names"], strict=True))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{source} is not a checkpoint ({error}): export the bundle again"
        ) from error
    described = {
        info.label: (names.get(info.label, info.label), info.prompt) for info in manifest.classes
    }
    document = changed_document(document, described, manifest.counts, change, trained)
    tensors |= statistics.arrays(PREFIX) if statistics else {}
    tensors[ROWS] = np.ascontiguousarray(rows, np.float32)
    save_file(tensors, target, {KEY: json.dumps(document)})


def changed_document(
    document: Mapping[str, Any],
    described: Mapping[str, tuple[str, str]],
    counts: Sequence[int],
    change: ClassChange,
    trained: int,
) -> dict[str, Any]:
    """Return the metadata of a checkpoint with other classes and so many `trained` weights.

    `described` has the name in prompts and the prompt of each class. The checkpoint is not the
    result of its recipe's run any more, so its key is empty. After `extended_head` the recipe's
    loss is the logit-adjusted one, whatever it was before: it says which prior the logits carry.
    """
    pseudo = dict(zip(document["classes"], document.get("pseudo_counts", []), strict=False))
    changed = {
        "trainable_parameters": trained,
        "classes": list(described),
        "names": [name for name, _ in described.values()],
        "counts": list(counts),
        "prompts": [prompt for _, prompt in described.values()],
        "key": "",
        # A head that is trained by `extended_head` has seen labelled photos alone.
        "pseudo_counts": []
        if change.added or not pseudo
        else [pseudo[label] for label in described],
        "extended": [*document.get("extended", []), change.model_dump(mode="json")],
    }
    recipe = document.get("recipe")
    if change.added and recipe:
        loss = recipe["loss"]
        is_plain = loss["name"] == ADJUSTED and loss["tau"] in (1, "auto")
        changed["recipe"] = {**recipe, "loss": loss if is_plain else {"name": ADJUSTED}}
    return {**document, **changed}


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


def refuse_known(labels: Iterable[str], known: Sequence[str], photos: Path, source: Path) -> None:
    """Raise `UserError` if one of the classes of `photos` is one of those that `source` knows."""
    indices = indices_by_name(known)
    if again := [label for label in labels if label in indices]:
        raise UserError(
            f"{photos} has photos of {again[0]!r}, and so has {source}: pass --more if these are "
            "more photos of the class, or rename the folder"
        )


def kept_classes(
    forgotten: Iterable[str], labels: Sequence[str], source: Path
) -> tuple[list[int], list[str]]:
    """Return the indices of the classes `labels` of `source` that stay, and the names of others.

    Raises `UserError` if it lacks a class, or if fewer than two would stay.
    """
    gone = indices_of_names(forgotten, labels, str(source))
    kept = [index for index in range(len(labels)) if index not in gone]
    if len(kept) < 2:
        raise UserError(f"{source} would keep {len(kept)} of its classes: keep at least 2")
    return kept, [labels[index] for index in gone]


def labels_of(names: Sequence[str], classes: Sequence[str]) -> Labels:
    """Return the index in `classes` of each name, [N]."""
    places = indices_by_name(classes)
    return np.array([places[name] for name in names], np.int64)


def joined_classes(
    labels: Sequence[str], counts: Sequence[int], names: Sequence[str]
) -> list[tuple[str, int, int | None]]:
    """Return all classes after photos of the classes `names` [N] are added to old ones.

    They are in the order of their counts, equal ones by name, as in a set of photos: label, count,
    and the index in `labels`, None for a new class.
    """
    added, known = Counter(names), indices_by_name(labels)
    old = zip(labels, counts, strict=True)
    joined: list[tuple[str, int, int | None]] = [
        (label, count + added[canonical(label)], index) for index, (label, count) in enumerate(old)
    ]
    joined += [(label, added[label], None) for label in added if label not in known]
    return sorted(joined, key=lambda one: (-one[1], one[0]))


def classes_with(
    manifest: Manifest, names: Sequence[str]
) -> tuple[list[ClassInfo], list[int | None]]:
    """Return all classes after photos of the classes `names` [N] are added, under a uniform prior.

    They are in the order of their counts, equal ones by name, as in a set of photos. With them
    comes the index that each has in `manifest`, None for a new one. If the tau of the answers was
    chosen, the prior holds its shift for the new counts.
    """
    joined = joined_classes(manifest.labels, manifest.counts, names)
    weights = np.array([count for _, count, _ in joined]) ** chosen_tail(manifest)
    priors = (weights / weights.sum()).tolist()
    infos: list[ClassInfo] = []
    for (label, count, index), prior in zip(joined, priors, strict=True):
        group = manifest.thresholds.group(count)
        if index is None:
            info = ClassInfo(label=label, prompt=label, count=count, group=group, prior=prior)
        else:
            old = manifest.classes[index]
            # With as many photos as before, a class keeps its group.
            changes = {} if count == old.count else {"count": count, "group": group}
            info = old.model_copy(update={"prior": prior, "accuracy": None, **changes})
        infos.append(info)
    return infos, [index for _, _, index in joined]


def chosen_tail(manifest: Manifest) -> float:
    """Return how far answers lean toward the rare classes: tau - 1, and 0 without a choice."""
    tau = manifest.method.tau
    return 0.0 if tau is None else tau - 1


def usable_features(
    by_class: Mapping[str, Sequence[Path]], found: Iterable[Floats | ImageError]
) -> tuple[Floats, list[str]]:
    """Return the unit features [N, D] of photos that can be used, and the class of each.

    `found` has the features of every photo in order, or why there are none: then the photo is left
    out with a warning. Raises `UserError` if a class has no other.
    """
    pairs = [(label, photo) for label, photos in by_class.items() for photo in photos]
    rows, labels = [], []
    for (label, photo), features in zip(pairs, found, strict=True):
        if isinstance(features, ImageError):
            logger.warning("%s is left out: %s", photo, features)
        else:
            rows.append(features)
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
