"""Recipes: the settings of a training run, written in YAML and kept with the result."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from taillift.models.errors import UserError, did_you_mean
from taillift.models.lift.tuners import AnyTuner
from taillift.training.recipe.head_init import AnyHeadInit, TextInit
from taillift.training.recipe.losses import AnyLoss, Cues, Ldam, LogitAdjusted
from taillift.training.recipe.semi_supervision import AnyMethod, SemiSupervision
from taillift.training.yaml_file import parse_yaml

FOLDER: Final = Path(__file__).parent
# The largest seed that torch's generators accept.
LARGEST_SEED: Final = 2**64 - 1
# For recipes that give `steps`: augmentation and schedule make no sense in fewer epochs.
FEWEST_EPOCHS: Final = 2
# And at most this many: on few photos, further epochs take minutes and teach little
# (docs/training.md gives the figures).
MOST_EPOCHS: Final = 7
# With `effort: full`: LIFT takes at most this many passes, over the photos of iNaturalist 2018.
MOST_FULL_EPOCHS: Final = 20
# And so many photos are shown for each class, on average: 500 steps of 32 for 75 to 80 classes.
# There, 250 steps were too few (docs/training.md gives the figures).
SHOWN_A_CLASS: Final = 200
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
# What accuracy is chosen by.
Aim = Literal["mean-class", "few"]
# By how much given shares may miss a sum of 1.
SHARE_ROUNDING: Final = 1e-6
GIVE_SHARES: Final = "give auto, a number from 0 to 1, or one for each of the parents that sum to 1"
# What a soup says of itself; all else it has from its parents.
SOUP_FIELDS: Final = ("name", "title", "soup", "seed")
NAMES: Final = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def _misread_truths(
    given: object, read: object, loc: tuple[int | str, ...] = ()
) -> Iterator[tuple[tuple[int | str, ...], bool]]:
    """Yield the place and the value of each true or false that was read as something else."""
    if isinstance(given, bool) and not isinstance(read, bool):
        yield loc, given
    elif isinstance(given, dict):
        for name, value in given.items():
            yield from _misread_truths(value, getattr(read, name, value), (*loc, name))
    elif isinstance(given, list) and isinstance(read, Sequence):
        for index, (value, item) in enumerate(zip(given, read, strict=False)):
            yield from _misread_truths(value, item, (*loc, index))


class Part(BaseModel):
    """A part of a recipe: immutable, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def fill_default_kinds(cls, values: Any) -> Any:
        """Give every field without a `name`, such as a loss, the kind of the field's default."""
        if not isinstance(values, dict):
            return values
        kinds = {
            key: field.default.name
            for key, field in cls.model_fields.items()
            if field.discriminator and field.default and isinstance(values.get(key), dict)
        }
        return values | {key: {"name": kind, **values[key]} for key, kind in kinds.items()}

    @model_validator(mode="wrap")
    @classmethod
    def refuse_truths(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse true and false, also called yes and off, for numbers: they would be 1 and 0."""
        read = handler(given)
        errors: list[InitErrorDetails] = [
            {"type": PydanticCustomError("truth", "give a number"), "loc": loc, "input": value}
            for loc, value in _misread_truths(given, read)
        ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return read


class HeadConfig(Part):
    """The classifier. `scale` multiplies the cosine; None means the backbone's own logit scale."""

    kind: Literal["cosine", "linear", "l2", "layernorm"] = "cosine"
    space: Literal["features", "projected"] = Field(
        "features", description="before the visual projection (LIFT) or after it (zero-shot)"
    )
    scale: float | None = Field(25.0, gt=0)
    initial: AnyHeadInit = Field(TextInit(), discriminator="name")


class Optimiser(Part):
    """SGD as in LIFT, or AdamW. The rates of head and tuners fall to zero along a cosine."""

    name: Literal["sgd", "adamw"] = "sgd"
    head_rate: float = Field(0.01, gt=0, description="learning rate of the head")
    tuner_rate: float = Field(0.01, gt=0, description="learning rate inside the tower")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    head_decay: float = Field(5e-4, ge=0, description="weight decay of the head")
    tuner_decay: float = Field(5e-4, ge=0, description="weight decay inside the tower")
    head_anchor: float = Field(
        0.0, ge=0, description="decay of the head toward its initial weights instead of zero"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the rates rise")
    step: Literal["epoch", "batch"] = Field("epoch", description="when the rates change")
    average: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average")


class Augmentation(Part):
    """Random crops of the training photos.

    `resized` takes 8 to 100 % of the area with an aspect of 3/4 to 4/3 (Szegedy et al. 2015).
    `minimalist` takes a square whose area grows from epoch to epoch along `schedule` (LIFT+).
    """

    name: Literal["resized", "minimalist"] = "resized"
    flip: bool = True
    schedule: Literal["convex", "linear", "concave", "min", "max"] = "convex"
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="in training and evaluation; None: the backbone's"
    )
    crops: int = Field(300, ge=1, description="augmented crops a class, with a frozen stem")
    copies: int = Field(10, ge=1, description="largest number of these crops from one photo")

    @property
    def grows(self) -> bool:
        """Whether crops are larger in each epoch than in the one before."""
        return self.name == "minimalist" and self.schedule not in ("min", "max")


class Soup(Part):
    """One model as the average of several: the `parents`, each trained with every seed.

    With `subsets`, each parent is trained on ever longer-tailed subsets of the photos (LT-Soups,
    arXiv 2511.10683): subset i has at most n 2^i photos of a class, n being those of the rarest.
    The soup begins as the untrained model, and moves to the mean of each subset's models by
    `share`.
    """

    # Whether the shares are numbers is checked with their sum.
    model_config = ConfigDict(allow_inf_nan=True)

    parents: tuple["Recipe", ...] = Field(min_length=1, description="names, or YAML files")
    share: Literal["auto"] | float | tuple[float, ...] = Field(
        "auto",
        description="share of the second of two parents, or one for each; auto: equal ones, unless "
        "others are surely better on val/. "
        "With subsets: the share of each further one; auto: 0.7",
    )
    aim: Aim = Field("mean-class", description="the accuracy on val/ that shares are chosen by")
    new_head: Literal["auto"] | bool = Field(
        "auto",
        description="train the head again on the average; auto: if that is surely better on val/",
    )
    seeds: tuple[Seed, ...] = Field(
        (), description="add the soup of each of these seeds, unless that is worse on val/"
    )
    subsets: int = Field(0, ge=0, description="ever longer-tailed subsets to train on")

    @property
    def shares(self) -> tuple[float, ...] | None:
        """The share of each parent; None if they are not given."""
        match self.share:
            case "auto":
                return None
            case float(share):
                return (1 - share, share)
            case shares:
                return shares

    @field_validator("share", mode="before")
    @classmethod
    def check_share(cls, share: Any) -> Any:
        """Refuse other texts than auto in one line."""
        if isinstance(share, str) and share != "auto":
            raise ValueError(GIVE_SHARES)
        return share


class Recipe(Part):
    """The settings of one training run.

    `blocks` is the number of last blocks that are tuned; None means all. With `epochs` of 0 nothing
    is trained. `micro_batch` photos go through the model at once; None lets the device decide.
    """

    name: str = Field(
        min_length=1, pattern=r"^[\w.+-]+$", description="name of files and in tables"
    )
    title: str = ""
    tuners: tuple[AnyTuner, ...] = ()
    blocks: int | None = Field(None, ge=1)
    head: HeadConfig = HeadConfig()
    loss: AnyLoss = Field(LogitAdjusted(), discriminator="name")
    unlabelled: AnyMethod | None = None
    soup: Soup | None = Field(None, description="trains its parents and averages them")
    optimiser: Optimiser = Optimiser()
    augmentation: Augmentation = Augmentation()
    epochs: int = Field(10, ge=0, description="passes over the photos")
    steps: int | None = Field(
        None, ge=1, description="replaces epochs by the number that these steps take"
    )
    bounded: bool = Field(
        True, description="take whole epochs for the steps, 2 to 7; false: exactly these steps"
    )
    effort: Literal["quick", "full"] = Field(
        "quick", description="full: at least as many steps as the number of classes asks for"
    )
    batch: int = Field(64, ge=1, description="photos a step, summed over all processes")
    micro_batch: int | None = Field(None, ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: Seed = 0

    @field_validator("tuners")
    @classmethod
    def check_tuners_differ(cls, tuners: tuple[AnyTuner, ...]) -> tuple[AnyTuner, ...]:
        """Refuse a tuner that is listed twice."""
        names = [tuner.name for tuner in tuners]
        if len(set(names)) < len(names):
            raise ValueError("a tuner can be used only once")
        return tuners

    @model_validator(mode="after")
    def fill_title(self) -> Self:
        """Use the name as the title if there is none."""
        if not self.title:
            object.__setattr__(self, "title", self.name)
        return self

    @model_validator(mode="after")
    def check_margin_scale(self) -> Self:
        """Refuse an LDAM loss whose scale is not that of the cosine head."""
        cosine = self.head.kind == "cosine"
        if cosine and isinstance(self.loss, Ldam) and self.loss.scale != self.head.scale:
            raise ValueError(
                f"loss.scale = {self.loss.scale:g} and head.scale = {self.head.scale}: LDAM's "
                "margins are cosines, so give both the same"
            )
        return self

    @model_validator(mode="after")
    def check_effort(self) -> Self:
        """Refuse to choose the number of steps if it is given."""
        if self.effort == "full" and (self.steps is None or not self.bounded):
            given = "epochs" if self.steps is None else "steps"
            raise ValueError(
                f"effort = full chooses the number of steps, and {given} gives it: leave out one"
            )
        return self

    @model_validator(mode="after")
    def check_shares(self) -> Self:
        """Refuse a soup's shares that are not one for each parent, or do not sum to 1."""
        if self.soup is None or (shares := self.soup.shares) is None:
            return self
        # In a soup of subsets: the share of what there is so far, and that of the next one.
        count = 2 if self.soup.subsets else len(self.soup.parents)
        summed = abs(sum(shares) - 1) <= SHARE_ROUNDING  # never for one that is not a number
        if len(shares) != count or min(shares) < 0 or not summed:
            raise ValueError(f"soup.share = {self.soup.share}: {GIVE_SHARES}")
        return self

    @model_validator(mode="after")
    def check_unlabelled(self) -> Self:
        """Refuse what cannot be combined with unlabelled photos."""
        method = self.unlabelled
        if method is None:
            return self
        if not self.epochs:
            raise ValueError("epochs = 0 trains nothing, so remove the part unlabelled")
        if self.loss.whole_batch and isinstance(method, SemiSupervision):
            raise ValueError(
                f"loss.name = {self.loss.name} is a statistic of labelled batches, which "
                "pseudo-labels would distort: choose another loss, or remove the part unlabelled"
            )
        if self.cues and isinstance(method, SemiSupervision):
            raise ValueError(
                "loss.cues are of labelled photos, and unlabelled adds others: leave out one"
            )
        if method.needs_text and not self.head.initial.needs_text:
            raise ValueError(
                f"unlabelled.name = {method.name} needs class texts: set head.initial.name to "
                "text or prototypes"
            )
        if method.needs_cosine and self.head.kind != "cosine":
            raise ValueError(
                f"unlabelled.name = {method.name} needs head.kind = cosine, not {self.head.kind}"
            )
        return self

    @property
    def cues(self) -> Cues | None:
        """The soft positives of the loss; None without any, or if nothing is trained."""
        return self.loss.cues if self.epochs and isinstance(self.loss, LogitAdjusted) else None

    @property
    def chosen_tau(self) -> float | None:
        """The tau that was chosen after training, None without such a choice."""
        return self.loss.chosen if isinstance(self.loss, LogitAdjusted) else None

    def with_tau(self, tau: float | None) -> "Recipe":
        """Return the recipe after its tau was chosen, or, with None, before."""
        loss = self.loss
        if not (isinstance(loss, LogitAdjusted) and loss.tau == "auto"):
            loss = LogitAdjusted(tau="auto")
        return self.model_copy(update={"loss": loss.model_copy(update={"chosen": tau})})

    @property
    def undecided(self) -> LogitAdjusted | None:
        """The loss whose tau has to be chosen after training; None without such a choice."""
        loss = self.loss
        return loss if self.epochs and isinstance(loss, LogitAdjusted) and loss.undecided else None

    @property
    def teaching(self) -> SemiSupervision | None:
        """How pseudo-labels are made; None without any, also because of a weight of 0."""
        method = self.unlabelled
        return method if isinstance(method, SemiSupervision) and method.active else None

    def resolved(self, counts: Sequence[int], blocks: int, width: int) -> "Recipe":
        """Return the recipe with the number of epochs and the sizes of its tuners settled.

        `counts` are the training photos of each class. The tower has `blocks` blocks and tokens of
        `width` numbers.
        """
        tuned = min(self.blocks or blocks, blocks)
        tuners = tuple(tuner.resolved(len(counts), tuned, width) for tuner in self.tuners)
        epochs = self.epochs
        if self.epochs and self.steps is not None:
            if self.bounded:
                shown, most = self.steps * self.batch, MOST_EPOCHS
                if self.effort == "full":
                    shown, most = max(shown, SHOWN_A_CLASS * len(counts)), MOST_FULL_EPOCHS
                epochs = min(max(FEWEST_EPOCHS, -(-shown // sum(counts))), most)
            else:
                epochs = -(-self.steps // self.steps_per_epoch(sum(counts)))
        soup = self.soup
        if soup is not None:
            parents = tuple(parent.resolved(counts, blocks, width) for parent in soup.parents)
            soup = soup.model_copy(update={"parents": parents})
        return self.model_copy(update={"tuners": tuners, "epochs": epochs, "soup": soup})

    def steps_per_epoch(self, photos: int) -> int:
        """Return the number of steps in one pass over so many photos."""
        return -(-photos // self.batch)

    def total_steps(self, photos: int, whole: int) -> int:
        """Return the steps of a resolved recipe that trains on `photos` of a set of `whole`.

        If some are set aside, the passes over the others stay the same.
        """
        passes = self.epochs * self.steps_per_epoch(photos)
        if self.steps is None or self.bounded:
            return passes
        return min(passes, max(1, round(self.steps * photos / whole)))


# A soup's parents are recipes, which were not known when it was defined.
Recipe.model_rebuild()


def load_recipe(
    source: str, changes: Mapping[str, Any] | None = None, soup: str | None = None
) -> Recipe:
    """Load a recipe of taillift by its name, or a YAML file, and apply `changes`.

    NAME+METHOD is a recipe of taillift with unlabelled photos, such as lift+loft.
    `changes` maps fields to values; a nested field is written as "optimiser.tuner_rate". Raises
    `UserError` if there is no such recipe, if a field or value is wrong, if both epochs and steps
    are changed, or if a parent of `soup` is a soup itself.
    """
    changes = changes or {}
    source, plus, method = source.partition("+")
    if plus and source not in NAMES:
        # A file whose name has a plus.
        source, plus = f"{source}+{method}", ""
    if "epochs" in changes and changes.get("steps") is not None:
        raise UserError("epochs and steps each say how long to train: set one of them")
    path = FOLDER / f"{source}.yaml" if source in NAMES else Path(source)
    if path.suffix not in (".yaml", ".yml"):
        hint = did_you_mean(source, NAMES) or f": give one of {', '.join(NAMES)}, or a YAML file"
        raise UserError(f"there is no recipe {source!r}{hint}")
    try:
        fields = _parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"recipe {path} is not a mapping of fields to values")
    fields.setdefault("name", path.stem)
    if plus:
        title = fields.get("title", fields["name"])
        fields |= {
            "name": f"{fields['name']}+{method}",
            "title": f"{title}, {method}",
            "unlabelled": {"name": method},
        }
    inherited: dict[str, Any] = {}
    if isinstance(fields.get("soup"), dict):
        if soup is not None:
            raise UserError(f"{soup}: {path.stem} is a soup itself: name its parents instead")
        inherited = {key: changes[key] for key in changes if key.split(".")[0] not in SOUP_FIELDS}
        changes = {key: changes[key] for key in changes if key not in inherited}
    for key, value in changes.items():
        _set_field(fields, key, value)
    if isinstance(given := fields.get("soup"), dict):
        fields = _with_parents(source, fields, given, inherited)
    if changes.get("steps") is not None:
        # Only a recipe's own steps are bounded by passes over few photos.
        fields.setdefault("bounded", False)
    if "epochs" in changes:
        # Else the steps in the file would replace the requested epochs.
        fields.pop("steps", None)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def _with_parents(
    source: str, fields: dict[str, Any], soup: dict[str, Any], inherited: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of a soup with its parents loaded; the first gives it all other fields."""
    parents = soup.get("parents")
    if not isinstance(parents, list) or not all(isinstance(name, str) for name in parents):
        raise UserError(f"{source}: soup.parents: give a list of recipes, such as [lift, full]")
    for name in sorted(map(str, fields.keys() - set(SOUP_FIELDS))):
        raise UserError(f"{source}: a soup has {name} from its parents: set it there, or by --set")
    changes = {**inherited, "seed": fields.get("seed", 0)}
    loaded = [load_recipe(name, changes, source) for name in parents]
    if not loaded:
        return fields
    shared = loaded[0].model_dump(exclude={*SOUP_FIELDS, "tuners", "blocks", "unlabelled"})
    taught = next((parent.unlabelled for parent in loaded if parent.unlabelled), None)
    return {**shared, "unlabelled": taught, **fields, "soup": {**soup, "parents": loaded}}


def parse_changes(assignments: Sequence[str]) -> dict[str, Any]:
    """Return {"a.b": value} for assignments "a.b=value", whose values are YAML.

    Raises `UserError` if one is not such an assignment.
    """
    changes = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"{assignment!r}: write KEY=VALUE, such as optimiser.tuner_rate=0.02")
        changes[key.strip()] = _parse(value, assignment)
    return changes


def _parse(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from None


def _set_field(fields: dict[str, Any], key: str, value: Any) -> None:
    """Set a nested field; in a list, the index of an item is a part of the key."""
    parts = key.split(".")
    container: Any = fields
    for depth, part in enumerate(parts, 1):
        step: int | str = part
        if isinstance(container, list):
            if part not in map(str, range(len(container))):
                raise UserError(
                    f"{key}: {part!r} is not one of the {len(container)} items, counted from 0"
                )
            step = int(part)
        if depth == len(parts):
            container[step] = value
            return
        if isinstance(container, dict):
            container.setdefault(step, {})
        container = container[step]
        if not isinstance(container, dict | list):
            raise UserError(f"{key}: {part} has no fields")


def _explain(error: ValidationError) -> str:
    """Return the first of pydantic's errors as one line, with the most similar valid name."""
    first = error.errors()[0]
    model, path = _model_at(first["loc"])
    key = ".".join(path)
    match first["type"]:
        case "extra_forbidden":
            fields = list(model.model_fields)
            hint = did_you_mean(path[-1], fields) or f": the fields are {', '.join(fields)}"
            return f"there is no field {key}{hint}"
        case "union_tag_invalid":
            tag, names = first["ctx"]["tag"], first["ctx"]["expected_tags"].replace("'", "")
            hint = did_you_mean(tag, names.split(", ")) or f": give one of {names}"
            return f"{key}.name = {tag}{hint}"
        case "union_tag_not_found":
            return f"{key} needs a name"
        case "missing":
            return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key} = {first['input']}: {message}" if key else message


def _model_at(loc: Sequence[int | str]) -> tuple[type[BaseModel], list[str]]:
    """Return the model whose field an error is about, and the field's path as a user writes it.

    pydantic adds the tag of a union to the location `loc`; this is not a field, so it is left out.
    """
    model: type[BaseModel] = Recipe
    choices: list[type[BaseModel]] = []
    path: list[str] = []
    for part in loc:
        if len(choices) > 1:
            tagged = [kind for kind in choices if kind.model_fields["name"].default == part]
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
    """Return the pydantic models in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
