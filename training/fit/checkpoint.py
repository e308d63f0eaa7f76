"""Checkpoints: what a run trained, with all that is needed to build the rest of the model again.

They keep the statistics of their training photos' features, with which `extend` adds classes
without these photos.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace as with_changes
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from taillift.models.bundle.arrays import Floats, Pixels, chunks
from taillift.models.bundle.atomic import atomic_file, file_sha256, require_writable
from taillift.models.bundle.extension import (
    ROWS,
    ClassChange,
    changed_document,
    first_names,
    joined_classes,
    kept_classes,
    labels_of,
    photos_by_class,
    refuse_known,
    usable_features,
)
from taillift.models.bundle.feature_statistics import ARRAYS, PREFIX, FeatureStatistics, unit
from taillift.models.bundle.head_training import DRAWS, extended_head
from taillift.models.bundle.images import ImageError, UnreadableImageError, load, views
from taillift.models.bundle.schema import MAX_PIXELS, Preprocessing
from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.models.lift.head import CosineHead, FusedHead
from taillift.models.lift.model import Model
from taillift.models.names import canonical
from taillift.training.console import is_first, note, track
from taillift.training.data.classes import class_name
from taillift.training.data.dataset import Dataset
from taillift.training.data.photo import Split, StoredPhoto
from taillift.training.fit.build import build_model, class_texts, prompts_for, weight_shape
from taillift.training.fit.distributed import Processes
from taillift.training.fit.frozen_features import remaining_network
from taillift.training.fit.inputs import centre_photos, training_photos
from taillift.training.fit.optimisation import tune_tower
from taillift.training.fit.provenance import Provenance
from taillift.training.fit.resume import read_state, resume_path
from taillift.training.recipe.head_init import DescriptionsInit, PromptsInit
from taillift.training.recipe.recipe import Part, Recipe

KEY: Final = "taillift"
# The mean of so many photos of a class is close to that of all.
STATISTICS_PHOTOS: Final = 32
STATISTICS_TITLE: Final = "Measuring the features of the training photos"
# Fewer new photos would bend the tower toward themselves.
LEAST_TO_TUNE: Final = 100
# Views that go through the tower at once.
BATCH: Final = 32
# The files next to a checkpoint append to its whole name, so that they are never another
# checkpoint's files, and never a recipe.
SUFFIX: Final = ".safetensors"
# The end of the name of a file of weights; the size of images may follow it.
WEIGHT_SUFFIX: Final = re.compile(r"\.(safetensors|pth|pt|bin)(?=@|$)")


class ParentCheckpoint(Part):
    """A checkpoint that went into an average with this `share`, and how it was made."""

    file: str
    sha256: str
    share: float
    recipe: Recipe
    record: Provenance
    parents: tuple["ParentCheckpoint", ...] = ()


class CheckpointMetadata(BaseModel):
    """The metadata of a checkpoint, next to its tensors.

    `names` are the names of the classes in `prompts`. `added` names the further sources that were
    trained on. `data_sha256` is the fingerprint of the data, `key` that of the run; `added` and
    `key` are empty in checkpoints from before they existed. `record` is the provenance.
    `pool_sha256` is the fingerprint of the unlabelled photos, `pseudo_counts` what the
    accepted pseudo-labels of each class counted as at the end, in labelled photos; both are empty
    without unlabelled photos. `parents` are the checkpoints that this one is the average of;
    `recipe` then says what the average consists of, and `key` is empty if `taillift merge` made
    it. `extended` lists how classes were added and removed afterwards, and `key` is then empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    architecture: str
    pretrained: str
    backbone_sha256: str
    data: str
    data_sha256: str
    added: tuple[str, ...] = ()
    classes: tuple[str, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    prompts: tuple[str, ...]
    preprocessing: Preprocessing
    recipe: Recipe
    key: str = ""
    pool_sha256: str = ""
    pseudo_counts: tuple[float, ...] = ()
    trainable_parameters: int
    record: Provenance
    parents: tuple[ParentCheckpoint, ...] = ()
    extended: tuple[ClassChange, ...] = ()

    @property
    def sources(self) -> str:
        """The names of all photos that were trained on, such as photos+labelled."""
        return "+".join((self.data, *self.added))

    @property
    def prior_counts(self) -> tuple[float, ...]:
        """Each class's count in the loss: its photos, and what its pseudo-labels count as."""
        extra = self.pseudo_counts or (0.0,) * len(self.counts)
        return tuple(count + more for count, more in zip(self.counts, extra, strict=True))


def save(
    path: Path,
    model: Model,
    metadata: CheckpointMetadata,
    replace: bool = False,
    statistics: FeatureStatistics | None = None,
) -> None:
    """Write a checkpoint, complete or not at all, with a readable copy of its metadata.

    Without `statistics`, it can only be extended with the photos that it was trained on. Only the
    first process writes. Removes the file that an interrupted run would have continued
    from. Raises what `check_free` raises.
    """
    if not is_first():
        return
    check_free(path, replace)
    arrays = statistics.arrays(PREFIX) if statistics else {}
    tensors = kept_tensors(model) | {name: torch.from_numpy(one) for name, one in arrays.items()}
    with atomic_file(path) as temporary:
        temporary.write_bytes(serialise(tensors, {KEY: metadata.model_dump_json()}))
    with atomic_file(metadata_path(path)) as temporary:
        content = metadata.model_dump(mode="json")
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    resume_path(path).unlink(missing_ok=True)


def check_free(path: Path, replace: bool) -> None:
    """Check that a checkpoint can be written to `path`; to be called before training.

    Raises `UserError` if `path` does not end in ".safetensors", or if a checkpoint or its metadata
    exists there already and `replace` is false.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"--out {path}: end the name in {SUFFIX}, such as {path}{SUFFIX}")
    for file in (path, metadata_path(path)):
        if file.exists() and not replace:
            raise UserError(f"{file} exists already: choose another --out or pass --replace")


def check_changed(path: Path, replace: bool) -> None:
    """Check that a checkpoint with other classes can be written to `path`.

    Raises `UserError` for the reasons of `check_free`, if the place cannot be written, or if an
    interrupted run would still continue there and `replace` is false.
    """
    check_free(path, replace)
    require_writable(path)
    if resume_path(path).exists() and not replace:
        raise UserError(
            f"{resume_path(path)} was left by an interrupted run, which ends in {path}: let it "
            "end, choose another --out, or pass --replace"
        )


def checkpoint_stem(recipe: Recipe, backbone: str) -> str:
    """Return the usual name of a checkpoint, without its suffix: recipe, backbone and seed.

    The embedded backbone is not named. Of a backbone in a file, the file's name is taken.
    """
    parts = [recipe.name, str(recipe.seed)]
    if backbone != "default":
        architecture, _, weights = backbone.partition(":")
        parts[1:1] = [architecture, WEIGHT_SUFFIX.sub("", Path(weights).name)]
    return re.sub(r"[^\w.+@-]+", "-", "-".join(filter(None, parts)))


def metadata_path(checkpoint: Path) -> Path:
    """Return the path of the YAML file with a checkpoint's metadata, for people to read."""
    return checkpoint.with_name(f"{checkpoint.name}.yaml")


def kept_tensors(model: Model) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint keeps: those of `Model.state`, and the head.

    The backbone and the recipe give all others again. The head is kept even if it was not trained:
    the texts or photos that it came from may be missing when the checkpoint is restored.
    """
    head = {f"head.{name}": tensor for name, tensor in model.head.named_parameters()}
    tensors = model.state() | head
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def restore(path: Path, backbone_name: str | None = None) -> tuple[Model, CheckpointMetadata]:
    """Build the model that a checkpoint came from, with the checkpoint's tensors.

    `backbone_name` is for a backbone that has moved since. Raises `UserError` if the file is not a
    checkpoint, the backbone has other weights, or the tensors do not fit the model.
    """
    metadata = read_metadata(path)
    backbone = load_backbone(backbone_name or metadata.backbone)
    if backbone.sha256 != metadata.backbone_sha256:
        raise UserError(
            f"{path} was trained on other weights than {backbone.name} (sha256 "
            f"{metadata.backbone_sha256[:12]}, here {backbone.sha256[:12]}): pass --backbone with "
            "the weights that it was trained on"
        )
    shape = weight_shape(backbone, metadata.recipe.head, len(metadata.classes))
    model = build_model(backbone, metadata.recipe, torch.zeros(shape))
    expected = {name: list(tensor.shape) for name, tensor in kept_tensors(model).items()}
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if not name.startswith(PREFIX)]  # noqa: SIM118
        shapes = {name: file.get_slice(name).get_shape() for name in names}
        for name in sorted(shapes.keys() | expected.keys()):
            own, needed = shapes.get(name, "absent"), expected.get(name, "absent")
            if own != needed:
                raise UserError(
                    f"{path} does not fit its own recipe: {name} is {own} in the file and {needed} "
                    "in the model: train again"
                )
        model.load_state_dict({name: file.get_tensor(name) for name in shapes}, strict=False)
    return model, metadata


def read_metadata(path: Path) -> CheckpointMetadata:
    """Read a checkpoint's metadata; raises `UserError` if the file is not a valid checkpoint."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder and not a checkpoint: name the file NAME{SUFFIX} that `taillift "
            "train` wrote"
        )
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: make it with `taillift train`") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a checkpoint ({error}): train again") from error
    if text is None:
        raise UserError(f"{path} is not a taillift checkpoint: it lacks the metadata `{KEY}`")
    try:
        return CheckpointMetadata.model_validate(json.loads(text))
    except (ValidationError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: its metadata is not valid: train again") from error


def read_statistics(path: Path) -> FeatureStatistics | None:
    """Return the statistics that a checkpoint keeps; None in those from before they existed.

    Raises `UserError` if the file is not a valid checkpoint.
    """
    classes = len(read_metadata(path).classes)
    with safe_open(path, "np") as file:
        arrays = {
            name: file.get_tensor(f"{PREFIX}{name}")
            for name in ARRAYS
            if f"{PREFIX}{name}" in file.keys()  # noqa: SIM118
        }
        width = file.get_slice(ROWS).get_shape()[1]
    return FeatureStatistics.checked(arrays, path, classes, width) if arrays else None


def measured_statistics(
    model: Model, metadata: CheckpointMetadata, dataset: Dataset
) -> FeatureStatistics:
    """Return the statistics of the training photos' features, of a model that is on the CPU.

    Of each class, `STATISTICS_PHOTOS` are looked at, and all of them are counted.
    """
    split = dataset.train.only(photos_of_classes(dataset.train))
    centres = centre_photos(split, metadata.preprocessing)
    batches = centres.batches([(photo, 0) for photo in range(len(split))], BATCH)
    shown = track(batches, STATISTICS_TITLE, -(-len(split) // BATCH))
    features = tower_features(model, (rows for rows, _ in shown))
    return statistics_of(features, split.labels, metadata)


def statistics_of(
    features: Iterable[Floats], labels: Sequence[int], metadata: CheckpointMetadata
) -> FeatureStatistics:
    """Return the statistics of batches of unit features [N, D] of photos of classes `labels`.

    All training photos are counted, also those that were not looked at.
    """
    every = np.concatenate(list(features))
    own = FeatureStatistics.of(every, np.asarray(labels, np.int64), len(metadata.classes))
    return with_changes(own, counts=np.array(metadata.counts, np.int64))


def photos_of_classes(split: Split) -> list[int]:
    """Return the indices of up to `STATISTICS_PHOTOS` photos of each class, in order."""
    labels = np.asarray(split.labels, np.int64)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # Evenly spaced, because neighbours are often alike.
    chosen = [one[:: -(-len(one) // STATISTICS_PHOTOS)] for one in members]
    return sorted(np.concatenate(chosen).tolist())


@torch.no_grad()
def tower_features(model: Model, batches: Iterable[Tensor], stage: int = 0) -> Iterator[Floats]:
    """Yield the unit features [N, D] of each batch of views uint8 [N, S, S, 3].

    With a `stage`, the batches are rows behind so many stages of the tower instead. The work is
    done on a GPU if there is one. Leaves the model on the CPU.
    """
    device = Processes(None).device
    network = remaining_network(model.to(device).eval(), stage)
    for rows in batches:
        yield model.head(network(rows.to(device)))[1].cpu().numpy()
    model.cpu()


def own_photos(path: Path, metadata: CheckpointMetadata, dataset: Dataset) -> Dataset:
    """Return photos that the checkpoint at `path` was trained on, without forgotten classes.

    val/ and test/ may be others than when it was trained. Raises `UserError` if the training photos
    cannot be those of the checkpoint.
    """
    kept = without_forgotten(path, metadata, dataset)
    classes = tuple(map(canonical, metadata.classes))
    if (classes, metadata.counts) != (kept.classes, tuple(kept.counts)):
        raise UserError(
            f"{path} was trained on other photos ({metadata.sources}, {len(metadata.classes)} "
            f"classes, {sum(metadata.counts)} photos) than those of {dataset.folder}: name the "
            "photos it was trained on, with the same --add"
        )
    return kept


def without_forgotten(path: Path, metadata: CheckpointMetadata, dataset: Dataset) -> Dataset:
    """Return the photos but those of classes that were taken from what is at `path`.

    A note names these classes. Raises `UserError` if no photo stays.
    """
    once = {canonical(name) for change in metadata.extended for name in change.forgotten}
    gone = once.difference(map(canonical, metadata.classes)).intersection(dataset.classes)
    if not gone:
        return dataset
    note(f"left out: photos of {first_names(sorted(gone))}, which {path} has forgotten")
    return dataset.without(gone)


def extend(
    checkpoint: Path,
    photos: Path,
    target: Path,
    *,
    more: bool = False,
    replace: bool = False,
    seed: int = 0,
    backbone: str | None = None,
    old: Dataset | None = None,
    max_pixels: int = MAX_PIXELS,
    tune: bool = False,
) -> CheckpointMetadata:
    """Write a checkpoint at `target` that also knows the classes of `photos`, CLASS/*.jpg.

    It is done as for a bundle (`models.bundle.extension.extend`): the head is trained, on the new
    photos and on draws from the statistics of the old ones; the tower stays. With `tune` the tower
    is then trained further on the new photos (`tune_tower`), the statistics follow it, and the head
    is trained again. `old` are the photos that the checkpoint was trained on, for one without
    statistics. `backbone` is for a backbone that has moved since.

    Raises `UserError` if the checkpoint cannot be restored, has neither statistics nor a cosine
    head, if a class is known and `more` is false, if a class has no photo that can be used, if
    there is nothing to tune or less than `LEAST_TO_TUNE` photos for it, or for what `check_changed`
    and `tune_tower` raise.
    """
    check_changed(target, replace)
    model, metadata = restore(checkpoint, backbone)
    head = model.head
    if not isinstance(head, CosineHead) or isinstance(head, FusedHead):
        raise UserError(
            f"{checkpoint} has no cosine head, the only kind that can be changed: train with "
            "head.kind=cosine"
        )
    known = known_statistics(checkpoint, model, metadata, old)
    by_class = photos_by_class(photos)
    if not more:
        refuse_known(by_class, metadata.classes, photos, checkpoint)
    if tune and not any(part.requires_grad for part in model.tower.parameters()):
        raise UserError(f"{checkpoint} has trained its head alone: leave out --tune")
    found = [*photo_features(model, metadata.preprocessing, by_class, max_pixels)]
    features, names = usable_features(by_class, found)
    if tune and len(names) < LEAST_TO_TUNE:
        raise UserError(
            f"{photos} has {len(names)} photos that can be used, and --tune needs {LEAST_TO_TUNE}: "
            "leave it out"
        )
    classes = joined_classes(metadata.classes, metadata.counts, names)
    labels = labels_of(names, [label for label, _, _ in classes])
    indices = [index for _, _, index in classes]
    called = [
        class_name(label) if index is None else metadata.names[index] for label, _, index in classes
    ]
    texts, prompts = text_start(metadata, backbone, called)
    before = unit(head.weight.detach().numpy())

    def train_head(known: FeatureStatistics, features: Floats) -> FeatureStatistics:
        weight, joined = extended_head(
            before, head.scale, known, indices, features, labels, seed, texts
        )
        head.weight = torch.nn.Parameter(torch.from_numpy(weight), head.weight.requires_grad)
        return joined

    joined, tuned = train_head(known, features), 0
    if tune:
        outcomes = dict(zip(chain(*by_class.values()), found, strict=True))
        usable = {
            label: [photo for photo in photos if not isinstance(outcomes[photo], ImageError)]
            for label, photos in by_class.items()
        }
        stored = map(stored_photo, chain(*usable.values()))
        split = Split(tuple(stored), tuple(labels.tolist()), (), max_pixels)
        tuned = tune_on(model, metadata, split, indices, seed)
        again = photo_features(model, metadata.preprocessing, usable, max_pixels)
        after, _ = usable_features(usable, again)
        joined = train_head(known.moved(features, after), after)
    change = new_change(checkpoint, added=dict(Counter(names)), seed=seed, tuned=tuned)
    described = {
        label: (name, prompt if index is None else metadata.prompts[index])
        for (label, _, index), name, prompt in zip(classes, called, prompts, strict=True)
    }
    counts = [count for _, count, _ in classes]
    changed = with_classes(metadata, described, counts, change, model)
    save(target, model, changed, replace, joined)
    return changed


def tune_on(
    model: Model,
    metadata: CheckpointMetadata,
    split: Split,
    indices: Sequence[int | None],
    seed: int,
) -> int:
    """Train a model's tower further on new photos, and return the number of steps.

    `indices` has, for each class, its index in the old head; None if it is new. Photos of old
    classes count for the loss as often as `extended_head` draws them.
    """
    photos = np.bincount(split.labels, minlength=len(indices))
    draws = np.array([0 if index is None else DRAWS for index in indices])
    tower, recipe = model.tower, metadata.recipe
    recipe = recipe.resolved(photos.tolist(), len(tower.blocks), tower.width)
    crops = training_photos(split, metadata.preprocessing, recipe.augmentation, recipe.epochs, seed)
    shown = torch.from_numpy(photos + draws).float()
    return tune_tower(
        model, recipe, crops, (shown / shown.sum()).log(), seed, Processes(None).device
    )


def stored_photo(path: Path) -> StoredPhoto:
    """Return a photo in a file of its own."""
    status = path.stat()
    return StoredPhoto(path.parent, path.name, status.st_size, status.st_mtime_ns)


@torch.no_grad()
def text_start(
    metadata: CheckpointMetadata, backbone_name: str | None, names: Sequence[str]
) -> tuple[Floats | None, Sequence[str]]:
    """Return the unit weights [C, D] of the classes' texts, and the prompt of each class.

    Without a text tower, or if the recipe's head did not start from text or did so from a file that
    cannot know new classes, there are no weights, and the prompts are the names.
    """
    initial = metadata.recipe.head.initial
    if not isinstance(initial, PromptsInit) or isinstance(initial, DescriptionsInit):
        return None, names
    backbone = load_backbone(backbone_name or metadata.backbone)
    if not backbone.has_text:
        return None, names
    texts = class_texts(backbone, metadata.recipe.head, names).numpy()
    return unit(texts), prompts_for(names, initial)


def known_statistics(
    checkpoint: Path, model: Model, metadata: CheckpointMetadata, old: Dataset | None
) -> FeatureStatistics:
    """Return the statistics that a checkpoint keeps, else those of the photos `old`.

    Raises `UserError` if there are neither, or if it was trained on others than `old`.
    """
    statistics = read_statistics(checkpoint)
    if statistics is not None:
        return statistics
    if old is None:
        raise UserError(
            f"{checkpoint} has no statistics of its photos, because an older taillift made it, or "
            "`taillift merge` without --data: pass --old-photos with the photos it was trained on"
        )
    return measured_statistics(model, metadata, own_photos(checkpoint, metadata, old))


def forget(
    checkpoint: Path,
    labels: Iterable[str],
    target: Path,
    *,
    replace: bool = False,
    backbone: str | None = None,
) -> CheckpointMetadata:
    """Write a checkpoint at `target` without the classes `labels`: neither a row nor a mean.

    The other rows stay as they are. Raises `UserError` if the checkpoint cannot be restored, lacks
    a class, or would have fewer than two, or for what `check_changed` raises.
    """
    check_changed(target, replace)
    model, metadata = restore(checkpoint, backbone)
    kept, forgotten = kept_classes(labels, metadata.classes, checkpoint)
    for name, parameter in model.head.named_parameters():
        if parameter.ndim:
            rows = torch.nn.Parameter(parameter.detach()[kept], parameter.requires_grad)
            setattr(model.head, name, rows)
    described = {
        metadata.classes[index]: (metadata.names[index], metadata.prompts[index]) for index in kept
    }
    counts = [metadata.counts[index] for index in kept]
    change = new_change(checkpoint, forgotten=tuple(forgotten))
    changed = with_classes(metadata, described, counts, change, model)
    statistics = read_statistics(checkpoint)
    save(target, model, changed, replace, statistics and statistics.only(kept))
    return changed


def photo_features(
    model: Model,
    preprocessing: Preprocessing,
    by_class: Mapping[str, Sequence[Path]],
    max_pixels: int,
) -> Iterator[Floats | ImageError]:
    """Yield the unit features [D] of each photo's centre view in order, or why there are none."""

    def view(photo: Path) -> Pixels | ImageError:
        try:
            canvas = load(photo.read_bytes(), preprocessing, max_pixels)
        except OSError as error:
            return UnreadableImageError(str(error.strerror))
        except ImageError as error:
            return error
        return views(canvas, preprocessing.size, 1)

    photos = [photo for members in by_class.values() for photo in members]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in chunks(photos, BATCH):
            batch = list(pool.map(view, chunk))
            good = [pixels for pixels in batch if not isinstance(pixels, ImageError)]
            pixels = [torch.from_numpy(np.concatenate(good))] if good else []
            # Only at its end does `tower_features` bring the model back to the CPU.
            rows = chain.from_iterable([*tower_features(model, pixels)])
            yield from (one if isinstance(one, ImageError) else next(rows) for one in batch)


def with_classes(
    metadata: CheckpointMetadata,
    described: Mapping[str, tuple[str, str]],
    counts: Sequence[int],
    change: ClassChange,
    model: Model,
) -> CheckpointMetadata:
    """Return the metadata of `model`, which has other classes: names in prompts, and prompts."""
    document = changed_document(
        metadata.model_dump(mode="json"), described, counts, change, model.trainable_parameters
    )
    return CheckpointMetadata.model_validate(document)


def new_change(checkpoint: Path, **changes: Any) -> ClassChange:
    """Return what the metadata say of a checkpoint with other classes than `checkpoint`."""
    digest = file_sha256(checkpoint).hexdigest()
    parent, made_by = checkpoint.name, version("taillift")
    return ClassChange(parent=parent, sha256=digest, taillift=made_by, **changes)


def checkpoint_key(checkpoint: Path) -> str | None:
    """Return the key of the run that ended in `checkpoint`; None if it cannot be read."""
    try:
        return read_metadata(checkpoint).key
    except UserError:
        return None


def make_room(checkpoint: Path, key: str, replace: bool) -> None:
    """Prepare a run that ends in `checkpoint`; `replace` removes what another interrupted run left.

    Raises `UserError` if another run's checkpoint is there, unless `replace` allows overwriting it.
    """
    if checkpoint.exists() and not replace and checkpoint_key(checkpoint) != key:
        raise UserError(
            f"{checkpoint} is of another recipe, data or backbone: choose another --out, or pass "
            "--replace"
        )
    if replace:
        state = resume_path(checkpoint)
        try:
            read_state(state, key)
        except UserError:
            state.unlink()
