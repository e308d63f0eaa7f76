"""What is trained and how, as data that is kept with the result."""

from typing import Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models import UserError

MethodName = Literal["zero-shot", "head", "lift", "full"]


class Recipe(BaseModel):
    """One training run: momentum, decay, scale, tau and prompt as in LIFT (section 4.1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: MethodName
    rank: int | None = Field(None, ge=1, description="AdaptFormer's; by the adaptive rule if None")
    blocks: int | None = Field(None, ge=1, description="how many last blocks are tuned; None: all")
    epochs: int = Field(10, ge=0)
    batch: int = Field(64, ge=1)
    head_rate: float = Field(0.01, gt=0, description="learning rate of the head")
    tuner_rate: float = Field(0.01, gt=0, description="learning rate inside the tower")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    scale: float = Field(25.0, gt=0, description="of the cosine head")
    tau: float = Field(1.0, ge=0, description="strength of the logit adjustment")
    crops: int = Field(300, ge=1, description="augmented crops of a class behind a frozen stem")
    copies: int = Field(10, ge=1, description="of which one photo gives at most so many")
    prompt: str = "a photo of a {}."
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check_epochs(self) -> Self:
        if self.method == "zero-shot" and self.epochs:
            raise ValueError("zero-shot trains nothing: leave epochs at 0")
        return self


# Epochs and rates were chosen on wardrobe-lt's validation photos (benchmarks/tuning.py); the
# published ones (0.01 for all, 10 epochs) are for fifty times as many photos a pass.
RECIPES: Final[dict[MethodName, Recipe]] = {
    "zero-shot": Recipe(method="zero-shot", epochs=0),
    "head": Recipe(method="head", head_rate=0.06),
    "lift": Recipe(method="lift", head_rate=0.06, tuner_rate=0.05),
    "full": Recipe(method="full", head_rate=0.06, tuner_rate=0.001),
}


def recipe_for(method: str, **changes: Any) -> Recipe:
    """A method's recipe with what is not None in `changes`; raises `UserError` on a wrong value."""
    if method not in RECIPES:
        raise UserError(f"method {method!r} is not one of {', '.join(get_args(MethodName))}")
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return Recipe.model_validate({**RECIPES[method].model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]} = {first['input']}: " if first["loc"] else ""
        raise UserError(f"{where}{first['msg']}") from None
