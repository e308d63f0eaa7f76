"""The initial weights of the head: from text, from photos, or random (LIFT, section 3.4).

Each kind is a class of options, as a recipe states them, and a function that computes the weights.
"""

import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, split

from taillift.models.errors import UserError, did_you_mean
from taillift.models.lift.head import text_weight
from taillift.training.yaml_file import parse_yaml

# The prompts of so many classes are encoded together. This limits the memory for 80 prompts each.
CLASSES_AT_ONCE: Final = 256

# Names that begin with the sound of a vowel, as far as their spelling tells: hour, but not unicorn.
VOWEL_SOUND: Final = re.compile(
    r"hour|honest|honou?r|heir|(?!eu|ewe|one\b|once|uni(?![nm])|us[eu]|ut[ei]|ura|uk)[aeiou]"
)
PLURAL: Final = re.compile(r"(?<![saiuo])s$(?<!\blens)")

Sentences = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
DESCRIPTIONS: Final = TypeAdapter(dict[str, Sentences])


class HeadInit(BaseModel, ABC):
    """The options of one kind of initial weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_text: ClassVar[bool] = False

    def contents(self) -> list[object]:
        """Return the contents of the files that the options name, to detect changes in them.

        Raises `UserError` if a file cannot be read.
        """
        return []


class PromptsInit(HeadInit):
    """Weights from the backbone's text tower, which encodes prompts with the names of classes."""

    needs_text = True

    def prompts(self, classes: Sequence[str]) -> list[list[str]]:
        """Return one or more prompts for each class. Underscores in names become spaces."""
        return self.prompts_for([name.replace("_", " ") for name in classes])

    @abstractmethod
    def prompts_for(self, names: Sequence[str]) -> list[list[str]]:
        """Return one or more prompts for each name, which has no underscores."""


class TemplateInit(PromptsInit):
    """One prompt a class."""

    template: str = Field(
        "a photo of {article} {}.",
        pattern=r"\{\}",
        description="{} is the class, {article} its indefinite article",
    )

    def prompts_for(self, names: Sequence[str]) -> list[list[str]]:
        return [[filled(self.template, name)] for name in names]


class TextInit(TemplateInit):
    """The text feature of one prompt a class."""

    name: Literal["text"] = "text"


class EnsembleInit(PromptsInit):
    """The mean over CLIP's 80 templates for ImageNet (Radford et al. 2021, section 3.1.4)."""

    name: Literal["ensemble"] = "ensemble"

    def prompts_for(self, names: Sequence[str]) -> list[list[str]]:
        # `models.lift`, which makes torchvision importable, must be imported before open_clip.
        from open_clip import OPENAI_IMAGENET_TEMPLATES as TEMPLATES

        return [[template(name) for template in TEMPLATES] for name in names]


class ClassNameInit(PromptsInit):
    """The text feature of the bare class name."""

    name: Literal["classname"] = "classname"

    def prompts_for(self, names: Sequence[str]) -> list[list[str]]:
        return [[name] for name in names]


class DescriptionsInit(PromptsInit):
    """The mean over sentences about each class, from a file {class: [sentence, ...]}.

    The file is JSON or YAML.
    """

    name: Literal["descriptions"] = "descriptions"
    path: Path

    def prompts_for(self, names: Sequence[str]) -> list[list[str]]:
        """Return the sentences about each class.

        Raises `UserError` if the file cannot be read, if it lacks a class, or if it has another.
        """
        sentences = {
            key.replace("_", " "): lines for key, lines in read_descriptions(self.path).items()
        }
        for name in names:
            if name not in sentences:
                raise UserError(
                    f"{self.path} does not describe class {name!r}{did_you_mean(name, sentences)}: "
                    "add it, or correct the name there"
                )
        for name in sentences:
            if name not in names:
                raise UserError(
                    f"{self.path} describes {name!r}, which is not a class"
                    f"{did_you_mean(name, names)}: correct or remove it"
                )
        return [sentences[name] for name in names]

    def contents(self) -> list[object]:
        return [read_descriptions(self.path)]


class ClassMeanInit(HeadInit):
    """The mean feature of each class's training photos."""

    name: Literal["class-mean"] = "class-mean"
    images: int | None = Field(
        None, ge=1, description="largest number of photos of a class; None: all"
    )


class PrototypesInit(TemplateInit):
    """A mixture of each class's mean feature and its text feature, by default half of each."""

    name: Literal["prototypes"] = "prototypes"
    text_share: float = Field(0.5, ge=0, le=1)


class LinearProbeInit(HeadInit):
    """The weights of a logistic regression on the features of the training photos."""

    name: Literal["linear-probe"] = "linear-probe"


class RandomInit(HeadInit):
    """Random directions."""

    name: Literal["random"] = "random"


AnyHeadInit = Annotated[
    TextInit
    | EnsembleInit
    | ClassNameInit
    | DescriptionsInit
    | ClassMeanInit
    | PrototypesInit
    | LinearProbeInit
    | RandomInit,
    Field(discriminator="name"),
]


def filled(template: str, name: str) -> str:
    """Return a template with a name for {} and, for {article}, "a" or "an"; nothing for a plural.

    By spelling alone: a last word in -s is a plural unless it ends as singulars do (dress, bus).
    """
    singular = not PLURAL.search(name.lower())
    article = ("an" if VOWEL_SOUND.match(name.lower()) else "a") if singular else ""
    return template.replace("{article} ", f"{article} ".lstrip()).replace("{}", name)


def require_text(initial: HeadInit, backbone: str, has_text: bool) -> None:
    """Raise `UserError` if the head is to start from text and the backbone has no text tower."""
    if initial.needs_text and not has_text:
        raise UserError(
            f"backbone {backbone} has no text tower, so its head cannot start from text: pass "
            "--set head.initial.name=class-mean, or set it in the recipe"
        )


def text_weights(
    encode: Callable[[Sequence[str]], Tensor],
    prompts: Sequence[Sequence[str]],
    projection: Tensor | None = None,
) -> Tensor:
    """Return unit class weights [C, E] from each class's prompts, or [C, D] with `projection`.

    `encode` maps prompts to unit features [len(prompts), E], as `Backbone.encode_text` does;
    `projection` is [D, E]. The features of a class are averaged, then multiplied by the transposed
    projection, and only then normalised.
    """
    means: list[Tensor] = []
    for start in range(0, len(prompts), CLASSES_AT_ONCE):
        chunk = prompts[start : start + CLASSES_AT_ONCE]
        features = encode([prompt for of_class in chunk for prompt in of_class])
        means += [part.mean(0) for part in split(features, [len(of_class) for of_class in chunk])]
    return text_weight(torch.stack(means), projection)


def class_means(
    features: Tensor, labels: Tensor, classes: Sequence[str], images: int | None = None
) -> Tensor:
    """Return unit class weights [C, D]: the normalised mean feature of each class.

    `features` are float [N, D] as the tower gives them, `labels` int64 [N]. `images` limits the
    mean to the first features of a class. Raises `UserError` if a class has no feature.
    """
    grouped = split(features[labels.argsort(stable=True)], _checked_counts(labels, classes))
    return F.normalize(torch.stack([part[:images].mean(0) for part in grouped]), dim=-1)


def prototypes(
    text: Tensor, features: Tensor, labels: Tensor, classes: Sequence[str], text_share: float
) -> Tensor:
    """Return unit class weights [C, D] between each class's mean feature and its text weight.

    Both are centred over the classes and normalised again before they are mixed. Centring removes
    what the images of all classes, or their texts, have in common, which separates images from
    texts in CLIP's space (Liang et al. 2022). Raises `UserError` if a class has no feature.
    """
    means = class_means(F.normalize(features, dim=-1), labels, classes)
    image_part, text_part = (F.normalize(rows - rows.mean(0), dim=-1) for rows in (means, text))
    return F.normalize((1 - text_share) * image_part + text_share * text_part, dim=-1)


def linear_probe(features: Tensor, labels: Tensor, classes: Sequence[str]) -> Tensor:
    """Return unit class weights [C, D] of a logistic regression that weights all classes equally.

    `features` are float [N, D] as the tower gives them, `labels` int64 [N]. The intercepts are
    dropped. Raises `UserError` if a class has no feature.
    """
    # The import takes a second, and only this function needs it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _checked_counts(labels, classes)
    probe = LogisticRegression(solver="lbfgs", max_iter=100, class_weight="balanced")
    with warnings.catch_warnings():
        # The method stops after a hundred steps, whether or not it has converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features.cpu().numpy(), labels.cpu().numpy())
    weight = torch.as_tensor(probe.coef_).to(features)
    if len(classes) == 2:
        # For two classes it fits only the second; the first is its opposite.
        weight = torch.cat([-weight, weight])
    return F.normalize(weight, dim=-1)


def random_weights(classes: int, width: int, generator: torch.Generator) -> Tensor:
    """Return float [classes, width]: rows drawn uniformly from (-1, 1) and then normalised."""
    return F.normalize(torch.rand(classes, width, generator=generator) * 2 - 1, dim=-1)


def read_descriptions(path: Path) -> dict[str, list[str]]:
    """Return the content {class: [sentence, ...]} of a JSON file (by its suffix) or YAML file.

    Raises `UserError` if the file cannot be read or has another content.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else parse_yaml(text)
        return DESCRIPTIONS.validate_python(content, strict=True)
    except OSError as error:
        reason = error.strerror
    except ValidationError as error:
        first = error.errors()[0]
        reason = " ".join([*(f"{part}:" for part in first["loc"]), first["msg"]])
    except ValueError as error:
        reason = str(error)
    raise UserError(f"descriptions {path}: {reason}; write CLASS: [SENTENCE, ...] in JSON or YAML")


def _checked_counts(labels: Tensor, classes: Sequence[str]) -> list[int]:
    """Return the number of photos of each class. Raises `UserError` if a class has none."""
    counts: list[int] = labels.bincount(minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count == 0:
            raise UserError(
                f"class {name!r} has no training photo for the head to start from: add some, or "
                "pass --set head.initial.name=text, or set it in the recipe"
            )
    return counts
