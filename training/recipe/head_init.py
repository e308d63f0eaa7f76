"""The head's initial weights: from text, from photos, or random (LIFT, section 3.4)."""

import difflib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, split

from taillift.models.errors import UserError
from taillift.models.lift.head import text_weight
from taillift.training.data.classes import class_name
from taillift.training.yaml_file import parse_yaml

# Classes whose prompts are encoded together: what bounds the memory of 80 prompts a class.
CLASSES_AT_ONCE: Final = 256


class InitialSpec(BaseModel, ABC):
    """What the head starts from: the backbone's text tower, its features of photos, or neither."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_text: ClassVar[bool] = False

    def contents(self) -> list[object]:
        """What the files say that it names, to tell one start from another.

        Raises `UserError` where one cannot be read.
        """
        return []


class FromText(InitialSpec):
    needs_text = True

    @abstractmethod
    def prompts(self, classes: Sequence[str]) -> list[list[str]]:
        """One or more prompts for each class, whose names may hold underscores for spaces."""


class FromTemplate(FromText):
    """One prompt a class."""

    template: str = Field("a photo of a {}.", pattern=r"\{\}", description="{} is the class")

    def prompts(self, classes: Sequence[str]) -> list[list[str]]:
        return [[self.template.replace("{}", class_name(one))] for one in classes]


class TextInitial(FromTemplate):
    name: Literal["text"] = "text"


class EnsembleInitial(FromText):
    """CLIP's 80 templates for ImageNet (Radford et al. 2021, section 3.1.4)."""

    name: Literal["ensemble"] = "ensemble"

    def prompts(self, classes: Sequence[str]) -> list[list[str]]:
        # Only behind models.lift, which makes torchvision importable.
        from open_clip import OPENAI_IMAGENET_TEMPLATES as TEMPLATES

        return [[template(class_name(one)) for template in TEMPLATES] for one in classes]


class ClassNameInitial(FromText):
    """The bare name of the class."""

    name: Literal["classname"] = "classname"

    def prompts(self, classes: Sequence[str]) -> list[list[str]]:
        return [[class_name(one)] for one in classes]


class DescriptionsInitial(FromText):
    """Sentences about each class, from a JSON or YAML file {class: [sentence, ...]}."""

    name: Literal["descriptions"] = "descriptions"
    path: Path

    def prompts(self, classes: Sequence[str]) -> list[list[str]]:
        """Raises `UserError` where the file cannot be read, or lacks a class or has another."""
        found = {class_name(key): lines for key, lines in read_descriptions(self.path).items()}
        names = [class_name(one) for one in classes]
        for name in names:
            if name not in found:
                raise UserError(
                    f"{self.path} does not describe class {name!r}{_nearest(name, found)}: add it"
                )
        for name in found:
            if name not in names:
                raise UserError(
                    f"{self.path} describes {name!r}, which is not a class"
                    f"{_nearest(name, names)}: correct or remove it"
                )
        return [found[name] for name in names]

    def contents(self) -> list[object]:
        return [read_descriptions(self.path)]


class ClassMeanInitial(InitialSpec):
    """The mean feature of each class's training photos."""

    name: Literal["class-mean"] = "class-mean"
    images: int | None = Field(None, ge=1, description="photos of a class at most; None: all")


class PrototypesInitial(FromTemplate):
    """Half of what each class's photos show, half of what its text says."""

    name: Literal["prototypes"] = "prototypes"
    text_share: float = Field(0.5, ge=0, le=1)


class LinearProbeInitial(InitialSpec):
    """The weights of a logistic regression on the training photos' features."""

    name: Literal["linear-probe"] = "linear-probe"


class RandomInitial(InitialSpec):
    name: Literal["random"] = "random"


Initial = Annotated[
    TextInitial
    | EnsembleInitial
    | ClassNameInitial
    | DescriptionsInitial
    | ClassMeanInitial
    | PrototypesInitial
    | LinearProbeInitial
    | RandomInitial,
    Field(discriminator="name"),
]


def check_text(initial: InitialSpec, backbone: str, has_text: bool) -> None:
    """Raises `UserError` where the head is to start from text and the backbone has none."""
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
    """Unit class weights [C, E] from each class's prompts, or [C, D] with `projection` [D, E].

    `encode` maps prompts to unit features [len(prompts), E], as `Backbone.encode_text`. A class's
    are averaged, pulled back through the projection, and normalised only then.
    """
    means = torch.stack(list(_mean_features(encode, prompts)))
    return text_weight(means, projection)


def class_means(
    features: Tensor, labels: Tensor, classes: Sequence[str], images: int | None = None
) -> Tensor:
    """Unit class weights [C, D]: the normalised mean of each class's first `images` features.

    `features` are float [N, D] as the tower gives them, `labels` int64 [N]. Raises `UserError`
    where a class has none.
    """
    grouped = split(features[labels.argsort(stable=True)], _counts(labels, classes))
    return F.normalize(torch.stack([one[:images].mean(0) for one in grouped]), dim=-1)


def prototypes(
    text: Tensor, features: Tensor, labels: Tensor, classes: Sequence[str], text_share: float
) -> Tensor:
    """Unit class weights [C, D] between the mean of each class's features and its text weight.

    Both are centred over the classes and of unit length again before they are mixed. Centring takes
    away what images, or texts, of all classes have in common, which keeps the two apart in CLIP's
    space (Liang et al. 2022). Raises `UserError` where a class has no feature.
    """
    means = class_means(F.normalize(features, dim=-1), labels, classes)
    seen, told = (F.normalize(one - one.mean(0), dim=-1) for one in (means, text))
    return F.normalize((1 - text_share) * seen + text_share * told, dim=-1)


def linear_probe(features: Tensor, labels: Tensor, classes: Sequence[str]) -> Tensor:
    """Unit class weights [C, D] of a logistic regression in which all classes weigh the same.

    `features` are float [N, D] as the tower gives them, `labels` int64 [N]. The intercepts are
    dropped. Raises `UserError` where a class has no feature.
    """
    # Takes a second to import, and only this needs it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _counts(labels, classes)
    probe = LogisticRegression(solver="lbfgs", max_iter=100, class_weight="balanced")
    with warnings.catch_warnings():
        # A hundred steps are what the method asks for: it need not have converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features.cpu().numpy(), labels.cpu().numpy())
    weight = torch.as_tensor(probe.coef_).to(features)
    if len(classes) == 2:
        # Of two classes it fits only the second; the first is its opposite.
        weight = torch.cat([-weight, weight])
    return F.normalize(weight, dim=-1)


def random_weights(classes: int, width: int, generator: torch.Generator) -> Tensor:
    """Float [classes, width] of unit rows, drawn uniformly from (-1, 1) before."""
    return F.normalize(torch.rand(classes, width, generator=generator) * 2 - 1, dim=-1)


def read_descriptions(path: Path) -> dict[str, list[str]]:
    """A JSON (by its name) or YAML file {class: [sentence, ...]}; `UserError` if it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else parse_yaml(text)
        return _DESCRIPTIONS.validate_python(content, strict=True)
    except OSError as error:
        reason = error.strerror
    except ValidationError as error:
        first = error.errors()[0]
        reason = " ".join([*(f"{part}:" for part in first["loc"]), first["msg"]])
    except ValueError as error:
        reason = str(error)
    raise UserError(f"descriptions {path}: {reason}; write CLASS: [SENTENCE, ...] in JSON or YAML")


_Sentences = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
_DESCRIPTIONS: Final = TypeAdapter(dict[str, _Sentences])


def _mean_features(
    encode: Callable[[Sequence[str]], Tensor], prompts: Sequence[Sequence[str]]
) -> Iterator[Tensor]:
    for start in range(0, len(prompts), CLASSES_AT_ONCE):
        chunk = prompts[start : start + CLASSES_AT_ONCE]
        features = encode([prompt for one in chunk for prompt in one])
        for of_class in split(features, [len(one) for one in chunk]):
            yield of_class.mean(0)


def _counts(labels: Tensor, classes: Sequence[str]) -> list[int]:
    counts: list[int] = labels.bincount(minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count == 0:
            raise UserError(
                f"class {name!r} has no training photo for the head to start from: add some, or "
                "pass --set head.initial.name=text, or set it in the recipe"
            )
    return counts


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (the nearest is {near[0]!r})" if near else ""
