"""Tests of what a manifest may say."""

import pytest
from pydantic import ValidationError

from taillift.models.bundle.manifest import Manifest, Thresholds, classes_from
from tests.support.palette import palette_manifest


@pytest.mark.parametrize(
    ("count", "group"),
    [(101, "many"), (100, "medium"), (20, "medium"), (19, "few"), (1, "few")],
)
def test_groups_have_their_bounds(count: int, group: str) -> None:
    assert Thresholds().group(count) == group


def test_a_manifest_survives_json() -> None:
    manifest = palette_manifest("v", {})
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "Input should be 1 or 2"),
        ({"colour": "red"}, "Extra inputs"),
        ({"classes": []}, "at least 2"),
    ],
)
def test_what_is_not_of_the_schema_is_refused(change: dict[str, object], message: str) -> None:
    values = palette_manifest("v", {}).model_dump() | change
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate(values)


def test_two_classes_of_one_label_are_refused() -> None:
    classes = classes_from(["cat", "cat"], ["a", "b"], [1, 2], Thresholds(), [None, None])
    values = palette_manifest("v", {}).model_dump() | {"classes": classes}
    with pytest.raises(ValidationError, match="two classes have the label 'cat'"):
        Manifest.model_validate(values)


def test_a_class_has_training_images() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        classes_from(["a", "b"], ["a", "b"], [0, 1], Thresholds(), [None, None])
