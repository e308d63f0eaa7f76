"""The list of architectures says what loading them would say, in 80 columns."""

import json
from pathlib import Path

import open_clip
import pytest
import timm

from taillift.models import architectures
from taillift.models.architectures import (
    LIST,
    Entry,
    details,
    installed_versions,
    published,
    table,
)
from taillift.models.errors import UserError
from taillift.models.lift.catalogue import describe, known_names, names_like


@pytest.mark.parametrize(
    ("name", "size", "width", "blocks", "millions"),
    [
        ("ViT-B-16", 224, 768, 12, 86.2),
        ("RN50", 224, 1024, 0, 38.3),
        ("ViT-B-16-SigLIP", 224, 768, 12, 92.9),
        ("timm:vit_small_patch14_reg4_dinov2", 518, 384, 12, 22.1),
        ("timm:deit_tiny_distilled_patch16_224", 224, 192, 12, 5.5),
        ("timm:flexivit_small", 240, 384, 12, 21.7),
    ],
)
def test_an_architecture_that_works_has_its_measures(
    name: str, size: int, width: int, blocks: int, millions: float
) -> None:
    entry = describe(name)
    assert entry.works
    assert (entry.image_size, entry.width, entry.blocks) == (size, width, blocks)
    assert entry.weights is not None
    assert round(entry.weights / 1e6, 1) == millions


def test_tags_are_sorted_by_the_activation_they_were_trained_with() -> None:
    tags = describe("ViT-B-16").tags
    assert "openai" in tags["QuickGELU"]
    assert "laion2b_s34b_b88k" in tags["GELU"]
    assert describe("ViT-B-16-quickgelu").tags["GELU"] == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("convnext_base", "is a convnext_base"),
        ("coca_ViT-B-32", "is a CoCa"),
        ("ViT-bigG-14", "7.4 GB of weights"),
        ("timm:vit_small_patch16_dinov3", "rotary positions in DINOv3"),
        ("timm:vit_base_patch16_18x2_224", "ParallelThingsBlock"),
    ],
)
def test_one_that_does_not_work_has_the_reason_and_no_measures(name: str, reason: str) -> None:
    entry = describe(name)
    assert not entry.works
    assert reason in entry.reason
    assert (entry.image_size, entry.weights) == (None, None)
    assert any("does not work" in line for line in details(entry))


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("ViT-B-16", ["ViT-B-16"]),
        ("ViT-B-16:openai", ["ViT-B-16"]),
        ("timm:deit3_small_patch16_224.fb_in1k", ["timm:deit3_small_patch16_224"]),
        ("timm:resnet50", ["timm:resnet50"]),
        ("timm:flexivit", [f"timm:flexivit_{size}" for size in ("base", "large", "small")]),
        ("RN50X", ["RN50x4", "RN50x4-quickgelu", "RN50x16", "RN50x16-quickgelu"]),
    ],
)
def test_a_name_or_a_part_of_names_is_found(wanted: str, names: list[str]) -> None:
    found = names_like(wanted)
    assert set(names) <= set(found)
    assert all(wanted.partition(":")[0].lower() in one.lower() for one in found)


def test_without_a_name_all_of_open_clip_are_listed() -> None:
    assert names_like(None) == open_clip.list_models()


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(UserError, match=r"no architecture 'ViT-B16'.*did you mean .ViT-B-16"):
        names_like("ViT-B16")


def test_the_table_fits_80_columns_with_the_longest_names() -> None:
    names = [*open_clip.list_models(), *(f"timm:{one}" for one in timm.list_models("vit_*"))]
    tags = {"GELU": ["a"] * 20, "QuickGELU": ["b"] * 20}
    entries = [
        *(Entry(one, tags, "", 1024, 1280, 48, 500_000_000) for one in names),
        *(Entry(one, tags, "has an attention of another kind") for one in names),
    ]
    lines = list(table(entries))
    assert max(map(len, lines)) <= 80
    assert "both" in lines[1]
    assert all(any(one in line for line in lines) for one in names)
    assert max(len(line) for one in entries[:200] for line in details(one)) <= 80


RENEW = "run `python -m taillift.models.lift.catalogue`"
# As they are now: other tests add architectures of their own to the packages' lists.
KNOWN = known_names()
WANTED = (None, "ViT-B-16:openai", "swin", "timm:", "timm:vit_small", "RN")
LIKE = {wanted: names_like(wanted) for wanted in WANTED}


def test_the_list_that_comes_with_taillift_has_all_architectures() -> None:
    document = json.loads(LIST.read_text("utf-8"))
    assert document["versions"] == installed_versions(), RENEW
    assert [entry["name"] for entry in document["architectures"]] == KNOWN, RENEW


@pytest.mark.parametrize("name", KNOWN[::16])
def test_the_list_says_what_building_an_architecture_finds(name: str) -> None:
    assert published(name) == [describe(name)], RENEW


@pytest.mark.parametrize("wanted", WANTED)
def test_the_list_is_searched_as_the_packages_are(wanted: str | None) -> None:
    entries = published(wanted)
    assert entries is not None
    assert [entry.name for entry in entries] == LIKE[wanted]


def test_what_the_list_lacks_is_found_out_by_building_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert published("timm:resnet50") is None
    assert published("timm:no_such_model") is None
    with pytest.raises(UserError, match=r"no architecture 'ViT-B16'.*did you mean .ViT-B-16"):
        published("ViT-B16")
    document = json.loads(LIST.read_text("utf-8"))
    document["versions"]["timm"] = "0.9.0"
    other = tmp_path / "architectures.json"
    other.write_text(json.dumps(document), "utf-8")
    monkeypatch.setattr(architectures, "LIST", other)
    assert published("ViT-B-16") is None
