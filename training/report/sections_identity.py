"""What the bundle is: photos, classes, method and backbone."""

from collections.abc import Mapping, Sequence

from taillift.models.bundle.schema import GROUPS, Group, Precision
from taillift.training.calibration.variants import CalibratedVariant
from taillift.training.fit.checkpoint import CheckpointMetadata
from taillift.training.report.html import facts as listed


def section(
    facts: CheckpointMetadata,
    groups: Sequence[Group],
    judged: Mapping[Precision, CalibratedVariant],
) -> str:
    views = facts.preprocessing
    plain = judged[Precision.FP32]
    return listed(
        {
            "data": _data(facts),
            "classes": _classes(facts, groups),
            "measured on": f"{plain.check.data}, {len(plain.check):,} photos"
            if plain.check
            else "nothing: there are no test/ or val/ photos",
            "calibrated on": _fitted(plain),
            "method": _method(facts),
            "backbone": f"{facts.architecture} ({facts.pretrained}), sha256 "
            f"{facts.backbone_sha256[:12]}",
            "views": f"{views.size} x {views.size} pixels, of a canvas whose shorter side is "
            f"{views.size + views.expand}",
            "graphs": ", ".join(judged),
            "trained with": ", ".join(f"{name} {one}" for name, one in _versions(facts).items()),
        }
    )


def _data(facts: CheckpointMetadata) -> str:
    return (
        f"{facts.data}: {sum(facts.counts):,} training photos, {max(facts.counts):,} of the most "
        f"frequent class and {min(facts.counts):,} of the rarest (fingerprint "
        f"{facts.data_sha256[:12]})"
    )


def _classes(facts: CheckpointMetadata, groups: Sequence[Group]) -> str:
    sizes = []
    for group in GROUPS:
        counts = [count for count, one in zip(facts.counts, groups, strict=True) if one == group]
        photos = f" ({sum(counts):,} training photos)" if counts else ""
        sizes.append(f"{len(counts):,} {group}{photos}")
    return f"{len(facts.classes):,}: {', '.join(sizes)}"


def _fitted(plain: CalibratedVariant) -> str:
    part = plain.variant.calibration
    if part is None:
        return "nothing"
    how = " (cross-fitting: there is no val/)" if part.source == "cross-fitting" else ""
    return f"{part.data}, {part.images:,} different photos{how}"


def _method(facts: CheckpointMetadata) -> str:
    recipe = facts.recipe
    if not recipe.epochs:
        return f"{recipe.title} ({recipe.name}): nothing was trained"
    tuners = " and ".join(one.name for one in recipe.tuners) or "the head alone"
    return (
        f"{recipe.title} ({recipe.name}): {tuners}, {facts.trainable_parameters:,} parameters "
        f"trained, loss {recipe.loss.name}, seed {recipe.seed}"
    )


def _versions(facts: CheckpointMetadata) -> dict[str, str]:
    commit = {"commit": facts.record.revision[:12]} if facts.record.revision else {}
    return facts.record.versions | commit
