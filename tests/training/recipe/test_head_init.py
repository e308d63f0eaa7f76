"""Tests of the initial weights of the head."""

import json
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from taillift.models.errors import UserError
from taillift.models.lift.backbone import Backbone, load_backbone
from taillift.training.recipe.head_init import (
    CLASSES_AT_ONCE,
    AnyHeadInit,
    ClassMeanInit,
    ClassNameInit,
    DescriptionsInit,
    EnsembleInit,
    HeadInit,
    TextInit,
    class_means,
    linear_probe,
    prototypes,
    random_weights,
    require_text,
    text_weights,
)

INITIALS: dict[str, type[HeadInit]] = {
    kind.model_fields["name"].default: kind for kind in get_args(get_args(AnyHeadInit)[0])
}
CLASSES = ["polar_bear", "cat", "red fox"]
SENTENCES = {
    "polar_bear": ["a white bear.", "a bear on ice."],
    "cat": ["a small animal with whiskers."],
    "red fox": ["a fox with a red coat.", "a bushy tail.", "a pointed muzzle."],
}


def encode(prompts: Sequence[str]) -> Tensor:
    """Return a random unit vector for each prompt, [N, 8]; equal prompts have equal vectors."""
    seeds = [zlib.crc32(prompt.encode()) for prompt in prompts]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = [torch.randn(8, generator=generator) for generator in generators]
    return F.normalize(torch.stack(rows), dim=-1)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A file of descriptions."""
    path = tmp_path / "animals.json"
    path.write_text(json.dumps(SENTENCES))
    return path


@pytest.mark.parametrize("name", INITIALS)
def test_the_name_selects_the_kind_and_the_options_survive_json(name: str) -> None:
    adapter: TypeAdapter[HeadInit] = TypeAdapter(AnyHeadInit)
    fields = {"name": name} | ({"path": "animals.yaml"} if name == "descriptions" else {})
    spec = adapter.validate_python(fields)
    assert type(spec) is INITIALS[name]
    assert adapter.validate_json(spec.model_dump_json()) == spec


def test_the_kinds_that_need_text() -> None:
    of_text = {"text", "ensemble", "classname", "descriptions", "prototypes"}
    assert {name for name, kind in INITIALS.items() if kind.needs_text} == of_text


def test_text_is_refused_if_the_backbone_has_none() -> None:
    with pytest.raises(UserError, match=r"backbone vit has no text tower.*initial.name=class-mean"):
        require_text(EnsembleInit(), "vit", has_text=False)
    require_text(EnsembleInit(), "clip", has_text=True)
    require_text(ClassMeanInit(), "vit", has_text=False)


def test_a_template_gives_one_prompt_a_class_with_spaces_for_underscores() -> None:
    prompts = TextInit(template="{} {x} photo").prompts(["polar_bear", "cat"])
    assert prompts == [["polar bear {x} photo"], ["cat {x} photo"]]
    assert TextInit().prompts(["cat"]) == [["a photo of a cat."]]


def test_the_default_prompt_has_the_article_of_the_name() -> None:
    names = ["apple", "Umbrella", "unicorn", "hour", "one-piece", "dress", "bus", "pants", "lens"]
    prompts = [prompt for (prompt,) in TextInit().prompts([*names, "polar_bears"])]
    assert [prompt.removeprefix("a photo of ").removesuffix(".") for prompt in prompts] == [
        "an apple",
        "an Umbrella",
        "a unicorn",
        "an hour",
        "a one-piece",
        "a dress",
        "a bus",
        "pants",
        "a lens",
        "polar bears",
    ]


def test_a_template_with_an_article_of_its_own_keeps_it() -> None:
    """Checkpoints from before {article} existed have such a template."""
    assert TextInit(template="a photo of a {}.").prompts(["apple"]) == [["a photo of a apple."]]


def test_a_template_without_braces_for_the_class_is_refused() -> None:
    with pytest.raises(ValidationError, match="template"):
        TextInit(template="a photo")


def test_a_bare_class_name_is_its_own_prompt() -> None:
    assert ClassNameInit().prompts(["polar_bear"]) == [["polar bear"]]


def test_the_ensemble_names_the_class_in_eighty_different_prompts() -> None:
    bears, cats = EnsembleInit().prompts(["polar_bear", "cat"])
    assert len(set(bears)) == len(set(cats)) == 80
    assert all("polar bear" in prompt for prompt in bears)
    assert [prompt.replace("polar bear", "cat") for prompt in bears] == cats


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_descriptions_are_in_the_order_of_the_classes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"animals{suffix}"
    yaml = "".join(
        f"{name.replace('_', ' ')}:\n" + "".join(f"  - {line}\n" for line in lines)
        for name, lines in SENTENCES.items()
    )
    path.write_text(json.dumps(SENTENCES) if suffix == ".json" else yaml)
    prompts = DescriptionsInit(path=path).prompts(["red_fox", "cat", "polar bear"])
    assert prompts == [SENTENCES["red fox"], SENTENCES["cat"], SENTENCES["polar_bear"]]


def test_the_error_for_a_class_without_description_suggests_the_most_similar_one(
    described: Path,
) -> None:
    message = r"does not describe class 'red foxes' \(did you mean \"red fox\"\?\)"
    with pytest.raises(UserError, match=message):
        DescriptionsInit(path=described).prompts(["polar_bear", "cat", "red foxes"])


def test_a_description_of_an_unknown_class_is_refused(described: Path) -> None:
    with pytest.raises(UserError, match="describes 'red fox', which is not a class: correct"):
        DescriptionsInit(path=described).prompts(["polar_bear", "cat"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "Expecting property name"),
        ("a.yaml", "cat: [", "while parsing"),
        ("a.yaml", "- cat", "valid dictionary"),
        ("a.yaml", "", "valid dictionary"),
        ("a.yaml", "cat: a sentence", "cat: Input should be a valid list"),
        ("a.yaml", "cat: []", "cat: List should have at least 1 item"),
        ("a.yaml", "cat: ['']", "cat: 0: String should have at least 1 character"),
        ("a.yaml", "no: [a sentence]", "valid string"),
        ("a.yaml", b"\xff", "codec|unacceptable"),
    ],
)
def test_the_error_for_a_file_of_another_form_is_one_line(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"descriptions .*{name}.*({message})") as raised:
        DescriptionsInit(path=path).prompts(["cat"])
    assert "\n" not in str(raised.value)


def test_the_error_for_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"animals\.yaml: No such file"):
        DescriptionsInit(path=tmp_path / "animals.yaml").prompts(["cat"])


def test_text_weights_are_the_directions_of_the_mean_features() -> None:
    weight = text_weights(encode, list(SENTENCES.values()))
    for row, sentences in zip(weight, SENTENCES.values(), strict=True):
        assert torch.allclose(row, F.normalize(encode(sentences).mean(0), dim=-1), atol=1e-6)


def test_text_weights_are_multiplied_by_the_transposed_projection() -> None:
    projection = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    weight = text_weights(encode, [["cat", "a cat"]], projection)
    mean = (encode(["cat"]) + encode(["a cat"])) / 2
    assert weight.shape == (1, 12)
    assert torch.allclose(weight, F.normalize(mean @ projection.t(), dim=-1), atol=1e-6)


def test_more_classes_than_are_encoded_at_once_keep_their_order() -> None:
    names = [f"class {index}" for index in range(2 * CLASSES_AT_ONCE + 3)]
    weight = text_weights(encode, ClassNameInit().prompts(names))
    assert torch.allclose(weight, encode(names), atol=1e-6)


def test_with_the_default_backbone_all_texts_of_a_class_point_in_its_direction(
    backbone: Backbone,
) -> None:
    names = ["polar_bear", "cup of coffee", "bicycle"]
    kinds = (TextInit(), ClassNameInit(), EnsembleInit())
    plain, bare, ensemble = (
        text_weights(backbone.encode_text, kind.prompts(names), backbone.projection)
        for kind in kinds
    )
    assert plain.shape == (3, backbone.tower.width)
    for weight in (bare, ensemble):
        assert torch.allclose(weight.norm(dim=-1), torch.ones(3), atol=1e-5)
        assert (weight @ plain.t()).argmax(1).tolist() == [0, 1, 2]
        assert (weight - plain).norm() > 0.1


def test_class_means_are_the_directions_of_the_means_of_raw_features() -> None:
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.0, 7.0]])
    weight = class_means(features, torch.tensor([1, 0, 1, 0]), ["cat", "fox"])
    assert torch.allclose(weight, torch.tensor([[0.0, 1.0], [0.6, 0.8]]))


def test_limited_class_means_use_the_first_photos_of_each_class() -> None:
    features = torch.tensor([[3.0, 0.0], [0.0, 4.0], [5.0, 5.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 0, 1])
    two = class_means(features, labels, ["cat", "fox"], images=2)
    assert torch.allclose(two, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


@given(st.permutations(range(9)))
def test_class_means_do_not_depend_on_the_order_of_the_photos(order: list[int]) -> None:
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2])
    expected = class_means(features, labels, CLASSES)
    assert torch.allclose(class_means(features[order], labels[order], CLASSES), expected, atol=1e-6)


@pytest.mark.parametrize("start", [class_means, linear_probe])
def test_the_error_for_a_class_without_photos_names_it(start: type) -> None:
    with pytest.raises(UserError, match="class 'cat' has no training photo"):
        start(torch.eye(2), torch.tensor([0, 2]), CLASSES)


def clusters(classes: int, photos: int) -> tuple[Tensor, Tensor]:
    """Return features [classes * photos, 6] around one axis for each class, and their labels."""
    labels = torch.arange(classes).repeat_interleave(photos)
    noise = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(0))
    return 4 * torch.eye(6)[labels] + 0.5 * noise, labels


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_linear_probe_separates_the_classes(classes: int) -> None:
    features, labels = clusters(classes, 8)
    weight = linear_probe(features, labels, [str(index) for index in range(classes)])
    assert weight.shape == (classes, 6)
    assert weight.dtype == torch.float32
    assert torch.allclose(weight.norm(dim=-1), torch.ones(classes), atol=1e-5)
    assert torch.equal((features @ weight.t()).argmax(1), labels)


def test_only_the_linear_probes_own_convergence_warning_is_suppressed() -> None:
    features = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    features = (features + 5) * torch.logspace(0, 2.5, 6)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        linear_probe(features, torch.arange(60) % 3, CLASSES)
        assert not seen
        warnings.warn("from elsewhere", ConvergenceWarning, stacklevel=1)
        assert len(seen) == 1


def test_prototypes_lie_between_photos_and_text() -> None:
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(3, 6, generator=generator), dim=-1)
    labels = torch.tensor([0] * 40 + [1] * 5 + [2])
    features = torch.randn(46, 6, generator=generator)

    def mixed(text_share: float) -> Tensor:
        return prototypes(text, features, labels, CLASSES, text_share)

    text_part = F.normalize(text - text.mean(0), dim=-1)
    means = class_means(F.normalize(features, dim=-1), labels, CLASSES)
    image_part = F.normalize(means - means.mean(0), dim=-1)
    assert torch.allclose(mixed(0), image_part, atol=1e-6)
    assert torch.allclose(mixed(1), text_part, atol=1e-6)
    assert torch.allclose(mixed(0.5), F.normalize(image_part + text_part, dim=-1), atol=1e-6)


def test_random_weights_are_unit_rows_that_depend_on_the_seed() -> None:
    first, again, other = (
        random_weights(200, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.allclose(first.norm(dim=-1), torch.ones(200), atol=1e-5)
    assert first.mean().abs() < 0.02
