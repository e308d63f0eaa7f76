"""What is trained and how, as data: written in YAML, checked on reading, kept with the result."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from taillift.models.errors import UserError
from taillift.models.lift.tuners import AnyTuner
from taillift.training.recipe.head_init import Initial, TextInitial
from taillift.training.recipe.losses import Ldam, LogitAdjusted, Loss
from taillift.training.yaml_file import parse_yaml

FOLDER: Final = Path(__file__).parent
# What torch's generators take.
LARGEST_SEED: Final = 2**64 - 1
# Of a recipe that counts steps: in fewer, augmentation and schedule mean nothing.
FEWEST_EPOCHS: Final = 2
NAMES: Final = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _default_kinds(cls, values: Any) -> Any:
        """Where a part does not say of which kind it is, it is of its default's."""
        if not isinstance(values, dict):
            return values
        kinds = {
            key: field.default.name
            for key, field in cls.model_fields.items()
            if field.discriminator and isinstance(values.get(key), dict)
        }
        return values | {key: {"name": kind, **values[key]} for key, kind in kinds.items()}


class HeadConfig(Part):
    """The classifier. `scale` multiplies the cosine; None: the backbone's own logit scale."""

    kind: Literal["cosine", "linear", "l2", "layernorm"] = "cosine"
    space: Literal["features", "projected"] = Field(
        "features", description="before the visual projection (LIFT) or behind it (zero-shot)"
    )
    scale: float | None = Field(25.0, gt=0)
    initial: Initial = Field(TextInitial(), discriminator="name")


class Optimiser(Part):
    """SGD as LIFT's, or AdamW; the rates of head and tuners fall on a cosine to zero."""

    name: Literal["sgd", "adamw"] = "sgd"
    head_rate: float = Field(0.01, gt=0, description="learning rate of the head")
    tuner_rate: float = Field(0.01, gt=0, description="learning rate inside the tower")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's")
    head_decay: float = Field(5e-4, ge=0, description="weight decay of the head")
    tuner_decay: float = Field(5e-4, ge=0, description="weight decay inside the tower")
    head_anchor: float = Field(
        0.0, ge=0, description="decay of the head toward its initial weights, not toward zero"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps on which rates rise")
    step: Literal["epoch", "batch"] = Field("epoch", description="when the rates change")
    average: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average")


class Augmentation(Part):
    """Random crops of the training photos.

    `resized`: any part of 8 to 100 % of the area, aspect 3/4 to 4/3 (Szegedy et al. 2015).
    `minimalist`: a square of an area that grows from epoch to epoch by `schedule` (LIFT+).
    """

    name: Literal["resized", "minimalist"] = "resized"
    flip: bool = True
    schedule: Literal["convex", "linear", "concave", "min", "max"] = "convex"
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="of training and evaluation; None: the backbone's"
    )
    crops: int = Field(300, ge=1, description="augmented crops of a class behind a frozen stem")
    copies: int = Field(10, ge=1, description="of which one photo gives at most so many")


class Recipe(Part):
    """One training run.

    `blocks` is how many last blocks are tuned, None for all. Where `epochs` is 0 nothing is
    trained. `micro_batch` photos go through the model at once, None for what suits the device.
    """

    name: str = Field(min_length=1, pattern=r"^[\w.+-]+$", description="of files and in tables")
    title: str = ""
    tuners: tuple[AnyTuner, ...] = ()
    blocks: int | None = Field(None, ge=1)
    head: HeadConfig = HeadConfig()
    loss: Loss = Field(LogitAdjusted(), discriminator="name")
    optimiser: Optimiser = Optimiser()
    augmentation: Augmentation = Augmentation()
    epochs: int = Field(10, ge=0, description="passes over the photos")
    steps: int | None = Field(
        None, ge=1, description="as many epochs as make so many steps, at least 2, take their place"
    )
    batch: int = Field(64, ge=1, description="photos a step, over all processes")
    micro_batch: int | None = Field(None, ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: int = Field(0, ge=0, le=LARGEST_SEED)

    @field_validator("tuners")
    @classmethod
    def _once_each(cls, tuners: tuple[AnyTuner, ...]) -> tuple[AnyTuner, ...]:
        names = [one.name for one in tuners]
        if len(set(names)) < len(names):
            raise ValueError("a tuner can be there only once")
        return tuners

    @model_validator(mode="after")
    def _name_itself(self) -> Self:
        if not self.title:
            object.__setattr__(self, "title", self.name)
        return self

    @model_validator(mode="after")
    def _margins_in_the_heads_scale(self) -> Self:
        cosine = self.head.kind == "cosine"
        if cosine and isinstance(self.loss, Ldam) and self.loss.scale != self.head.scale:
            raise ValueError(
                f"loss.scale = {self.loss.scale:g} and head.scale = {self.head.scale}: LDAM's "
                "margins are cosines, so give both the same"
            )
        return self

    def resolved(self, counts: Sequence[int], blocks: int, width: int) -> "Recipe":
        """The recipe with its epochs settled for the training photos of each class, `counts`, and
        its tuners' sizes for these classes and for a tower of `blocks` blocks.
        """
        tuned = min(self.blocks or blocks, blocks)
        tuners = tuple(one.resolved(len(counts), tuned, width) for one in self.tuners)
        epochs = self.epochs
        if self.epochs and self.steps is not None:
            epochs = max(FEWEST_EPOCHS, -(-self.steps * self.batch // sum(counts)))
        return self.model_copy(update={"tuners": tuners, "epochs": epochs})


def load_recipe(source: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """One of the recipes that come with taillift, by its name, or a YAML file, with `changes`.

    `changes` maps fields to values, a nested field as "optimiser.tuner_rate". Raises `UserError`
    where there is no such recipe, where a field or value is wrong, or where both epochs and steps
    are changed.
    """
    changes = changes or {}
    if "epochs" in changes and changes.get("steps") is not None:
        raise UserError("epochs and steps each say how long to train: set one of them")
    path = FOLDER / f"{source}.yaml" if source in NAMES else Path(source)
    if path.suffix not in (".yaml", ".yml"):
        hint = _near(source, NAMES) or f": they are {', '.join(NAMES)}, or a YAML file"
        raise UserError(f"there is no recipe {source!r}{hint}")
    fields = _read(path)
    fields.setdefault("name", path.stem)
    for key, value in changes.items():
        _put(fields, key, value)
    if "epochs" in changes:
        # Whoever asks for epochs means them.
        fields.pop("steps", None)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def parse_changes(assignments: Sequence[str]) -> dict[str, Any]:
    """{"a.b": value} from "a.b=value", the value as YAML reads it."""
    changes = {}
    for one in assignments:
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise UserError(f"{one!r}: write KEY=VALUE, such as optimiser.tuner_rate=0.02")
        changes[key.strip()] = _parse(value, one)
    return changes


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = _parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"recipe {path} is no mapping of fields to values")
    return fields


def _parse(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{where}: no YAML: {error}") from None


def _put(fields: dict[str, Any], key: str, value: Any) -> None:
    """Set a nested field; in a list, the item's number is a part of the key."""
    *path, last = key.split(".")
    place: Any = fields
    for part in path:
        place = _item(place, part, key) if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, dict | list):
            raise UserError(f"{key}: {part} has no fields")
    if isinstance(place, list):
        _item(place, last, key)
        place[int(last)] = value
    else:
        place[last] = value


def _item(items: list[Any], part: str, key: str) -> Any:
    if part not in map(str, range(len(items))):
        raise UserError(f"{key}: {part!r} is none of the {len(items)} items, counted from 0")
    return items[int(part)]


def _explain(error: ValidationError) -> str:
    """The first of pydantic's complaints in one line, with the nearest right key."""
    first = error.errors()[0]
    model, path = _model_at(first["loc"])
    key = ".".join(path)
    match first["type"]:
        case "extra_forbidden":
            known = list(model.model_fields)
            hint = _near(path[-1], known) or f": the fields are {', '.join(known)}"
            return f"there is no field {key}{hint}"
        case "union_tag_invalid":
            tag, names = first["ctx"]["tag"], first["ctx"]["expected_tags"].replace("'", "")
            hint = _near(tag, names.split(", ")) or f": it is one of {names}"
            return f"{key}.name = {tag}{hint}"
        case "union_tag_not_found":
            return f"{key} needs a name"
        case "missing":
            return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key} = {first['input']}: {message}" if key else message


def _model_at(loc: Sequence[int | str]) -> tuple[type[BaseModel], list[str]]:
    """The model whose field an error is about, and the field's path as a user writes it.

    pydantic puts a union's tag into the path, which is no field.
    """
    model: type[BaseModel] = Recipe
    choices: list[type[BaseModel]] = []
    path: list[str] = []
    for part in loc:
        if len(choices) > 1:
            tagged = [one for one in choices if one.model_fields["name"].default == part]
            if tagged:
                model, choices = tagged[0], []
                continue
        path.append(str(part))
        if isinstance(part, str):
            if len(choices) == 1:
                model = choices[0]
            field = model.model_fields.get(part)
            choices = _models(field.annotation) if field else []
    return model, path


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models within a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for inner in get_args(annotation) for one in _models(inner)]


def _near(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {close[0]}?" if close else ""
